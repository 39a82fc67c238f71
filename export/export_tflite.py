"""Exports one signature of a run's model as a .tflite file, for devices without TensorFlow.

    nvae-export-tflite --workdir=runs/digits --output=decode.tflite --signature=decode --quantize=float16

It is run with ai-edge-litert and compared with the model before it appears; the measurements are printed and
written to OUTPUT.json. export/decode_on_device.py draws images with it, without TensorFlow.

Signatures (float32; one image at a time, the batch of 1 is the first axis of everything):

    decode       latent             -> image
    encode       image, noise       -> latent
    sample       noise, temperature -> image
    reconstruct  image, noise       -> image

Images are in [0, 1]. Noise is standard-normal, as long as a latent; for encode, zeros give the posterior's
means. The file's metadata, which nvae_tf.serving.tflite_conversion.read_metadata reads, have the latents' layout.

All of it is TFLite's builtin operations. A quantized model whose images have less than --smallest_psnr against the
model's (for encode: those that the float32 model decodes from its latents) is refused.

Exit code: 0 done, 2 a mistake in the command or a model that differs; then nothing is written.
"""

import math
import pathlib

from absl import flags

from nvae_tf import command_line
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.progress import Report, StatusLine
from nvae_tf.serving.outputs import DEVICE_SIGNATURES, MODES, SMALLEST_PSNR, check_output_is_free, report_file

WORKDIR = flags.DEFINE_string("workdir", None, command_line.RUN_HELP, required=True)
OUTPUT = flags.DEFINE_string("output", None, "The .tflite file; must not exist yet.", required=True)
SIGNATURE = flags.DEFINE_enum("signature", None, DEVICE_SIGNATURES, "What the device computes.", required=True)
NUMBERS = "; ".join(f"{mode}: {numbers}" for mode, numbers in MODES.items())
QUANTIZE = flags.DEFINE_enum("quantize", "none", list(MODES), f"How numbers are stored: {NUMBERS}.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
PSNR = flags.DEFINE_float("smallest_psnr", SMALLEST_PSNR, "Decibels that a quantized model's images must reach.")
DATA_PATH = flags.DEFINE_string("data_path", None, command_line.DATA_PATH_HELP)


def main() -> None:
    """Exports."""
    output = pathlib.Path(OUTPUT.value)
    check_output_is_free(output)
    if not 0.0 <= PSNR.value < math.inf:
        raise ValueError(f"--smallest_psnr={PSNR.value}: must be a number of decibels from 0")
    workdir = command_line.run_folder(WORKDIR.value)
    start_tensorflow_quietly()
    from nvae_tf.serving.saved_model import source_of
    from nvae_tf.serving.tflite import export_tflite, run_images
    from nvae_tf.training.loading import load_run

    run = load_run(workdir, CHECKPOINT.value)
    status = StatusLine()
    status.keep(f"Exporting {SIGNATURE.value} of {WORKDIR.value}, step {run.step:,}, and comparing it ...")
    images, report = run_images(run.config, DATA_PATH.value), Report(status.show, status.keep)
    measured = export_tflite(
        run.model, output, SIGNATURE.value, QUANTIZE.value, images, source_of(run), PSNR.value, report
    )
    status.keep(measured.text())
    status.keep(f"Exported to {output}; the measurements are in {report_file(output)}")


def run() -> None:
    """The command `nvae-export-tflite`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
