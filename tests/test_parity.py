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


@pytest.mark.slow
def test_the_command_says_which_numbers_are_off_and_which_are_absent_also_where_gradients_are_norms(tmp_path, capsys):
    running = "train/after_forward/pre_process.0._ops.0.bn_act.running_var"
    off = ["eval/logits", "eval/kl_diag/1", "sample/logits", "train/bn_loss", "train/kl_alpha", running]
    with np.load(SMALLEST) as file:
        arrays = dict(file.items())
    names = [key.removeprefix("train/grad/") for key in arrays if key.startswith("train/grad/")]
    norms = np.array([np.linalg.norm(arrays.pop(f"train/grad/{name}")) for name in names], np.float32)
    norms[names.index("stem.weight")] *= 1.01
    del arrays["eval/log_q"]
    for key in off:
        # The largest number, by one percent.
        arrays[key].flat[np.argmax(np.abs(arrays[key]))] *= np.nan if key == "eval/logits" else 1.01
    path = str(tmp_path / "changed.npz")
    np.savez(path, **arrays, **{"train/grad_norm_names": np.array(names), "train/grad_norms": norms})
    assert parity.main([path]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[-1] for line in lines if line.startswith("FAILED")} == {"train/grad/stem.weight", *off}
    absent = {line.split()[-1] for line in lines if line.startswith("absent")}
    assert absent == {"eval/log_q", "eval/mean", "sample/mean"}
    assert sum("  train/grad/" in line for line in lines) == len(names) > 50
