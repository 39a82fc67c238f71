"""Exports the model of a run as a SavedModel, which runs without this package.

    python -m export.export_saved_model --workdir=runs/digits --output=models/digits
    python -m export.export_saved_model --workdir=runs/digits --output=models/digits --version=2 --checkpoint=best

The export is OUTPUT/VERSION, the place where TensorFlow Serving looks for it. It appears there after it has
been run in a process that can't import this package and has given the model's numbers: about a minute.

Signatures (the batch is the first axis of everything; a row's result depends on its own seed alone):

    sample       seed, temperature -> image
    encode       image, seed       -> latent
    decode       latent            -> image
    reconstruct  image, seed       -> image
    score        image, seed       -> nats, bits_per_dim, kl_per_group

Images are float32 in [0, 1], seeds int64. To draw pictures with it, on any machine with TensorFlow:

    python export/run_saved_model.py --saved_model=models/digits/1 --output=samples.png --temperature=0.7

Exit code: 0 done, 2 a mistake in the command or an export that differs; then nothing is written. With
NVAE_TF_TRACEBACK=1 in the environment a mistake is told with its traceback.
"""

import argparse
import difflib
import pathlib
import sys
from collections.abc import Sequence

from export.version_folder import check_version_is_free
from nvae_tf.checkpoint_choice import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.command_errors import exit_on_user_error
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly

_FLAGS = ("--workdir", "--output", "--version", "--checkpoint", "--help")


def main(arguments: Sequence[str]) -> None:
    """Reads the flags and exports."""
    with exit_on_user_error():
        flags = _read_flags(arguments)
        # Before TensorFlow is started: a mistake is told within a moment.
        check_version_is_free(flags.output, flags.version)
        start_tensorflow_quietly()
        from export.saved_model import export_saved_model
        from nvae_tf.checkpoints import load_run

        run = load_run(flags.workdir, flags.checkpoint)
        print(f"Exporting {flags.workdir}, step {run.step:,}, and checking it, about a minute ...", flush=True)
        source = {"checkpoint": flags.checkpoint, "step": run.step}
        folder = export_saved_model(run.model, flags.output, flags.version, source)
    print(f"Exported to {folder}; it gives the model's numbers without this package.")


def run() -> None:
    """The command `nvae-export`."""
    main(sys.argv[1:])


def _read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, metavar="DIR", help="run folder of train.main")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="folder of all versions")
    parser.add_argument("--version", type=int, default=1, metavar="N", help="number of this version (default: 1)")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default=CHECKPOINTS[0], help=CHECKPOINT_HELP)
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in _FLAGS:
            nearest = difflib.get_close_matches(name, _FLAGS, n=1, cutoff=0.0)[0]
            raise ValueError(f"{name}: no such flag; did you mean {nearest}?")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run()
