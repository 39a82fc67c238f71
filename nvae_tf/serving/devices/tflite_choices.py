"""What can be chosen for an export to a device; no TensorFlow, so that a mistake is told within a moment."""

import math
import pathlib

# `nvae_tf.serving.devices.device_signatures` says what each computes.
DEVICE_SIGNATURES = ("decode", "encode", "sample", "reconstruct")

MODES = {
    "none": "float32 weights and arithmetic",
    "float16": "float16 weights, float32 arithmetic",
    "dynamic": "int8 weights; activations are made int8 where that is quicker, with ranges of the moment",
    "int8": "int8 weights and activations, with ranges from the run's images; inputs and outputs stay float32",
}

# In decibels, against the model's pictures; below this a quantized model is refused. Of the demo's digits int8 gives 34
# to 41 dB, and the worst single picture, of 28 dB, differs visibly only side by side; of decoders with ever worse
# ranges one of 29 dB still looked right, those of 26 and 22 dB had wrong grays.
SMALLEST_PSNR = 30.0


def report_file(output: pathlib.Path) -> pathlib.Path:
    """Where what was measured is written: beside the model."""
    return output.with_name(f"{output.name}.json")


def check_output_is_free(output: pathlib.Path) -> None:
    """Checks that neither the model nor its report would overwrite a file.

    Raises:
      ValueError: one of them exists, or a file lies where a folder must.
    """
    for file in (output, report_file(output)):
        if file.exists():
            raise ValueError(f"{file}: exists already and is not overwritten; remove it or give another --output")
    inaccessible = next((folder for folder in output.parents if folder.exists() and not folder.is_dir()), None)
    if inaccessible:
        raise ValueError(f"{inaccessible}: a file, so {output} can't be written; give another --output")


def check_smallest_psnr(smallest_psnr: float) -> None:
    """Checks a limit in decibels.

    Raises:
      ValueError: it is no finite number from 0.
    """
    if not 0.0 <= smallest_psnr < math.inf:
        raise ValueError(f"--smallest_psnr={smallest_psnr}: must be a number of decibels from 0")
