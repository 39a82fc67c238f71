"""How the numbers of a .tflite file are stored and computed, and the inputs that 8-bit ranges are taken from."""

import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from nvae_tf.errors import first_line
from nvae_tf.serving.devices.builtin_operations import rewrite_for_builtins
from nvae_tf.serving.devices.device_inputs import Arrays, single_rows
from nvae_tf.serving.devices.device_signatures import DeviceSignatures
from nvae_tf.serving.devices.native_messages import native_messages_kept_back
from nvae_tf.serving.devices.tflite_metadata import foreign_operations

# Most of what the converter says in an error is the whole graph.
_REASON_LENGTH = 500


def write_for_devices(signatures: DeviceSignatures, name: str, folder: pathlib.Path) -> None:
    """Writes the signature called `name` as a SavedModel that TFLite can convert to builtin operations.

    Args:
      signatures: of the model.
      name: one of `DEVICE_SIGNATURES`; it stays the signature's name, as do those of inputs and outputs.
      folder: of the SavedModel; must not exist yet.
    """
    signatures.archive(name).write_out(str(folder), verbose=False)
    rewrite_for_builtins(folder)


def convert(folder: pathlib.Path, name: str, quantize: str, representative: Arrays | None = None) -> bytes:
    """A signature as a .tflite model of builtin operations alone.

    Args:
      folder: what `write_for_devices` has written.
      name: of the signature.
      quantize: one of `MODES`.
      representative: for int8, inputs of the signature by name, each `[count, ...]`.

    Raises:
      ValueError: the converter can't do it with builtins.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[name])
    _choose_numbers(converter, name, quantize, representative)
    try:
        with native_messages_kept_back(), warnings.catch_warnings():
            # The converter itself takes the ranges of int8 with the old interpreter.
            warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
            content = converter.convert()
    # The converter has errors of its own, and where it takes the ranges of int8 it raises plain RuntimeErrors.
    except Exception as error:
        reason = first_line(error)[:_REASON_LENGTH]
        raise ValueError(f"--signature={name} --quantize={quantize}: TFLite can't convert it: {reason}") from error
    foreign = foreign_operations(content)
    if foreign:
        raise ValueError(f"--signature={name} --quantize={quantize}: needs operations that are no builtins: {foreign}")
    return content


def _choose_numbers(
    converter: tf.lite.TFLiteConverter, name: str, quantize: str, representative: Arrays | None
) -> None:
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantize == "none":
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        # Inputs and outputs stay float32: that is the converter's default.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: _examples(name, representative)


def _examples(name: str, inputs: Arrays) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for row in single_rows(inputs):
        yield name, row
