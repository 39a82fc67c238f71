"""Draws images that a trained model dreams up, as one picture.

    python -m train.generate --workdir=runs/digits --output=samples.png
    python -m train.generate --workdir=runs/digits --output=samples.png --count=100 --temperature=0.6 --seed=7

The picture is a PNG grid of the likelihood's mean for latents from the prior. --temperature multiplies every
prior's sigma: 1 is the model as trained, below 1 the images are cleaner and more alike (the paper shows 0.6 to 1).
Image i depends on the seed and on i, not on how many there are.

Exit code: 0 done, 2 a mistake in the command.
"""

import pathlib

from absl import flags

from nvae_tf.checkpoint_choice import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from nvae_tf.train_config import LARGEST_SEED
from train import command_line

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of train.main.", required=True)
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
OUTPUT = flags.DEFINE_string("output", None, "PNG file to write.", required=True)
COUNT = flags.DEFINE_integer("count", 64, "Number of images.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "What multiplies every prior's sigma; greater than 0.")
SEED = flags.DEFINE_integer("seed", 1, "Of the latents.", lower_bound=0, upper_bound=LARGEST_SEED)
COLUMNS = flags.DEFINE_integer("columns", None, "Images a row; a nearly square picture if not given.", lower_bound=1)
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace the output file if there is one.")


def main() -> None:
    """Generates and writes the picture."""
    output = pathlib.Path(OUTPUT.value)
    command_line.check_output(output, OVERWRITE.value)
    if not 0.0 < TEMPERATURE.value < float("inf"):
        raise ValueError(f"--temperature={TEMPERATURE.value}: must be greater than 0; 1 is the model as trained")
    start_tensorflow_quietly()
    from nvae_tf.checkpoints import load_run
    from nvae_tf.generation import generate_images, image_grid, write_png
    from train.progress import StatusLine

    trained = load_run(WORKDIR.value, CHECKPOINT.value)
    status = StatusLine()

    def show(done: int) -> None:
        if status.is_due:
            status.show(f"{done:,} of {COUNT.value:,} images")

    images = generate_images(trained.model, COUNT.value, TEMPERATURE.value, SEED.value, show)
    write_png(output, image_grid(images, COLUMNS.value, enlarge=None))
    status.keep(f"{COUNT.value:,} images at temperature {TEMPERATURE.value:g}, from step {trained.step:,}, in {output}")


def run() -> None:
    """The command `nvae-generate`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
