"""Writes one signature of a model as a .tflite file for devices, after the file has been run as a device runs it.

A folder for any static host has such a file and the explorer: the model runs in the browser, by LiteRT.js.
"""

import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig, check, config_to_dict
from nvae_tf.data.pipeline import chosen_images
from nvae_tf.data.sources import load_split, spread_numbers
from nvae_tf.errors import first_line, require, standard_error_into, wrap_read_errors
from nvae_tf.files import atomic_file, atomic_folder, check_new_folder
from nvae_tf.layers.normalization import FoldedWeights
from nvae_tf.models import NVAE
from nvae_tf.serving.device_signatures import DeviceSignatures, device_inputs, file_facts, folded_signatures, in_batches
from nvae_tf.serving.outputs import MODES, SMALLEST_PSNR, check_new_tflite, report_file
from nvae_tf.serving.server_files import PAGE, model_facts, write_explorer
from nvae_tf.serving.verification import DIVERGED, Arrays, run_alone

schema = require("ai_edge_litert.schema_py_generated", "tflite")
flatbuffer_utils = require("ai_edge_litert.tools.flatbuffer_utils", "tflite")

METADATA_NAME = "nvae_tf"
# The number of inputs for the ranges of int8: rare values among more inputs widen the ranges.
REPRESENTATIVE_INPUTS, TEST_INPUTS = 128, 64
# The largest difference that rounding may cause in float32, relative to the largest number of the output.
TOLERANCE = 1e-4
_SMALLEST_SQUARE = 1e-15  # equal images have no PSNR; rounding of float32 is some 140 dB down
# Google's packages on the npm registry (Apache 2.0), of one version.
LITERT = ("@litertjs/core@2.5.3", "@litertjs/wasm-utils@2.5.3")
_PAGE_MODEL = "compose.tflite"


def export_tflite(
    model: NVAE,
    output: pathlib.Path,
    signature: str,
    quantize: str,
    images: Callable[[str, int], np.ndarray],
    source: Mapping[str, Any] | None = None,
    smallest_psnr: float = SMALLEST_PSNR,
    folded: FoldedWeights | None = None,
) -> dict[str, Any]:
    """Writes `output`, a .tflite file of builtin operations, and beside it its measurements; returns them (`compare`).

    Its metadata (`read_metadata`) have the settings, the latents' layout, the origin, and how it is stored. `images`
    gives at most this many `[count, H, W, C]` of "train", for the ranges of int8, or of "test", for the comparison.
    `smallest_psnr`, in decibels, is for every image of a quantized model against the model's. `folded` are the weights
    of `load_export`. Raises ValueError, and writes nothing, where a file exists, TFLite can't convert the model, or its
    numbers differ.
    """
    check_new_tflite(output, signature, quantize)
    exact = DeviceSignatures(model) if folded is None else folded_signatures(model, folded)
    # The ranges of int8 include the latents of real images; a decoder needs the data for nothing else.
    with_images = signature in exact.take_images or (signature == "decode" and quantize == "int8")

    def inputs(split: str, count: int, seed: int) -> Arrays:
        return device_inputs(exact, signature, count, images(split, count) if with_images else None, seed)

    test = inputs("test", TEST_INPUTS, seed=2)
    examples = inputs("train", REPRESENTATIVE_INPUTS, seed=1) if quantize == "int8" else {}
    metadata = file_facts(exact, signature, source, "ai-edge-litert")
    count = len(next(iter(examples.values()), ()))
    metadata["quantization"] = {"mode": quantize, "numbers": MODES[quantize], "representative_inputs": count}
    with tempfile.TemporaryDirectory() as folder:
        folded_signatures(model, folded).write(signature, folder)
        content = with_metadata(convert(folder, signature, quantize, examples), metadata)
    measured = compare(content, exact, signature, test)
    error, worst = measured["relative_largest_error"], measured["worst_psnr_db"]
    wrong = f"--signature={signature} --quantize={quantize}:"
    if quantize == "none" and error > TOLERANCE:
        reason = f"the largest error is {error:.1e} of the largest value, {TOLERANCE:.0e} is allowed"
        raise ValueError(f"{wrong} the .tflite model does not give the model's numbers: {reason}")
    if quantize != "none" and worst < smallest_psnr:
        psnr = f"the worst image has a PSNR of {worst:.1f} dB, at least {smallest_psnr:g} are wanted"
        better = list(MODES)[list(MODES).index(quantize) - 1]
        raise ValueError(f"{wrong} {psnr}; take --quantize={better}, or lower --smallest_psnr")
    report = metadata | {"measured": measured, "smallest_psnr_db": smallest_psnr}
    with atomic_file(report_file(output)) as report_partial, atomic_file(output) as partial:
        check_new_tflite(output, signature, quantize)  # another export may have been quicker
        report_partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        partial.write_bytes(content)
    return measured


def run_images(config: ExperimentConfig | None, data_path: str | None, split: str, count: int) -> np.ndarray:
    """Returns at most `count` images of a part of a run's data, spread evenly; `data_path` is their new place."""
    if config is None:
        raise ValueError("the export was made of a model, not of a run, and names no images; give --workdir")
    spec = config.data_at(data_path)
    source = load_split(spec, split)
    return chosen_images(source, spec, split, spread_numbers(source.count, count))[0]


def compare(content: bytes, signatures: DeviceSignatures, name: str, inputs: Arrays) -> dict[str, Any]:
    """Returns how a signature of a .tflite model, run on inputs `[count, ...]` by name, differs from the float32 model.

    Latency is the median time of an image on one thread of this machine; `relative_largest_error` is over the model's
    largest number. PSNR in decibels has peak 1, the worst is of the image that differs most; for `encode` it compares
    the images that the float32 model decodes from the latents.
    """
    output = "latent" if name == "encode" else "image"
    expected = in_batches(getattr(signatures, name), inputs)
    advice = "). With --quantize=int8 an activation is 0 for all training images: take --quantize=dynamic"
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder, "model.tflite")
        model.write_bytes(content)
        with wrap_read_errors(f"TFLite's interpreter can't run the converted model (signature {name}; ", advice):
            results = run_alone("decode_on_device.py", inputs, model, name, output)
    actual = results["output"]
    check(np.isfinite(expected).all(), DIVERGED.format(name))
    if not np.isfinite(actual).all():
        raise ValueError(f"the .tflite model's {output} (signature {name}) is not finite: try another --quantize")
    largest, images = float(np.abs(actual - expected).max()), [actual, expected]
    if name == "encode":
        label = {key: array for key, array in inputs.items() if key == "label"}
        images = [in_batches(signatures.decode, {"latent": z} | label) for z in images]
    squares = np.square(images[0] - images[1]).mean(axis=(1, 2, 3))
    psnr, worst = (-10.0 * np.log10(np.maximum([squares.mean(), squares.max()], _SMALLEST_SQUARE))).tolist()
    numbers = {"size_bytes": len(content), "latency_ms": 1e3 * float(np.median(results["seconds"]))}
    numbers |= {"largest_error": largest, "relative_largest_error": largest / float(np.abs(expected).max())}
    return numbers | {"test_inputs": len(actual), "psnr_db": psnr, "worst_psnr_db": worst}


def convert(folder: str, name: str, quantize: str, examples: Arrays) -> bytes:
    """Returns a .tflite model, of builtins alone, of what `DeviceSignatures.write` wrote; int8 needs inputs."""
    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[name])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        rows = tf.data.Dataset.from_tensor_slices(examples).batch(1)
        converter.representative_dataset = lambda: ((name, row) for row in rows.as_numpy_iterator())
    try:
        # On a failure the converter writes the whole graph.
        with standard_error_into([]), warnings.catch_warnings():
            # The converter itself takes the ranges of int8 with the old interpreter.
            warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
            return converter.convert()
    except Exception as error:  # the converter's own errors, and plain RuntimeErrors while it takes the ranges of int8
        reason = first_line(error)[:500]  # most of the converter's messages is the whole graph
        raise ValueError(f"--signature={name} --quantize={quantize}: TFLite can't convert it: {reason}") from error


def with_metadata(content: bytes, metadata: dict[str, Any]) -> bytes:
    """Returns a .tflite model with metadata, which JSON can hold."""
    model = flatbuffer_utils.convert_bytearray_to_object(content)
    model.metadata = [*(model.metadata or []), schema.MetadataT(METADATA_NAME, len(model.buffers))]
    model.buffers.append(schema.BufferT(np.frombuffer(json.dumps(metadata).encode(), np.uint8)))
    return flatbuffer_utils.convert_object_to_bytearray(model)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the metadata of an exported .tflite file; raises ValueError for a file of another kind."""
    content = pathlib.Path(path).read_bytes()
    # For a truncated file the flatbuffers package raises errors of many kinds.
    with wrap_read_errors(f"{path}: not a .tflite file of nvae-export-tflite, or damaged (", ")"):
        check(schema.Model.ModelBufferHasIdentifier(content, 0), "no such content")
        model = flatbuffer_utils.convert_bytearray_to_object(content)
        places = [entry.buffer for entry in model.metadata or () if entry.name == METADATA_NAME.encode()]
        check(len(places) > 0, f"no metadata called {METADATA_NAME!r}")
        return json.loads(bytes(model.buffers[places[0]].data))


def write_static_page(
    model: NVAE,
    output: pathlib.Path,
    name: str,
    source: Mapping[str, Any],
    classes: Sequence[str] = (),
    shown: Sequence[int] = (),
    folded: FoldedWeights | None = None,
) -> None:
    """Writes `output`, a new folder with the explorer as `index.html`, a model, and LiteRT.js, which npm gets.

    `name` is the model's on the page, `classes` are the names of its classes (without: numbers), `shown` the channels
    that are shown. Raises ValueError, and writes nothing, where the folder is not new, npm can't get LiteRT.js, or
    `export_tflite` refuses the model.
    """
    facts = model_facts(config_to_dict(model.config), model.plan.latent_shapes(), shown)
    facts |= {"classes": list(classes) or facts["classes"], "file": _PAGE_MODEL, "step": source.get("step", 0)}
    with atomic_folder(output, lambda: check_new_folder(output, f"--page={output}")) as folder:
        write_explorer(folder, {name: facts})
        (folder / PAGE).rename(folder / "index.html")
        _write_litert(folder / "litert")
        export_tflite(model, folder / _PAGE_MODEL, "compose", "none", lambda *_: None, source, folded=folded)


def _write_litert(folder: pathlib.Path) -> None:
    """Writes LiteRT.js as files that a page can import, with its license, Apache 2.0, which is this package's too."""
    npm = shutil.which("npm")  # the whole path, as Windows must have it
    if npm is None:
        raise ValueError("npm is not installed, which gets LiteRT.js for the page: install Node.js")
    with tempfile.TemporaryDirectory() as place:
        # What npm has got once it need not get again; without a network it would retry for more than a minute.
        options = "--ignore-scripts --no-audit --no-fund --loglevel=error --fetch-retries=0 --prefer-offline".split()
        command = [npm, "install", *options, f"--prefix={place}", *LITERT]
        process = subprocess.run(command, capture_output=True, text=True, cwd=place)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or ["no message"])[0]
            raise ValueError(f"npm can't get {LITERT[0]} ({reason}); is the npm registry reachable?")
        packages = pathlib.Path(place, "node_modules", "@litertjs")
        unused = shutil.ignore_patterns("*_threaded_*", "*_jspi_*", "*.ts", "*.map", "*metafile*")
        for part in ("core/dist", "core/wasm", "wasm-utils/dist"):  # without a folder `dist`, which Git may ignore
            shutil.copytree(packages / part, folder / part.removesuffix("/dist"), ignore=unused)
        shutil.copyfile(packages / "core" / "package.json", folder / "package.json")
    script = folder / "core" / "index.js"
    # A page knows no names of packages.
    script.write_bytes(script.read_bytes().replace(b'"@litertjs/wasm-utils"', b'"../wasm-utils/index.js"'))
    # A folder nvae_tf.egg-info, which old builds leave behind, has no license.
    installed = importlib.metadata.distributions(name="nvae_tf")
    license = next(filter(None, (each.read_text("licenses/LICENSE") for each in installed)), "Apache License 2.0\n")
    (folder / "LICENSE").write_text(license, "utf-8")
