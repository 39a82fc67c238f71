"""Trains a model.

    nvae-train --config=digits --workdir=runs/digits
    nvae-train --config=cifar10 --workdir=runs/cifar10 --config.train.batch_size=16
    nvae-train --workdir=runs/cifar10

--config is the name of a preset (the files of the folder configs), a file of your own with settings, or the config.json
of another run; without it the run in the folder is continued with its own settings. Any setting can be changed with
--config.GROUP.NAME=VALUE. --workdir is the run folder:

    README.md        the model card, with scores and a part of your own
    config.json      the settings; images.json how many images there were; environment.json hardware and versions
    checkpoints/     the latest checkpoints (train.keep_checkpoints), and in best/ the one with the best score
    metrics.csv      one line every train.evaluate_every_steps steps
    samples/         64 samples at temperature 0.7 every train.sample_every_steps steps
    tensorboard/     the same and more: tensorboard --logdir=runs

The run is train.steps steps long, or train.epochs passes over the data where that is 0. Settings that are None follow
from its length: optimizer.warmup_epochs is 5, but at most a tenth of the run, and train.evaluate_every_steps,
sample_every_steps and checkpoint_every_steps are a tenth of it, from 10 to 1,000 steps; config.json has the numbers.

Ctrl-C or SIGTERM ends it with a checkpoint. The same command continues from there, also after a crash or a kill, and
the result is the same as without the interruption. A folder that holds something else, or a run with other settings, is
refused; only the length of a run, where data lies, the devices and how often something is written may change.

Fine-tuning: with --config.train.initialize_from=runs/other (or a published file.pt, with the extra torch) a new run
starts with the weights of that run's latest checkpoint, as far as they have the same name and shape. All GPUs of a
machine are used; docs/clusters.md has several machines, docs/training.md mixed precision, memory, and NaN.

Exit code: 0 done, 2 a mistake in the command, 75 another worker of the training is gone, 129 interrupted because the
terminal was closed, 130 by Ctrl-C, 143 by SIGTERM. NVAE_TF_TRACEBACK=1 in the environment adds a mistake's traceback.
"""

import os
import pathlib
import shlex
import signal
import sys
from typing import Annotated

from absl import flags

from nvae_tf import command_line, errors, files, progress

CONFIG = command_line.define_config()


def main(workdir: Annotated[str, "Run folder: new, empty, or of the same run."]) -> None:
    """Checks the settings, then trains."""
    files.check_writable(pathlib.Path(workdir), f"--workdir={workdir}")
    from nvae_tf.data.spec import complete_config  # what reads images is not needed for --help

    config = complete_config(CONFIG.value, flags.FLAGS["config"].override_values)
    errors.start_tensorflow_quietly()  # not before: a mistake is reported within a moment
    from nvae_tf.training.loop import train_and_evaluate

    step, signal_number = train_and_evaluate(config, workdir)
    if signal_number is not None:
        by, command = signal.Signals(signal_number).name, shlex.join(["nvae-train", *sys.argv[1:]])
        # One of several workers was started by a launcher, with another command.
        end = "." if "TF_CONFIG" in os.environ else f":\n    {command}"
        text = f"Run interrupted at step {step} by {by}; checkpoint saved. The same command continues from there"
        progress.StatusLine().print(text + end)
        sys.exit(128 + signal_number)  # the exit codes of shells: 130 for Ctrl-C, 143 for SIGTERM


run = command_line.command(main)
