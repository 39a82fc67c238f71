"""One page about a run, to show: score, curves, images, use of the latents. Of several runs, a page that compares them.

    nvae-report runs/digits
    nvae-report --workdir=runs/cifar10 --checkpoint=best --output=cifar10.html --overwrite
    nvae-report runs/a runs/b runs/c --output=comparison.html

The page is a single HTML file that needs neither network nor scripts. It starts with a card of what the run is. Then
follow the curves of every logged step, samples at four temperatures and during training, reconstructions,
interpolations, the training images nearest to samples, samples that share their upper groups, the use of the latents,
and the metrics of nvae-evaluate. It also works while the run is being trained. What is missing or can't be read is
reported in its place. A comparison has scores, curves over each other, and the settings that differ.

Exit code: 0 done, 2 a mistake in the command.
"""

import os
from collections.abc import Sequence
from typing import Annotated

from nvae_tf import command_line, config, errors, files, progress


def main(
    workdir: Annotated[os.PathLike | Sequence[str], "Run folders of nvae-train; they may stand without the flag."],
    output: Annotated[str | None, "HTML file to write; report.html in the run folder, or comparison.html."] = None,
    checkpoint: Annotated[str, config.CHECKPOINT_HELP, *config.CHECKPOINTS] = config.CHECKPOINTS[0],
    overwrite: Annotated[bool, "Replace what is at --output already."] = False,
    seed: Annotated[int, "Seed of the images and the binarization.", 0, config.LARGEST_SEED] = 1,
    data_path: Annotated[str | None, config.DATA_PATH_HELP] = None,
) -> None:
    """Writes the page."""
    report = os.path.join(workdir[0], "report.html") if len(workdir) == 1 else "comparison.html"
    place = command_line.output_place(output or report, (".html", ".htm"), overwrite)
    for folder in workdir:
        command_line.check_run_folder(folder, is_written=False)
    errors.require("matplotlib", "reports")
    errors.start_tensorflow_quietly()
    from nvae_tf.reports.page import compare_runs, report_of_run

    status, missing = progress.StatusLine(), []
    if len(workdir) == 1:
        page, missing = report_of_run(workdir[0], checkpoint, seed, data_path, status)
    else:
        page = compare_runs(workdir)
    files.atomic_write(place.path, page)
    for line in missing:
        status.print(f"not on the page: {line}")
    status.print(f"written to {place.path}")


run = command_line.command(main, words="workdir")
