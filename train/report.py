"""One page about a run, to show and to compare: settings, curves, latent groups, images, evaluation.

    python -m train.report --workdir=runs/digits
    python -m train.report --workdir=runs/cifar10 --checkpoint=best --output=cifar10.html --overwrite

The page is a single HTML file that needs neither network nor scripts. It has the curves of metrics.csv, the KL and the
active units of every latent group over time, samples at four temperatures, reconstructions, interpolations, samples
that share their upper groups, and the metrics of train.evaluate. What is missing or can't be read is reported in its
place. It also works while the run is being trained; on a CPU the images of large models take minutes.

Exit code: 0 done, 2 a mistake in the command.
"""

import os

from absl import flags

from nvae_tf import command_line
from nvae_tf.command_line import output_place
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS, LARGEST_SEED
from nvae_tf.errors import require, start_tensorflow_quietly
from nvae_tf.files import atomic_write

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of train.main.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "HTML file to write; report.html in the run folder if not given.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace what is at --output already.")
SEED = flags.DEFINE_integer("seed", 1, "Of the images and the binarization.", lower_bound=0, upper_bound=LARGEST_SEED)
DATA_PATH = flags.DEFINE_string("data_path", None, command_line.DATA_PATH_HELP)


def main() -> None:
    """Writes the page."""
    output = OUTPUT.value if OUTPUT.value is not None else os.path.join(WORKDIR.value, "report.html")
    place = output_place(output, (".html", ".htm"), OVERWRITE.value)
    command_line.check_run_folder(WORKDIR.value)
    for module in ("jinja2", "matplotlib"):
        require(module, "reports")
    start_tensorflow_quietly()
    from nvae_tf.progress import StatusLine
    from nvae_tf.reports.page import report_of_run

    status = StatusLine()
    page, missing = report_of_run(WORKDIR.value, CHECKPOINT.value, SEED.value, DATA_PATH.value, status)
    place.path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(place.path, page)
    for line in missing:
        status.keep(f"not on the page: {line}")
    status.keep(f"written to {place.path}")


def run() -> None:
    """The command `nvae-report`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
