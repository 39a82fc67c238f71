"""Runs an export where this package can't be imported, as a server would, and compares it with recorded numbers.

Inputs and outputs of the model are recorded when the export is made, so that it can be checked wherever it is copied.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf import schemas
from nvae_tf.errors import wrap_read_errors
from nvae_tf.files import beside_package
from nvae_tf.generation.image_grid import pixels_of, pixels_of_files, png_files
from nvae_tf.serving.outputs import PNG_SUFFIX
from nvae_tf.serving.signatures import Signatures, graphs_as_traced

# The largest difference that rounding may cause, relative to the largest number of the tensor.
TOLERANCE = 1e-5
RECORD = "assets.extra/verification.npz"
DIVERGED = "the model's signature {} gives numbers that are not finite; export an earlier checkpoint"
ROWS = 3  # the number of rows of the record's inputs, with which an export is tried
# An installed package can be imported from anywhere; None in its place makes that fail.
_ALONE = """
import runpy, sys
script, refused, *arguments = sys.argv[1:]
sys.modules.update(dict.fromkeys(refused.split(",")))
runpy.run_path(script)["replay"](*arguments)
"""
_PACKAGES = "nvae_tf,export,train,configs"

Arrays = dict[str, np.ndarray]


def read_record(folder: pathlib.Path) -> Arrays:
    """Returns the record of an export, see `recorded`; ValueError if it is missing or damaged."""
    with wrap_read_errors(f"{folder / RECORD}: missing or damaged (", "); copy the export anew"):
        return schemas.read_arrays(folder / RECORD, schemas.RECORD)


def side_of_record(record: Arrays, side: str) -> Arrays:
    """Returns the "inputs" of a record as `signature/input`, or the "outputs" as `signature/output`."""
    return {key.removeprefix(f"{side}/"): array for key, array in record.items() if key.startswith(f"{side}/")}


def recorded(signatures: Signatures, inputs: Arrays | None = None) -> Arrays:
    """Returns the record of a model, which runs on the CPU: `inputs/signature/input` and `outputs/signature/output`.

    Without the inputs of another record the images are the model's own samples. ValueError if an output is not finite.
    """
    values, runs, levels = _first_inputs(signatures), {}, 2**signatures.model.config.num_bits - 1
    with tf.device("/CPU:0"), graphs_as_traced():
        for signature in [name for name in signatures.names if not name.endswith(PNG_SUFFIX)]:
            names = [spec.name for spec in signatures.input_specs(signature)]
            given = {name: (inputs or values).get(f"{signature}/{name}", values.get(name)) for name in names}
            try:
                tensors = signatures.function(signature)(*map(tf.constant, given.values()))
            except tf.errors.InvalidArgumentError as error:
                # The inputs are right, so the output is refused.
                raise ValueError(DIVERGED.format(signature)) from error
            results = {name: tensor.numpy() for name, tensor in tensors.items()}
            if not results["valid"].all():
                raise ValueError(DIVERGED.format(signature))
            runs[signature] = given, results
            if signature == "sample":
                # The images that other signatures take are on the levels of the model's data.
                image = np.rint(results["image"] * levels).astype(np.float32) / np.float32(levels)
                results = results | {"image": image}
            # The first results stay: the samples and their latents are inputs of the other signatures.
            values = results | values
    record = {}
    for signature in signatures.names:
        for side, arrays in zip(("inputs", "outputs"), runs[signature.removesuffix(PNG_SUFFIX)], strict=True):
            if signature.endswith(PNG_SUFFIX) and "image" in arrays:
                # As an array that needs no pickle; PNG files don't end in zeros, which it would lose.
                files = png_files(pixels_of(arrays["image"])).astype("S")
                others = {name: array for name, array in arrays.items() if name not in ("image", "image_uint8")}
                arrays = {"image_bytes": files} | others
            record |= {f"{side}/{signature}/{name}": array for name, array in arrays.items()}
    return record


def _first_inputs(signatures: Signatures) -> Arrays:
    """Returns inputs by name, or by `signature/name` where a signature has its own form; images and latents follow."""
    groups = len(signatures.latent_shapes)
    return {
        "seed": np.int64([1, 2 + 3 * 2**32, 2**40]),
        "temperature": np.float32([0.5, 0.7, 1.0]),
        "num_groups": np.int32([1, 0, 1]),
        "keep": np.arange(ROWS * groups, dtype=np.int32).reshape(ROWS, groups) % 2,
        "label": np.arange(ROWS, dtype=np.int32) % (signatures.model.config.num_classes + 1) - 1,
        # Only a row with a class, without the reweighted prior, can be guided.
        "guidance": np.float32([1.0, 1.5, 1.0]),
        "proposals": np.int32([1, 1, 2]),
        "compose/temperature": np.linspace(0.5, 1.0, ROWS * groups, dtype=np.float32).reshape(ROWS, groups),
    }


def run_alone(script: str, inputs: Arrays, *arguments: Any, refused: str = f"{_PACKAGES},tensorflow") -> Arrays:
    """Returns the arrays that `replay(INPUTS.npz, OUTPUTS.npz, *arguments)` of a script in `export` writes.

    The script runs on the CPU in a process that can't import the `refused` packages, this one among them. ValueError
    with the last line of its errors.
    """
    with tempfile.TemporaryDirectory() as place:
        given, made = pathlib.Path(place, "inputs.npz"), pathlib.Path(place, "outputs.npz")
        np.savez(given, **inputs)
        # -I: neither the working directory nor PYTHONPATH can bring the package in.
        command = [sys.executable, "-I", "-c", _ALONE, beside_package("export") / script, refused, given, made]
        how = {"capture_output": True, "text": True, "errors": "replace", "cwd": place}
        child = subprocess.run([*command, *map(str, arguments)], env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}, **how)
        if child.returncode:
            # A traceback's last line is the reason.
            reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"exit code {child.returncode}: {reason}")
        with np.load(made) as outputs:
            return dict(outputs)


def verified(folder: pathlib.Path, record: Arrays | None = None) -> dict[str, float]:
    """Runs every signature of an export by `run_alone`; returns the `difference` of every output from a record.

    ValueError where one is more than `TOLERANCE`, or the export can't be run.
    """
    record = record or read_record(folder)
    with wrap_read_errors("the export can't be run in a clean process (", ")"):
        outputs = run_alone("run_saved_model.py", side_of_record(record, "inputs"), folder.resolve(), refused=_PACKAGES)
    differences = all_differences(outputs, side_of_record(record, "outputs"))
    worst = max(differences, key=differences.get)
    if not differences[worst] <= TOLERANCE:
        amount = f"{differences[worst]:.1e} of its largest value, {TOLERANCE:.0e} is allowed"
        raise ValueError(f"the export does not give the model's numbers: {worst} is off by {amount}")
    return differences


def all_differences(actual: Arrays, expected: Arrays) -> dict[str, float]:
    """Returns the `difference` of every output but p-values: they are ranks, which rounding may move."""
    names = [name for name in expected | actual if not name.endswith("p_value")]
    return {name: difference(actual.get(name), expected.get(name)) for name in names}


def difference(actual: np.ndarray | None, expected: np.ndarray | None) -> float:
    """Returns the largest difference over the largest expected number; infinite if missing, of another shape, or NaN.

    For images of 8 bits or in PNG files it is 0 where no value is more than one level off: rounding may do that.
    """
    if actual is None or expected is None:
        return np.inf
    if expected.dtype.kind == "S":
        actual, expected = pixels_of_files(actual), pixels_of_files(expected)
    if actual.shape != expected.shape or not np.isfinite([actual, expected]).all():
        return np.inf
    apart = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max()
    if expected.dtype == np.uint8:
        return 0.0 if apart <= 1.0 else float(apart / 255.0)
    return float(apart / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
