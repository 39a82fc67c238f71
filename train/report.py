"""One page about a run, to show: score, curves, images, use of the latents. Of several runs, a page that compares them.

    nvae-report runs/digits
    nvae-report --workdir=runs/cifar10 --checkpoint=best --output=cifar10.html --overwrite
    nvae-report runs/a runs/b runs/c --output=comparison.html

The page is a single HTML file that needs neither network nor scripts: send it, put it on a server, print it. It starts
with a card of what the run is. Then follow the curves of every logged step, samples at four temperatures and during
training, reconstructions, interpolations, the training images nearest to samples, samples that share their upper
groups, the use of the latents, and the metrics of nvae-evaluate, where it has been run. It also works while the run is
being trained. What is missing or can't be read is reported in its place.

Images come from the latest checkpoint of the run folder, or the best; on a CPU those of large models take minutes. A
comparison needs no checkpoint: it has scores, curves over each other, and the settings that differ.

Exit code: 0 done, 2 a mistake in the command.
"""

import os
import sys

from absl import flags

from nvae_tf import command_line
from nvae_tf.command_line import output_place
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS, DATA_PATH_HELP, LARGEST_SEED, check
from nvae_tf.errors import require, start_tensorflow_quietly
from nvae_tf.files import atomic_write

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of nvae-train; it may stand without the flag.")
OUTPUT = flags.DEFINE_string("output", None, "HTML file to write; report.html in the run folder, or comparison.html.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace what is at --output already.")
SEED = flags.DEFINE_integer("seed", 1, "Of the images and the binarization.", lower_bound=0, upper_bound=LARGEST_SEED)
DATA_PATH = flags.DEFINE_string("data_path", None, DATA_PATH_HELP)


# Of the command line, without a flag.
_RUNS: list[str] = []


def main() -> None:
    """Writes the page."""
    runs = _RUNS or ([WORKDIR.value] if WORKDIR.value else [])
    check(bool(runs), "give a run folder, as runs/digits, or several to compare them")
    check(not (_RUNS and WORKDIR.value), f"--workdir={WORKDIR.value}: give all run folders without the flag")
    report = os.path.join(runs[0], "report.html") if len(runs) == 1 else "comparison.html"
    place = output_place(report if OUTPUT.value is None else OUTPUT.value, (".html", ".htm"), OVERWRITE.value)
    for workdir in runs:
        command_line.check_run_folder(workdir)
    require("matplotlib", "reports")
    start_tensorflow_quietly()
    from nvae_tf.progress import StatusLine
    from nvae_tf.reports.page import compare_runs, report_of_run

    status, missing = StatusLine(), []
    if len(runs) == 1:
        page, missing = report_of_run(runs[0], CHECKPOINT.value, SEED.value, DATA_PATH.value, status)
    else:
        page = compare_runs(runs)
    place.path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(place.path, page)
    for line in missing:
        status.keep(f"not on the page: {line}")
    status.keep(f"written to {place.path}")


def run() -> None:
    """The command `nvae-report`."""
    while len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        _RUNS.append(sys.argv.pop(1))
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
