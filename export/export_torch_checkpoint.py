"""Writes a run's checkpoint as a PyTorch file of the published form.

    python -m export.export_torch_checkpoint --workdir=runs/cifar10 --output=cifar10.pt
    python -m export.export_torch_checkpoint --workdir=runs/cifar10 --output=cifar10.pt --checkpoint=best

The file is a dictionary with args, state_dict (names, order, layout and types of the published files), optimizer (as
torch keeps Adamax'), epoch, global_step and arch_instance; scheduler and grad_scalar are empty. Under one more key,
nvae_tf, which other code passes over, it has the run's settings and the state of training that the published form has
no place for, so that export.import_torch_checkpoint makes the same run of it, bit for bit: training goes on from there
as if nothing had been. --without_optimizer leaves all out that only training needs: a quarter of the size.

Where the run keeps running means of its weights (optimizer.ema_momentum), the state_dict has the weights themselves,
which the optimizer's state belongs to, and the means are under nvae_tf. The run's scores are those of the means: with
--running_means they are in the state_dict instead, for whoever evaluates the file with other code; then without the
optimizer's state.

The file tells where the run's images lay on this machine (data.path), and the first file and the license of imported
weights (origin.json), which an import keeps. Settings that the published form can't say are told, and nothing is
written. Needs PyTorch (`make torch`) and room in memory for the file. docs/published_weights.md tells more. Exit code:
0 done, 2 a mistake in the command, a run that can't be exported, or no room for the file. With NVAE_TF_TRACEBACK=1 in
the environment a mistake is told with its traceback.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.errors import exit_on_user_error, start_tensorflow_quietly
from nvae_tf.published.early_checks import check_new_file, check_torch
from nvae_tf.serving.command_mistakes import OneLineParser, check_flag_names, flag_names

if TYPE_CHECKING:
    from nvae_tf.published.export_file import Exported


def main(arguments: Sequence[str]) -> None:
    """Reads the flags and exports."""
    with exit_on_user_error():
        flags = _read_flags(arguments)
        # Before TensorFlow is started: a mistake is told within a moment.
        check_new_file("--output", flags.output)
        check_torch()
        start_tensorflow_quietly()
        from nvae_tf.published.export_file import ExportChoices, export_file

        choices = ExportChoices(
            flags.workdir, flags.output, flags.checkpoint, not flags.without_optimizer, flags.running_means
        )
        exported = export_file(choices)
    print(_summary(exported, flags.output))


def run() -> None:
    """The command `nvae-export-torch-checkpoint`."""
    main(sys.argv[1:])


def _summary(exported: "Exported", output: pathlib.Path) -> str:
    lines = [f"Exported step {exported.step:,} to {output}, as a checkpoint of {exported.data_set}."]
    if exported.leaves_means:
        lines.append(
            "Its state_dict has the weights themselves; the run's scores are those of their running means, see "
            "--running_means."
        )
    return "\n".join(lines)


def _read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="export.export_torch_checkpoint", description=__doc__)
    add = parser.add_argument
    add("--workdir", type=pathlib.Path, required=True, metavar="DIR", help="run folder of train.main")
    add("--output", type=pathlib.Path, required=True, metavar="FILE", help="the .pt file; must not exist yet")
    add("--checkpoint", choices=CHECKPOINTS, default=CHECKPOINTS[0], help=CHECKPOINT_HELP)
    add("--without_optimizer", action="store_true", help="the weights alone")
    add("--running_means", action="store_true", help="the running means of the weights in their place")
    check_flag_names(arguments, flag_names(parser))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run()
