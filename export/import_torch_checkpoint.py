"""Makes a run folder of a published PyTorch checkpoint (.pt).

    python -m export.import_torch_checkpoint --checkpoint=cifar10.pt --output=runs/cifar10
    python -m export.import_torch_checkpoint --checkpoint=ffhq.pt --output=runs/ffhq256 --data_path=images/ffhq
    python -m export.import_torch_checkpoint --checkpoint=mnist.pt --output=runs/mnist --data_source=idx --data_path=idx

The run folder is one that every other command accepts: train.evaluate, train.generate, all exports, and train.main,
which goes on with the training; a new run starts from its weights with train.initialise_from. It has

    config.json      the settings, from the file's own
    config.py        the same for train.main: --config=OUTPUT/config.py --workdir=OUTPUT
    checkpoints/     weights, batch-norm statistics and the optimizer's state, at the file's step
    images.json      with how many images it was trained, where the file's length and the known data set agree
    origin.json      the name and the SHA-256 of the file, and the license of the weights; of a file that
                     export.export_torch_checkpoint wrote, what its run had there
    README.md        the model card

and appears when all of it is written. Optimizer: where the file has Adamax' moments and step, they are taken over, and
training goes on as it would have. Where it has none, or with --without_optimizer, the moments start at zero, but the
run still stands at the file's step: its learning rate and its KL weight are those of the end of training, and not
those of a warm-up, which would undo it. Where the file lacks its steps or epochs, or no number of GPUs explains them,
the command says what it has assumed, and train.steps is the length of the run. The vectors of the spectral norms,
which published files lack, are iterated 40 times at the first step. To train the weights on something else, or from
step 0, start a new run from them (--config.train.initialise_from=OUTPUT).

--report=FILE writes a table (CSV) of every tensor: its name, shape and type in the file, the variable and the place in
it that it fills, or why it is left out; also where a tensor is missing, unknown or misshapen, and nothing is imported.
There may be no FILE yet: after an import that failed or was killed, remove it or name another.

Files are read with torch's safe reader: no object of the file's choice is ever built. Needs PyTorch (`make torch`).
docs/published_weights.md tells more. Exit code: 0 done, 2 a mistake in the command or a file that does not fit; then
nothing is written but the report. With NVAE_TF_TRACEBACK=1 in the environment a mistake is told with its traceback.
"""

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvae_tf.config import check_choice
from nvae_tf.data.sources import SOURCES
from nvae_tf.errors import exit_on_user_error, start_tensorflow_quietly
from nvae_tf.published.early_checks import check_apart, check_file, check_new_file, check_torch
from nvae_tf.published.new_run_folder import check_output_is_free
from nvae_tf.serving.command_mistakes import OneLineParser, check_flag_names, flag_names

if TYPE_CHECKING:
    from nvae_tf.published.import_run import Imported


def main(arguments: Sequence[str]) -> None:
    """Reads the flags and imports."""
    with exit_on_user_error():
        flags = _read_flags(arguments)
        # Before TensorFlow is started: a mistake is told within a moment.
        check_file(flags.checkpoint)
        check_output_is_free(flags.output)
        if flags.report is not None:
            check_new_file("--report", flags.report)
            check_apart(flags.report, flags.output)
        if flags.data_source is not None:
            check_choice("--data_source", flags.data_source, SOURCES)
        check_torch()
        start_tensorflow_quietly()
        from nvae_tf.published.import_run import ImportChoices, import_run

        print(f"Importing {flags.checkpoint} ...", flush=True)
        imported = import_run(
            ImportChoices(
                flags.checkpoint,
                flags.output,
                not flags.without_optimizer,
                flags.data_path,
                flags.data_source,
                flags.license,
                flags.report,
            )
        )
    print(_summary(imported, flags.output))
    # No mistake: images may come after the weights.
    if flags.data_path is not None and not os.path.exists(os.path.expanduser(flags.data_path)):
        print(f"note: there is nothing at --data_path={flags.data_path} yet; the run will look for its images there")


def run() -> None:
    """The command `nvae-import-torch-checkpoint`."""
    main(sys.argv[1:])


def _summary(imported: "Imported", output: pathlib.Path) -> str:
    config, place = imported.config, shlex.quote(str(output))
    optimizer = "with" if imported.has_optimizer else "without"
    lines = [f"Imported to {output}: {config.data.name}, step {imported.step:,}, {optimizer} the optimizer's state."]
    if imported.defaults:
        lines.append(f"Not in the file, so this project's defaults: {', '.join(imported.defaults)}.")
    if imported.assumed is not None:
        lines.append(imported.assumed)
    path = ""
    if SOURCES[config.data.source].needs and config.data.path is None:
        lines.append(f"Its images, {SOURCES[config.data.source].needs}, are needed to evaluate it or to train it on.")
        path = "PATH"
    batch, a_step = config.train.batch_size, imported.images_a_step
    if a_step is not None and a_step != batch:
        lines.append(f"It was trained with {a_step} images a step: {a_step // batch} GPUs with {batch} each.")
    lines.append(f"    python -m train.evaluate --workdir={place}{f' --data_path={path}' if path else ''}")
    data = f" --config.data.path={path}" if path else ""
    lines.append(f"    python -m train.main --config={place}/config.py --workdir={place}{data}")
    return "\n".join(lines)


def _license(text: str) -> str:
    if not text.strip() or len(text.splitlines()) > 1:
        raise argparse.ArgumentTypeError("must be one line, such as cc-by-nc-sa-4.0, or be left out")
    return text.strip()


def _read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="export.import_torch_checkpoint", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=pathlib.Path, required=True, metavar="FILE", help="the published file, .pt")
    add("--output", type=pathlib.Path, required=True, metavar="DIR", help="the run folder; new or empty")
    add("--without_optimizer", action="store_true", help="leave the optimizer's moments out")
    add("--data_path", metavar="PATH", help="where the images lie, for the run's settings (data.path)")
    add("--data_source", metavar="KIND", help="what lies there, if not the set's usual source: idx, folder ...")
    add("--license", type=_license, help="that of the weights, for the model card (default: the file's own, or none)")
    add("--report", type=pathlib.Path, metavar="FILE", help="table of every tensor's source and target, .csv; new")
    check_flag_names(arguments, flag_names(parser))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run()
