"""Exports the model of a run as a SavedModel, which runs without this package.

    python -m export.export_saved_model --workdir=runs/digits --output=models/digits
    python -m export.export_saved_model --workdir=runs/digits --output=models/digits --version=2 --checkpoint=best

The export is OUTPUT/VERSION, the place where TensorFlow Serving looks for it. It appears there after it has
been run in a process that can't import this package and has given the model's numbers: one to some minutes.

Signatures (the batch is the first axis of everything; a row's result depends on its own seed alone):

    sample               seed, temperature -> image, image_uint8
    encode               image, seed       -> latent
    decode               latent            -> image, image_uint8
    decode_upper_groups  latent, num_groups, seed, temperature -> image, image_uint8
    reconstruct          image, seed       -> image, image_uint8
    score                image, seed       -> nats, bits_per_dim, kl_per_group

Images are float32 in [0, 1], seeds int64, num_groups int32. Each is there a second time as NAME_png, with pictures
as the bytes of PNG files (image_bytes), for REST.

Weight normalization and batch norm are folded into the kernels. --weights=bfloat16 or float16 keeps the kernels in half
the bytes; all is computed in float32 even so. assets.extra/ in the export has the settings, the signatures, the layout
of latents, the step and the scores, and the requests with which a server warms up.

To draw pictures with it, on any machine with TensorFlow; to check it where it has been copied to:

    python export/run_saved_model.py --saved_model=models/digits/1 --output=samples.png --temperature=0.7
    python -m export.verify models/digits/1

docs/serving.md tells how it is served. Exit code: 0 done, 2 a mistake in the command or an export that differs; then
nothing is written. With NVAE_TF_TRACEBACK=1 in the environment a mistake is told with its traceback.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.errors import exit_on_user_error, start_tensorflow_quietly
from nvae_tf.serving.command_mistakes import OneLineParser, check_flag_names, flag_names
from nvae_tf.serving.saved_models.choices import WEIGHTS
from nvae_tf.serving.saved_models.version_folder import check_version_is_free

if TYPE_CHECKING:
    from nvae_tf.serving.saved_models.saved_model import Exported


def main(arguments: Sequence[str]) -> None:
    """Reads the flags and exports."""
    with exit_on_user_error():
        flags = _read_flags(arguments)
        # Before TensorFlow is started: a mistake is told within a moment.
        check_version_is_free(flags.output, flags.version)
        start_tensorflow_quietly()
        from nvae_tf.serving.saved_models.run_source import origin_of
        from nvae_tf.serving.saved_models.saved_model import export_saved_model
        from nvae_tf.training.loading import load_run

        run = load_run(flags.workdir, flags.checkpoint)
        print(f"Exporting {flags.workdir}, step {run.step:,}, and checking it: one to some minutes ...", flush=True)
        origin = origin_of(run, flags.workdir)
        exported = export_saved_model(run.model, flags.output, flags.version, flags.weights, origin)
    print(f"Exported to {exported.folder}; it gives {_numbers(flags.weights, exported)} without this package.")


def run() -> None:
    """The command `nvae-export`."""
    main(sys.argv[1:])


def _numbers(weights: str, exported: "Exported") -> str:
    if weights == WEIGHTS[0]:
        return "the model's numbers"
    return f"the numbers of {weights} weights, {exported.largest_difference:.2g} of the largest off at most,"


def _read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="export.export_saved_model", description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, metavar="DIR", help="run folder of train.main")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="folder of all versions")
    parser.add_argument("--version", type=int, default=1, metavar="N", help="number of this version (default: 1)")
    parser.add_argument(
        "--weights", choices=WEIGHTS, default=WEIGHTS[0], help="how kernels are kept (default: float32)"
    )
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default=CHECKPOINTS[0], help=CHECKPOINT_HELP)
    check_flag_names(arguments, flag_names(parser))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run()
