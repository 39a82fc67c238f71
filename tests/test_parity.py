import numpy as np
import pytest

from nvae_tf.layers import scan as layers_scan
from tests import FIXTURES, parity

SMALLEST = FIXTURES / "normal_decoder_tiny.npz"


def failures(comparisons):
    return {comparison.quantity: comparison.error for comparison in comparisons if not comparison.passed}


@pytest.mark.parametrize(
    ("name", "missing", "scan"),
    [
        pytest.param("mnist_tiny", [], False, marks=pytest.mark.slow),
        pytest.param("mnist_tiny", [], True, marks=pytest.mark.slow),
        ("cifar10_tiny", [], False),
        pytest.param("cifar10_tiny", [], True, marks=pytest.mark.slow),
        pytest.param("celeba64_tiny", [], False, marks=pytest.mark.slow),
        pytest.param("celeba64_tiny", [], True, marks=pytest.mark.slow),
        pytest.param("normal_decoder_tiny", ["eval/mean", "sample/mean"], False, marks=pytest.mark.slow),
    ],
)
def test_a_recorded_file(name, missing, scan, monkeypatch):
    loop, loops = layers_scan._loop, []
    monkeypatch.setattr(layers_scan, "_loop", lambda *rest, **how: loops.append(rest) or loop(*rest, **how))
    comparisons, absent = parity.replay(str(FIXTURES / f"{name}.npz"), scan)
    assert failures(comparisons) == {}
    # Forward and backward.
    assert len(loops) >= 2 if scan else not loops
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


def without_training(arrays):
    for key in list(arrays):
        if key.startswith("train/"):
            del arrays[key]


def norms_in_place_of_gradients(arrays):
    names = [key[len("train/grad/") :] for key in arrays if key.startswith("train/grad/")]
    gradients = [arrays.pop(f"train/grad/{name}") for name in names]
    arrays["train/grad_norm_names"] = np.array(names)
    arrays["train/grad_norms"] = np.array([np.linalg.norm(gradient) for gradient in gradients], np.float32)
    return names


@pytest.mark.slow
def test_recorded_numbers_that_are_off_fail_alone_also_where_gradients_are_norms(changed_copy):
    running = "train/after_forward/pre_process.0._ops.0.bn_act.running_var"
    off = ("eval/kl_diag/1", "sample/logits", "train/bn_loss", "train/kl_alpha", running)
    names = []

    def change(arrays):
        names.extend(norms_in_place_of_gradients(arrays))
        arrays["train/grad_norms"][names.index("stem.weight")] *= 1.01
        perturb("eval/logits", np.nan)(arrays)
        for key in off:
            perturb(key)(arrays)

    comparisons, absent = parity.replay(changed_copy(change))
    assert set(failures(comparisons)) == {"eval/logits", "train/grad/stem.weight", *off}
    assert "train/grad" not in absent
    compared = [comparison.quantity for comparison in comparisons]
    assert sum(quantity.startswith("train/grad/") for quantity in compared) == len(names) > 50
    assert any(quantity.startswith("train/after_step/") for quantity in compared)


@pytest.mark.slow
def test_the_command_says_what_failed_and_what_is_absent(changed_copy, capsys):
    def change(arrays):
        without_training(arrays)
        for key in [key for key in arrays if key.startswith("sample/") or key == "eval/log_q"]:
            del arrays[key]
        perturb("eval/recon_loss")(arrays)

    path = changed_copy(change)
    assert parity.main([path]) == 1
    printed = capsys.readouterr().out
    assert [line.split()[-1] for line in printed.splitlines() if line.startswith("FAILED")] == ["eval/recon_loss"]
    for key in ("eval/mean", "eval/log_q", "sample/eps", "train/eps"):
        assert f"absent from the file: {key}\n" in printed
    assert f"{path}: " in printed and "1 past their tolerance" in printed
    assert not parity.Comparison("any", float("nan"), 1.0).passed
    assert parity.main([changed_copy(without_training)]) == 0
    assert parity.main([]) == 2
