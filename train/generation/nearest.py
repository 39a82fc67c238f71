"""Shows samples beside the training images that are most like them: does the model only repeat what it has seen?

    python -m train.generate nearest --workdir=runs/digits --output=nearest.png
    python -m train.generate nearest --workdir=runs/digits --output=nearest.png --count=16 --json=nearest.json

The picture is a PNG with a row for every sample: the sample, then the training images that are nearest to it, the
nearest first. The distance is the mean squared difference of a pixel value in [0, 1] between the likelihood's mean and
the image as the model sees it; binary data are binarized once, with --seed. With --json the images' numbers and their
distances are written too.

Exit code: 0 done, 2 a mistake in the command.
"""

import json

import numpy as np
from absl import flags

from nvae_tf import command_line
from nvae_tf.generation.output_place import output_place
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from train import shared_flags

_BATCH_SIZE = 256

RUN = shared_flags.define_run(__name__, "PNG file to write.", "Of the latents and the binarization.")
COUNT = flags.DEFINE_integer("count", 8, "Number of samples.", lower_bound=1)
NEIGHBOURS = flags.DEFINE_integer("neighbors", 8, "Number of nearest images of each sample.", lower_bound=1)
TEMPERATURE = shared_flags.define_temperature(__name__)
SPLIT = flags.DEFINE_enum("split", "train", ["test", "train"], "Part of the data set.")
DATA_PATH = flags.DEFINE_string("data_path", None, command_line.DATA_PATH_HELP)
JSON = flags.DEFINE_string("json", None, "File to write numbers and distances to, .json.")


def main() -> None:
    """Draws samples, looks through the images, and writes picture and figures."""
    place = RUN.place((".png",))
    figures_file = JSON.value and output_place(JSON.value, (".json",), RUN.overwrite.value, "json").path
    temperature = shared_flags.temperature_of(TEMPERATURE)
    start_tensorflow_quietly()
    from nvae_tf.data.sources import load_split
    from nvae_tf.files import atomic_write
    from nvae_tf.generation.image_grid import image_grid, write_png
    from nvae_tf.generation.sampling import generate_images
    from nvae_tf.latent_plan import latent_plan
    from nvae_tf.models.temperatures import temperatures_of_groups
    from nvae_tf.progress import StatusLine
    from nvae_tf.training.run_data import spec_to_read

    config, status = RUN.config(), StatusLine()
    temperatures_of_groups(temperature, latent_plan(config.model))
    spec = spec_to_read(config, DATA_PATH.value)
    source = load_split(spec, SPLIT.value, status.report())
    if NEIGHBOURS.value > source.count:
        raise ValueError(f"--neighbors={NEIGHBOURS.value}: the {SPLIT.value} part has only {source.count} images")
    trained = RUN.load()
    samples = generate_images(trained.model, COUNT.value, temperature, RUN.seed.value)
    nearest = _nearest(samples, source, spec, status)
    rows = np.concatenate([samples[:, np.newaxis], nearest.images], axis=1)
    write_png(place.path, image_grid(rows.reshape(-1, *samples.shape[1:]), NEIGHBOURS.value + 1, enlarge=None))
    if figures_file:
        about = {"step": trained.step, "seed": RUN.seed.value, "temperature": temperature, "split": SPLIT.value}
        figures = about | {"numbers": nearest.numbers.tolist(), "distances": nearest.distances.tolist()}
        figures_file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(figures_file, json.dumps(figures, indent=2) + "\n")
    status.keep(
        f"{COUNT.value:,} samples from step {trained.step:,}, each before the nearest of {source.count:,} images of "
        f"the {SPLIT.value} part, in {place.path}; mean squared difference from the nearest "
        f"{nearest.distances[:, 0].min():.4g} to {nearest.distances[:, 0].max():.4g}"
    )


def _nearest(samples, source, spec, status):
    from nvae_tf.data.pipeline import evaluation_batches, iterate
    from nvae_tf.generation.nearest import nearest_images

    def batches():
        seen = 0
        for batch in iterate(evaluation_batches(source, spec, _BATCH_SIZE, RUN.seed.value), source):
            yield batch.numpy()
            seen += len(batch)
            status.show_if_due(f"{seen:,} of {source.count:,} images looked at")

    return nearest_images(samples, batches(), NEIGHBOURS.value)
