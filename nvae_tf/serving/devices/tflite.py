"""Writes one signature of a model as a .tflite file for devices, after it has been run as a device runs it."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from nvae_tf.config import config_to_dict
from nvae_tf.files import atomic_file
from nvae_tf.layers import FoldedPass, folded_weights
from nvae_tf.models import NVAE
from nvae_tf.serving.devices.device_inputs import Arrays, device_inputs, takes_images
from nvae_tf.serving.devices.device_signatures import DeviceSignatures
from nvae_tf.serving.devices.run_pictures import Pictures
from nvae_tf.serving.devices.tflite_choices import MODES, SMALLEST_PSNR, check_output_is_free, report_file
from nvae_tf.serving.devices.tflite_comparison import Comparison, compare
from nvae_tf.serving.devices.tflite_metadata import with_metadata
from nvae_tf.serving.devices.tflite_quantization import convert, write_for_devices
from nvae_tf.serving.latent_layout import latent_layout

# For the ranges of int8. On the demo 16 to 128 gave pictures within 0.5 dB of each other, 512 gave 0.5 to 1.5 dB less:
# rare values widen the ranges.
REPRESENTATIVE_INPUTS = 128
TEST_INPUTS = 64
# Largest difference that rounding may cause in float32, relative to the largest number of the output.
TOLERANCE = 1e-4
_REPRESENTATIVE_SEED, _TEST_SEED = 1, 2
_BETTER = {"int8": "dynamic", "dynamic": "float16", "float16": "none"}


def export_tflite(
    model: NVAE,
    output: str | os.PathLike,
    signature: str,
    quantize: str,
    pictures: Pictures,
    source: Mapping[str, Any] | None = None,
    smallest_psnr: float = SMALLEST_PSNR,
) -> Comparison:
    """Writes `output`, a .tflite file of builtin operations, and beside it what was measured, `output`.json.

    Weight normalization and batch norm are folded into the kernels; it is compared with the model as it is trained.
    In the file are, beside the graph, the model's settings, the layout of a flat latent, where the weights come from
    and how they are stored: see `nvae_tf.serving.devices.tflite_metadata.read_metadata`.

    Args:
      model: the model, with its weights.
      output: the file; its folder is made if it is missing.
      signature: one of `DEVICE_SIGNATURES`.
      quantize: one of `MODES`.
      pictures: gives images of the data; asked for those of "train" for the ranges of int8, of "test" for the
        comparison, where the signature has to do with images.
      source: what to note of where the weights come from.
      smallest_psnr: in decibels, what the pictures of a quantized model must reach against the model's.

    Raises:
      ValueError: a file exists, TFLite can't convert the model, or its numbers differ too much; nothing is written.
    """
    output = pathlib.Path(output)
    check_output_is_free(output)
    exact, exported = DeviceSignatures(model), folded_signatures(model)
    # Ranges of int8 are those of real images' latents too; nothing else of a decoder needs the data.
    with_images = takes_images(signature) or (signature == "decode" and quantize == "int8")

    def inputs(split: str, count: int, seed: int) -> Arrays:
        images = pictures(split, count) if with_images else None
        return device_inputs(exact, signature, count if images is None else len(images), images, seed)

    test = inputs("test", TEST_INPUTS, _TEST_SEED)
    representative = inputs("train", REPRESENTATIVE_INPUTS, _REPRESENTATIVE_SEED) if quantize == "int8" else None
    metadata = _metadata(exact, signature, quantize, representative, source)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary, "saved_model")
        write_for_devices(exported, signature, folder)
        content = with_metadata(convert(folder, signature, quantize, representative), metadata)
    comparison = compare(content, exact, signature, test)
    _check(comparison, signature, quantize, smallest_psnr)
    check_output_is_free(output)  # another export may have been quicker
    report = metadata | {"measured": dataclasses.asdict(comparison), "smallest_psnr_db": smallest_psnr}
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(report_file(output)) as report_partial, atomic_file(output) as partial:
        report_partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        partial.write_bytes(content)
    return comparison


def folded_signatures(model: NVAE) -> DeviceSignatures:
    """The signatures with folded weights, as they are converted."""
    folded = folded_weights(model.stacks)
    # Inline: where a function is called for several layers, each with weights that are constants for the converter, it
    # takes the weights of one for all.
    return DeviceSignatures(model, lambda: FoldedPass(traced_inline=True, folded=folded))


def _metadata(
    signatures: DeviceSignatures,
    name: str,
    quantize: str,
    representative: Arrays | None,
    source: Mapping[str, Any] | None,
) -> dict[str, Any]:
    config = config_to_dict(signatures.model.config)
    examples = 0 if representative is None else len(next(iter(representative.values())))
    return {
        "signature": name,
        # The model's settings alone: those of a run may name a folder of this machine.
        "config": {"model": config},
        "latents": latent_layout(signatures.latent_shapes),
        "quantization": {"mode": quantize, "numbers": MODES[quantize], "representative_inputs": examples},
        "source": dict(source or {}),
        "versions": {"tensorflow": tf.__version__, "ai-edge-litert": importlib.metadata.version("ai-edge-litert")},
    }


def _check(comparison: Comparison, name: str, quantize: str, smallest_psnr: float) -> None:
    if quantize == "none":
        if comparison.relative_largest_error <= TOLERANCE:
            return
        raise ValueError(
            f"--signature={name}: the .tflite model does not give the model's numbers: the largest error is "
            f"{comparison.relative_largest_error:.1e} of the largest value, {TOLERANCE:.0e} is allowed. Nothing was "
            "written"
        )
    if comparison.psnr_db < smallest_psnr:
        raise ValueError(
            f"--quantize={quantize} ruins the pictures of --signature={name}: their PSNR is "
            f"{comparison.psnr_db:.1f} dB ({comparison.worst_psnr_db:.1f} dB of the worst one; largest error "
            f"{comparison.largest_error:.2g}), at least {smallest_psnr:g} dB are asked for. Nothing was written; take "
            f"--quantize={_BETTER[quantize]}, or a lower --smallest_psnr"
        )
