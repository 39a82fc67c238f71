"""Exports one signature of a run's model, or of a SavedModel of nvae-export, as a .tflite file for devices.

    nvae-export-tflite --workdir=runs/digits --output=decode.tflite --signature=decode --quantize=float16
    nvae-export-tflite --saved_model=models/digits/1 --output=decode.tflite --signature=decode

Signatures, all of TFLite's builtin operations, float32, one image at a time (the batch of 1 is the first axis):

    decode       latent             -> image
    encode       image, noise       -> latent
    sample       noise, temperature -> image
    reconstruct  image, noise       -> image

Images are in [0, 1]. Noise is standard-normal, as long as a latent; for encode, zeros give the posterior's means.
Models with classes take a label too, int32, -1 for none. The file's metadata (nvae_tf.serving.tflite.read_metadata)
have the latents' layout.

Before it appears the file is run with ai-edge-litert and compared with the model: OUTPUT.json has the measurements. A
quantized model one of whose test images has less than --smallest_psnr against the model's (for encode: what the model
decodes from its latents) is refused, and so is sample in int8. export/decode_on_device.py draws images with it.

Exit code: 0 done, 2 a mistake in the command or a model that differs; then nothing is written.
"""

import math
import pathlib

from absl import flags

from nvae_tf import command_line
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS, DATA_PATH_HELP, check
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.progress import Report, StatusLine
from nvae_tf.serving import outputs

WORKDIR = flags.DEFINE_string("workdir", None, command_line.RUN_HELP)
SAVED_MODEL = flags.DEFINE_string("saved_model", None, "In place of --workdir: one version, as models/digits/1.")
OUTPUT = flags.DEFINE_string("output", None, "The .tflite file; must not exist yet.", required=True)
SIGNATURE = flags.DEFINE_enum("signature", None, outputs.DEVICE_SIGNATURES, "What the device computes.", required=True)
NUMBERS = "; ".join(f"{mode}: {numbers}" for mode, numbers in outputs.MODES.items())
QUANTIZE = flags.DEFINE_enum("quantize", "none", list(outputs.MODES), f"How numbers are stored: {NUMBERS}.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
PSNR = flags.DEFINE_float("smallest_psnr", outputs.SMALLEST_PSNR, "Decibels that quantized images must reach.")
DATA_PATH = flags.DEFINE_string("data_path", None, DATA_PATH_HELP)


def main() -> None:
    """Exports."""
    output, place = pathlib.Path(OUTPUT.value), WORKDIR.value or SAVED_MODEL.value
    check((WORKDIR.value is None) != (SAVED_MODEL.value is None), "give one of --workdir and --saved_model")
    outputs.check_output_is_free(output)
    outputs.check_quantization(SIGNATURE.value, QUANTIZE.value)
    check(0.0 <= PSNR.value < math.inf, f"--smallest_psnr={PSNR.value}: must be a number of decibels from 0")
    if SAVED_MODEL.value:
        outputs.check_is_export(pathlib.Path(place))
        outputs.check_digests(pathlib.Path(place))
    else:
        place = command_line.run_folder(place)
    start_tensorflow_quietly()
    from nvae_tf.runs.loading import load_run
    from nvae_tf.serving.saved_model import load_export, source_of
    from nvae_tf.serving.tflite import export_tflite, run_images

    if SAVED_MODEL.value:
        config, model, folded, source = load_export(place)
    else:
        trained = load_run(place, CHECKPOINT.value)
        config, model, folded, source = trained.config, trained.model, None, source_of(trained)
    status = StatusLine()
    status.keep(f"Exporting {SIGNATURE.value} of {place}, step {source.get('step', 0):,}, and comparing it ...")
    settings = SIGNATURE.value, QUANTIZE.value, run_images(config, DATA_PATH.value), source, PSNR.value
    measured = export_tflite(model, output, *settings, Report(status.show, status.keep), folded)
    status.keep(measured.text())
    status.keep(f"Exported to {output}; the measurements are in {outputs.report_file(output)}")


def run() -> None:
    """The command `nvae-export-tflite`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
