"""Runs an export where this package can't be imported, as a server would, and compares it with the model."""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from export.signatures import SIGNATURES, Signatures

# Largest difference that rounding may cause, relative to the largest number of the tensor.
TOLERANCE = 1e-5

_REPLAY = pathlib.Path(__file__).with_name("replay_signatures.py")
_SEEDS = np.array([1, 2 + 3 * 2**32, 2**40], np.int64)
_TEMPERATURES = np.array([0.5, 0.7, 1.0], np.float32)

Arrays = dict[str, np.ndarray]


def check_same_numbers(folder: pathlib.Path, signatures: Signatures) -> None:
    """Checks that every signature of the SavedModel in `folder` gives the model's numbers.

    The images for it are the model's own samples. Both sides compute on the CPU: what an accelerator rounds
    may differ more than this check allows.

    Raises:
      ValueError: the numbers differ by more than `TOLERANCE` of their tensor's largest, the model's are not
        finite, or the export can't be run.
    """
    inputs, expected = model_numbers(signatures)
    found = clean_process_numbers(folder, inputs)
    differences = {name: _relative_difference(found.get(name), array) for name, array in expected.items()}
    worst = max(differences, key=differences.get)
    if differences[worst] > TOLERANCE:
        raise ValueError(
            f"the export does not give the model's numbers: {worst} is off by {differences[worst]:.1e} of "
            f"its largest value, {TOLERANCE:.0e} is allowed. It was not published"
        )


def model_numbers(signatures: Signatures) -> tuple[Arrays, Arrays]:
    """Inputs for all signatures, as `signature/input`, and the model's results, as `signature/output`.

    Raises:
      ValueError: a number that the model gives is not finite.
    """
    inputs, outputs = {}, {}
    values = {"seed": _SEEDS, "temperature": _TEMPERATURES}
    with tf.device("/CPU:0"):
        for signature in SIGNATURES:
            arguments = {spec.name: values[spec.name] for spec in signatures.input_specs(signature)}
            tensors = getattr(signatures, signature)(*map(tf.constant, arguments.values()))
            results = {name: tensor.numpy() for name, tensor in tensors.items()}
            broken = [name for name, array in results.items() if not np.isfinite(array).all()]
            if broken:
                raise ValueError(
                    f"the model's {broken[0]} (signature {signature}) is not finite: its weights have "
                    "diverged; export an earlier checkpoint"
                )
            inputs |= {f"{signature}/{name}": array for name, array in arguments.items()}
            outputs |= {f"{signature}/{name}": array for name, array in results.items()}
            # What comes first stays: the samples and their latents are inputs of the other signatures.
            values = results | values
    return inputs, outputs


def clean_process_numbers(folder: pathlib.Path, inputs: Arrays) -> Arrays:
    """What the SavedModel in `folder` gives for such inputs in a new process, without this package.

    Raises:
      ValueError: the process failed; the message has the end of what it said.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        given, made = pathlib.Path(elsewhere, "inputs.npz"), pathlib.Path(elsewhere, "outputs.npz")
        np.savez(given, **inputs)
        # -I: neither the working directory nor PYTHONPATH can bring the package in.
        command = [sys.executable, "-I", str(_REPLAY), str(folder.resolve()), str(given), str(made)]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
        process = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, errors="replace"
        )
        if process.returncode:
            raise ValueError(f"the export can't be run in a clean process:\n{process.stderr.strip()[-2000:]}")
        with np.load(made) as outputs:
            return dict(outputs)


def _relative_difference(found: np.ndarray | None, expected: np.ndarray) -> float:
    """The largest difference over the largest expected number; infinite for another shape or NaN."""
    if found is None or found.shape != expected.shape or not np.isfinite(found).all():
        return np.inf
    largest = max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    return float(np.abs(found - expected).max() / largest)
