"""Exports one signature of a run's model as a .tflite file, for devices without TensorFlow.

    python -m export.export_tflite --workdir=runs/digits --output=decode.tflite --signature=decode --quantize=float16

It is run with ai-edge-litert and compared with the model before it appears; what was measured is printed and
written to OUTPUT.json. export/decode_on_device.py draws a picture with it, without TensorFlow.

Signatures (float32; one picture at a time, the batch of 1 is the first axis of everything):

    decode       latent             -> image
    encode       image, noise       -> latent
    sample       noise, temperature -> image
    reconstruct  image, noise       -> image

Images are in [0, 1]. Noise is standard-normal, as long as a latent; for encode, zeros give the posterior's
means. The file's metadata, which nvae_tf.serving.devices.tflite_metadata.read_metadata reads, has the latents' layout.

Numbers (--quantize), all of them with TFLite's builtin operations alone:

    none         float32 weights and arithmetic
    float16      float16 weights, float32 arithmetic
    dynamic      int8 weights; activations are made int8 where that is quicker, with ranges of the moment
    int8         int8 weights and activations, with ranges from training images of the run; inputs and outputs
                 stay float32

A quantized model whose pictures have less than --smallest_psnr against the model's (for encode: those that
the float32 model decodes from its latents) is refused.

Exit code: 0 done, 2 a mistake in the command or a model that differs; then nothing is written. With
NVAE_TF_TRACEBACK=1 in the environment a mistake is told with its traceback.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.errors import exit_on_user_error, start_tensorflow_quietly
from nvae_tf.serving.command_mistakes import OneLineParser, check_flag_names, flag_names
from nvae_tf.serving.devices.tflite_choices import (
    DEVICE_SIGNATURES,
    MODES,
    SMALLEST_PSNR,
    check_output_is_free,
    check_smallest_psnr,
    report_file,
)


def main(arguments: Sequence[str]) -> None:
    """Reads the flags and exports."""
    with exit_on_user_error():
        flags = _read_flags(arguments)
        # Before TensorFlow is started: a mistake is told within a moment.
        check_output_is_free(flags.output)
        check_smallest_psnr(flags.smallest_psnr)
        start_tensorflow_quietly()
        from nvae_tf.serving.devices.run_pictures import run_pictures
        from nvae_tf.serving.devices.tflite import export_tflite
        from nvae_tf.serving.saved_models.run_source import source_of
        from nvae_tf.training.loading import load_run

        run = load_run(flags.workdir, flags.checkpoint)
        print(f"Exporting {flags.signature} of {flags.workdir}, step {run.step:,}, and comparing it ...", flush=True)
        measured = export_tflite(
            run.model,
            flags.output,
            flags.signature,
            flags.quantize,
            run_pictures(run.config, flags.data_path),
            source_of(run),
            flags.smallest_psnr,
        )
    print(measured.text())
    print(f"Exported to {flags.output}; what was measured is in {report_file(flags.output)}")


def run() -> None:
    """The command `nvae-export-tflite`."""
    main(sys.argv[1:])


def _read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="export.export_tflite", description=__doc__)
    add = parser.add_argument
    add("--workdir", type=pathlib.Path, required=True, metavar="DIR", help="run folder of train.main")
    add("--output", type=pathlib.Path, required=True, metavar="FILE", help="the .tflite file; must not exist yet")
    add("--signature", choices=DEVICE_SIGNATURES, required=True, help="what the device is to compute")
    add("--quantize", choices=tuple(MODES), default="none", help="how numbers are stored (default: none)")
    add("--checkpoint", choices=CHECKPOINTS, default=CHECKPOINTS[0], help=CHECKPOINT_HELP)
    add(
        "--smallest_psnr",
        type=float,
        default=SMALLEST_PSNR,
        metavar="DB",
        help=f"decibels that a quantized model's pictures must reach (default: {SMALLEST_PSNR:g})",
    )
    add("--data_path", metavar="PATH", help="where the run's data lie now, if they have moved")
    check_flag_names(arguments, flag_names(parser))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run()
