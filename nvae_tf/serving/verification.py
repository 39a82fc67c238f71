"""Runs an export where this package can't be imported, as a server would, and compares it with recorded numbers.

Inputs and outputs of the model are recorded when the export is made, so that it can be checked wherever it is copied.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from nvae_tf import schemas
from nvae_tf.errors import wrap_read_errors
from nvae_tf.files import beside_package, read_arrays, write_arrays
from nvae_tf.generation.image_grid import pixels_of_files
from nvae_tf.serving.outputs import DEFAULT_SIGNATURE, PNG_SUFFIX, check_is_export
from nvae_tf.serving.signatures import Signatures, graphs_as_traced

# The largest difference that rounding may cause, relative to the largest number of the tensor.
TOLERANCE = 1e-5
RECORD = "assets.extra/verification.npz"

_SCRIPT = beside_package("export") / "run_saved_model.py"
# An installed package can be imported from anywhere; None in its place makes that fail.
_ALONE = """
import importlib, json, runpy, sys
sys.modules.update(dict.fromkeys(("nvae_tf", "export", "train", "configs")))
for module in sys.argv[1:]:
    importlib.import_module(module)
script, function, *arguments = json.loads(sys.stdin.readline())
runpy.run_path(script)[function](*arguments)
"""
# The number of rows of the record's inputs.
ROWS = 3
_SEEDS = np.array([1, 2 + 3 * 2**32, 2**40], np.int64)
_TEMPERATURES = np.array([0.5, 0.7, 1.0], np.float32)

Arrays = dict[str, np.ndarray]
RunAlone = Callable[..., Arrays]  # see `process_alone`


class Record(NamedTuple):
    """Inputs as `signature/input`, and the model's outputs for them as `signature/output`."""

    inputs: Arrays
    outputs: Arrays

    def write(self, folder: pathlib.Path) -> None:
        """Writes the record into an export."""
        sides = self._asdict().items()
        arrays = {f"{side}/{name}": array for side, arrays in sides for name, array in arrays.items()}
        write_arrays(folder / RECORD, arrays)

    @classmethod
    def read(cls, folder: pathlib.Path) -> "Record":
        """Returns the record of an export; FileNotFoundError if there is none, ValueError for a damaged one."""
        check_is_export(folder)
        if not (folder / RECORD).is_file():
            raise FileNotFoundError(f"{folder / RECORD}: missing, so there is nothing to compare the export with")
        with wrap_read_errors(f"{folder / 'saved_model.pb'}: damaged (", "); copy the export anew"):
            saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
            definitions = saved.meta_graphs[0].signature_def
        names = [name for name in definitions if name != DEFAULT_SIGNATURE and not name.startswith("__")]
        outputs = {f"outputs/{name}/{output}" for name in names for output in definitions[name].outputs}
        with wrap_read_errors(f"{folder / RECORD}: damaged (", "); copy the export anew"):
            arrays = read_arrays(folder / RECORD, schemas.RECORD)
            if missing := sorted(outputs - arrays.keys()):
                raise ValueError(f"lacks {', '.join(missing[:3])}, which the export gives")
        sides: dict[str, Arrays] = {side: {} for side in cls._fields}
        for key, array in arrays.items():
            side, name = key.split("/", 1)
            sides[side][name] = array
        return cls(**sides)


def recorded(signatures: Signatures, inputs: Arrays | None = None) -> Record:
    """Returns the record of a model, which runs on the CPU; ValueError for an output that is not finite.

    Without the inputs of another record the images are the model's own samples.
    """
    config, groups = signatures.model.config, len(signatures.latent_shapes)
    values = {"seed": _SEEDS, "temperature": _TEMPERATURES, "num_groups": np.int32([1, 0, 1])}
    values |= {
        "keep": np.arange(ROWS * groups, dtype=np.int32).reshape(ROWS, groups) % 2,
        "label": np.arange(ROWS, dtype=np.int32) % (config.num_classes + 1) - 1,
        # Only a row with a class, and without the reweighted prior, can be guided.
        "guidance": np.float32([1.0, 1.5, 1.0]),
        "proposals": np.int32([1, 1, 2]),
        "compose/temperature": np.linspace(0.5, 1.0, ROWS * groups, dtype=np.float32).reshape(ROWS, groups),
    }
    used, outputs = {}, {}
    with tf.device("/CPU:0"), graphs_as_traced(), signatures.each_computed_once():
        for signature in signatures.names:
            names = [spec.name for spec in signatures.input_specs(signature)]
            base = signature.removesuffix(PNG_SUFFIX)
            given = inputs or {f"{signature}/{name}": values.get(f"{base}/{name}", values.get(name)) for name in names}
            arguments = {name: given[f"{signature}/{name}"] for name in names}
            try:
                tensors = signatures.function(signature)(*map(tf.constant, arguments.values()))
            except tf.errors.InvalidArgumentError as error:
                # The inputs are right, so the model's output is refused.
                raise ValueError(diverged(signature)) from error
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            if not arrays["valid"].all():
                raise ValueError(diverged(signature))
            # Bytes of any length, as an array that needs no pickle; PNG files don't end in zeros.
            results = {name: array.astype("S") if array.dtype == object else array for name, array in arrays.items()}
            used |= {f"{signature}/{name}": array for name, array in arguments.items()}
            outputs |= {f"{signature}/{name}": array for name, array in results.items()}
            if signature == "sample":
                # On the levels of the model's data, as in the files of `sample_png`.
                levels = 2**config.num_bits - 1
                results["image"] = np.rint(results["image"] * levels).astype(np.float32) / np.float32(levels)
            # The first results stay: the samples and their latents are inputs of the other signatures.
            values = results | values
    return Record(used, outputs)


def diverged(signature: str) -> str:
    """Returns the message about a model whose output is not finite."""
    return f"the model's signature {signature} gives numbers that are not finite; export an earlier checkpoint"


@contextlib.contextmanager
def process_alone(*modules: str) -> Iterator[RunAlone]:
    """Starts a process on the CPU where this package can't be imported, and gives `run` for one function of a script.

    `run(script, function, before, inputs, *after)`, called once, returns the arrays that `function(*before, INPUTS.npz,
    OUTPUTS.npz, *after)` writes; ValueError, with the last line of its errors, where it fails. Start it early: the
    process imports `modules` while the caller works.
    """
    # -I: neither the working directory nor PYTHONPATH can bring the package in.
    command = [sys.executable, "-I", "-c", _ALONE, *modules]
    options = {"text": True, "errors": "replace", "env": os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}}
    options |= dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with tempfile.TemporaryDirectory() as place, subprocess.Popen(command, cwd=place, **options) as process:

        def run(script: pathlib.Path, function: str, before: Sequence[Any], inputs: Arrays, *after: Any) -> Arrays:
            given, made = pathlib.Path(place, "inputs.npz"), pathlib.Path(place, "outputs.npz")
            np.savez(given, **inputs)
            _, errors = process.communicate(json.dumps([*map(str, [script, function, *before, given, made, *after])]))
            if process.returncode:
                # The last line of a traceback has the reason.
                reason = (errors.strip().splitlines() or ["no message"])[-1]
                raise ValueError(f"exit code {process.returncode}: {reason}")
            with np.load(made) as outputs:
                return dict(outputs)

        try:
            yield run
        finally:
            process.kill()


def verified(folder: pathlib.Path, run: RunAlone, record: Record | None = None) -> dict[str, float]:
    """Runs every signature of an export by `run` of `process_alone`, and compares the numbers with a record.

    Returns the largest difference of every output, relative to its largest number; 8-bit images may be one level apart.
    ValueError where a number differs by more than `TOLERANCE`, or the export can't be run.
    """
    record = record or Record.read(folder)
    with wrap_read_errors("the export can't be run in a clean process (", ")"):
        outputs = run(_SCRIPT, "replay", [folder.resolve()], record.inputs)
    differences = all_differences(outputs, record)
    worst = max(differences, key=differences.get)
    if not differences[worst] <= TOLERANCE:
        amount = f"{differences[worst]:.1e} of its largest value, {TOLERANCE:.0e} is allowed"
        raise ValueError(f"the export does not give the model's numbers: {worst} is off by {amount}")
    return differences


def all_differences(outputs: Arrays, record: Record) -> dict[str, float]:
    """Returns the `difference` of every output of a record but p-values: they are ranks, which rounding may move."""
    names = [name for name in record.outputs if not name.endswith("p_value")]
    return {name: difference(outputs.get(name), record.outputs[name]) for name in names}


def difference(actual: np.ndarray | None, expected: np.ndarray) -> float:
    """Returns the largest difference over the largest expected number; infinite for another shape or NaN.

    For images of 8 bits or in PNG files it is 0 where no value is more than one level off: rounding may do that.
    """
    if expected.dtype.kind == "S":
        actual = None if actual is None else pixels_of_files(actual)
        expected = pixels_of_files(expected)
    if actual is None or actual.shape != expected.shape or not np.isfinite([actual, expected]).all():
        return np.inf
    apart = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max()
    if expected.dtype == np.uint8:
        return 0.0 if apart <= 1.0 else float(apart / 255.0)
    return float(apart / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
