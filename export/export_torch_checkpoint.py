"""Writes a run's checkpoint as a PyTorch file of the published form.

    nvae-export-torch-checkpoint --workdir=runs/cifar10 --output=cifar10.pt

The file has the weights and running statistics, without the optimizer's state. One more key than in published files,
nvae_tf, which other code ignores, has the settings, with data.path of this machine, and the origin of imported weights.

Where the run keeps exponential moving averages of its weights (EMA, optimizer.ema_momentum), its scores are from
the averages, and the state_dict has the weights. --running_means writes the averages instead.

Needs PyTorch (`make torch`) and memory for the whole file; see docs/published_weights.md. Exit code: 0 done, 2 a
mistake in the command, a run that can't be exported or whose settings the published form can't express, or no room.
"""

import pathlib
from typing import Annotated

from nvae_tf import command_line, config, errors, files


def main(
    workdir: Annotated[str, command_line.RUN_HELP],
    output: Annotated[str, "The .pt file; must not exist yet."],
    checkpoint: Annotated[str, config.CHECKPOINT_HELP, *config.CHECKPOINTS] = config.CHECKPOINTS[0],
    without_optimizer: Annotated[bool, "No effect: files hold no optimizer's state."] = False,
    running_means: Annotated[bool, "Write the EMA of the weights instead."] = False,
) -> None:
    """Exports the run and prints what was written."""
    files.check_new_file(pathlib.Path(output), f"--output={output}")
    folder = command_line.run_folder(workdir)
    errors.require("torch", "torch")
    errors.start_tensorflow_quietly()
    from nvae_tf.published.conversion import export_file

    print(export_file(folder, pathlib.Path(output), checkpoint=checkpoint, running_means=running_means))


run = command_line.command(main)
