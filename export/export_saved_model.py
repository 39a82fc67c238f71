"""Exports the model of a run as a SavedModel, which runs without this package.

    nvae-export --workdir=runs/digits --output=models/digits
    nvae-export --workdir=runs/digits --output=models/digits --version=2 --checkpoint=best

The export is OUTPUT/VERSION, the place where TensorFlow Serving looks for it. It appears there after a process that
can't import this package has run it and got the model's numbers: one to some minutes.

Its signatures are sample, encode, decode, decode_upper_groups, reconstruct, score, compose and outlier_score, each also
as NAME_png with PNG files for REST. assets.extra/ has the settings, signatures.json with their inputs and outputs, the
layout of latents, the step and the scores. --weights=bfloat16 or float16 stores the kernels in half the bytes;
everything is still computed in float32.

export/run_saved_model.py draws images with it on any machine with TensorFlow, nvae-verify checks it there, and
docs/serving.md says how to serve it. Exit code: 0 done, 2 a mistake or an export that differs; nothing is written then.
"""

import pathlib

from absl import flags

from nvae_tf import command_line
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.progress import Report, StatusLine
from nvae_tf.serving.outputs import WEIGHTS, check_version_is_free

WORKDIR = flags.DEFINE_string("workdir", None, command_line.RUN_HELP, required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder of all versions.", required=True)
VERSION = flags.DEFINE_integer("version", 1, "Number of this version.")
WEIGHTS_TYPE = flags.DEFINE_enum("weights", WEIGHTS[0], WEIGHTS, "How kernels are stored.")
ROWS_HELP = "The most rows of a request; if not given, the number that takes 2 GiB, at least 64."
MOST_ROWS = flags.DEFINE_integer("most_rows", None, ROWS_HELP, lower_bound=3)
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)


def main() -> None:
    """Exports."""
    output, weights = pathlib.Path(OUTPUT.value), WEIGHTS_TYPE.value
    check_version_is_free(output, VERSION.value)
    workdir = command_line.run_folder(WORKDIR.value)
    start_tensorflow_quietly()
    from nvae_tf.runs.loading import load_run
    from nvae_tf.serving.saved_model import export_saved_model, origin_of

    run = load_run(workdir, CHECKPOINT.value)
    status = StatusLine()
    status.keep(f"Exporting {WORKDIR.value}, step {run.step:,}, and checking it: one to some minutes ...")
    settings = output, VERSION.value, weights, origin_of(run, workdir), Report(status.show, status.keep)
    exported = export_saved_model(run.model, *settings, MOST_ROWS.value)
    numbers = "the model's numbers"
    if weights != WEIGHTS[0]:
        numbers = f"the numbers of {weights} weights, {exported.largest_difference:.2g} of the largest off at most,"
    status.keep(f"Exported to {exported.folder}; it gives {numbers} without this package.")


def run() -> None:
    """The command `nvae-export`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
