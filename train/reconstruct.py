"""Shows what a trained model keeps of real images: originals, and below each its reconstruction.

    python -m train.reconstruct --workdir=runs/digits --output=reconstructions.png

The picture is a PNG of pairs of rows. The upper of a pair has the first images of the test part as the model
sees them (binary data are binarised), the lower the likelihood's mean for latents from the posterior.

Exit code: 0 done, 2 a mistake in the command.
"""

import pathlib

import numpy as np
from absl import flags

from nvae_tf.checkpoint_choice import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from nvae_tf.train_config import LARGEST_SEED
from train import command_line

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of train.main.", required=True)
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
OUTPUT = flags.DEFINE_string("output", None, "PNG file to write.", required=True)
COUNT = flags.DEFINE_integer("count", None, "Number of images; 40, or all if there are fewer.", lower_bound=1)
SPLIT = flags.DEFINE_enum("split", "test", ["test", "train"], "Part of the data set.")
SEED = flags.DEFINE_integer("seed", 1, "Of the binarisation and the latents.", lower_bound=0, upper_bound=LARGEST_SEED)
COLUMNS = flags.DEFINE_integer("columns", 10, "Images a row.", lower_bound=1)
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace the output file if there is one.")
DATA_PATH = flags.DEFINE_string("data_path", None, command_line.DATA_PATH_HELP)

_COUNT = 40


def main() -> None:
    """Reconstructs and writes the picture."""
    output = pathlib.Path(OUTPUT.value)
    command_line.check_output(output, OVERWRITE.value)
    start_tensorflow_quietly()
    from nvae_tf.checkpoints import load_run
    from nvae_tf.generation import image_grid, write_png
    from train.evaluation_report import spec_to_read

    trained = load_run(WORKDIR.value, CHECKPOINT.value)
    originals = _first_images(spec_to_read(trained.config, DATA_PATH.value), SPLIT.value, COUNT.value, SEED.value)
    reconstructions = trained.model(originals, seed=SEED.value).numpy()
    rows = pairs_of_rows(originals, reconstructions, COLUMNS.value)
    write_png(output, image_grid(rows, COLUMNS.value, enlarge=None))
    images = f"{len(originals):,} images of the {SPLIT.value} part"
    print(f"{images}, each above its reconstruction from step {trained.step:,}, in {output}")


def pairs_of_rows(originals: np.ndarray, reconstructions: np.ndarray, columns: int) -> np.ndarray:
    """Images of a grid `[count, height, width, channels]`: each original stands above its reconstruction."""
    missing = -len(originals) % columns
    rows = []
    for images in (originals, reconstructions):
        filled = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)], constant_values=0.5)
        rows.append(filled.reshape(-1, columns, *images.shape[1:]))
    return np.stack(rows, axis=1).reshape(-1, *originals.shape[1:])


def _first_images(spec, split: str, count: int | None, seed: int) -> np.ndarray:
    from nvae_tf.data.pipeline import evaluation_batches, iterate
    from nvae_tf.data.sources import load_split
    from train.progress import StatusLine

    source = load_split(spec, split, StatusLine().report())
    if count is None:
        count = min(_COUNT, source.count)
    if count > source.count:
        raise ValueError(f"--count={count}: the {split} part of {spec.name} has only {source.count} images")
    return next(iterate(evaluation_batches(source, spec, count, seed), source)).numpy()


def run() -> None:
    """The command line."""
    command_line.run(main)


if __name__ == "__main__":
    run()
