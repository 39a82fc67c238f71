"""Shows what a model will see of a data set, before anything is trained.

    nvae-inspect-data --config=own_images --config.data.path=my_pictures

Takes the same --config flags as nvae-train. Prints for the training and the test part the number of images and their
form, where their values lie, how many bits they really use, and how many images a second can be read; with
--config.data.labels=True the classes too. Writes a figure: above the first training images as the model gets them,
below test images: drawn at random, with labels a row of each class.

Exit code: 0 done, 2 a mistake in the command or in the data.
"""

import shlex
import sys
from typing import Annotated

from absl import flags

from nvae_tf import command_line, errors, progress
from nvae_tf.generation.image_grid import FIGURES

CONFIG = command_line.define_config()
_OUTPUT_HELP = "PNG, SVG or PDF file to write; one from this command is replaced, another only with --overwrite."


def main(
    output: Annotated[str, _OUTPUT_HELP] = "inspect_data.png",
    count: Annotated[int, "Images of each split in the file.", 1] = 40,
    seconds: Annotated[float, "How long to measure the reading of each split.", 0.1] = 3.0,
    raw: Annotated[bool, "Write a bare grid of images, without labels; PNG only."] = False,
    overwrite: Annotated[bool, "Replace the output file if there is one."] = False,
) -> None:
    """Looks at both splits, prints statistics and writes the PNG file."""
    may_replace = overwrite or flags.FLAGS["output"].using_default_value
    file = command_line.output_place(output, (".png",) if raw else FIGURES, may_replace).path
    errors.require("matplotlib", "reports")
    from nvae_tf.data.spec import complete_config

    config = complete_config(CONFIG.value, flags.FLAGS["config"].override_values)
    errors.start_tensorflow_quietly()
    from nvae_tf.data.inspection import inspect
    from nvae_tf.reports import figures

    status = progress.StatusLine()
    shown = inspect(config, count, seconds, status)
    command = shlex.join(["nvae-inspect-data", *sys.argv[1:]])
    about = figures.Provenance(config.data.name, command=command, channels=config.data.display_channels)
    figures.save_figure(figures.data_images(shown, about), file, raw)
    train, test = (sum(len(shown[name]) for name in shown if name.startswith(part)) for part in ("train", "test"))
    status.print(f"{train} training images above {test} test images in {file}")


run = command_line.command(main)
