"""The replay of recorded files: all four pass, and a file that is not right, or not whole, is told apart."""

import pathlib

import numpy as np
import pytest

from tests import parity

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"
SMALLEST = FIXTURES / "normal_decoder_tiny.npz"


def failures(comparisons):
    return {comparison.quantity: comparison.error for comparison in comparisons if not comparison.passed}


def of_part(comparisons, part):
    return [comparison for comparison in comparisons if comparison.quantity.startswith(part)]


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("mnist_tiny", []),
        ("cifar10_tiny", []),
        ("celeba64_tiny", []),
        ("normal_decoder_tiny", ["eval/mean", "sample/mean"]),
    ],
)
def test_a_recorded_file(name, missing):
    comparisons, absent = parity.replay(str(FIXTURES / f"{name}.npz"))
    assert failures(comparisons) == {}
    assert sorted(absent) == missing
    with np.load(FIXTURES / f"{name}.npz") as file:
        keys = [key for key in file if key.startswith(("train/grad/", "train/after_"))]
    compared = {comparison.quantity.removesuffix(" (zero in theory)") for comparison in comparisons}
    # Every recorded gradient and weight has been compared, whatever its name.
    assert set(keys) <= compared
    assert {"eval/logits", "eval/log_iw", "sample/logits", "train/loss", "train/spectral_loss_exact"} <= compared


@pytest.fixture
def changed_copy(tmp_path):
    """`changed_copy(change)`: the smallest file after `change(arrays)`."""

    def copy(change):
        with np.load(SMALLEST) as file:
            arrays = dict(file.items())
        change(arrays)
        path = tmp_path / "changed.npz"
        np.savez(path, **arrays)
        return str(path)

    return copy


def perturb(key, factor=1.01):
    """Changes the largest number under a key by one percent."""

    def change(arrays):
        values = arrays[key] = arrays[key].copy()
        values.flat[np.argmax(np.abs(values))] *= factor

    return change


def test_one_weight_that_is_off_fails_everywhere(changed_copy):
    comparisons, _ = parity.replay(changed_copy(perturb("state/stem.weight", 1.5)))
    for part in ("eval/logits", "eval/kl_per_group", "train/logits", "train/grad/stem.weight", "train/loss"):
        assert any(not comparison.passed for comparison in of_part(comparisons, part)), part
    # The prior has nothing to do with the stem.
    assert not failures(of_part(comparisons, "sample/"))


def test_recorded_numbers_that_are_off_fail_alone(changed_copy):
    keys = (
        *("eval/logits", "eval/kl_diag/1", "sample/logits", "train/bn_loss", "train/kl_alpha"),
        *("train/grad/stem.weight", "train/after_forward/pre_process.0._ops.0.bn_act.running_var"),
    )

    def change(arrays):
        for key in keys:
            perturb(key)(arrays)

    comparisons, _ = parity.replay(changed_copy(change))
    found = failures(comparisons)
    steps = {name for name in found if name.startswith("train/after_step/")}
    assert set(found) - steps == set(keys)


def test_a_number_that_is_not_one_fails(changed_copy):
    comparisons, _ = parity.replay(changed_copy(perturb("eval/logits", np.nan)))
    assert set(failures(comparisons)) == {"eval/logits"}
    assert not parity.Comparison("any", float("nan"), 1.0).passed
    assert not parity.Comparison("any", 1.1, 1.0).passed
    assert parity.Comparison("any", 1.0, 1.0).passed


def test_parts_that_are_not_recorded_are_named(changed_copy):
    def change(arrays):
        for key in list(arrays):
            if key.startswith(("sample/", "train/", "eval/eps")) or key == "eval/log_q":
                del arrays[key]

    comparisons, absent = parity.replay(changed_copy(change))
    assert comparisons == []
    assert {"eval/eps", "sample/eps", "train/eps"} <= set(absent)


def reduced(arrays):
    """Norms of the gradients in place of the gradients."""
    names = [key[len("train/grad/") :] for key in arrays if key.startswith("train/grad/")]
    gradients = [arrays.pop(f"train/grad/{name}") for name in names]
    arrays["train/grad_norm_names"] = np.array(names)
    arrays["train/grad_norms"] = np.array([np.linalg.norm(gradient) for gradient in gradients], np.float32)
    return names


def test_norms_in_place_of_gradients(changed_copy):
    names = []
    comparisons, absent = parity.replay(changed_copy(lambda arrays: names.extend(reduced(arrays))))
    assert failures(comparisons) == {}
    assert "train/grad" not in absent
    assert len(of_part(comparisons, "train/grad/")) == len(names) > 50
    assert of_part(comparisons, "train/after_step/")


def test_a_norm_that_is_off_fails(changed_copy):
    def change(arrays):
        names = reduced(arrays)
        arrays["train/grad_norms"][names.index("stem.weight")] *= 1.01
        del arrays["train/learning_rate"]

    with pytest.raises(KeyError):
        parity.replay(changed_copy(change))
