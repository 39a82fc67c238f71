"""Draws images that a trained model dreams up, as one picture.

    python -m train.generate sample --workdir=runs/digits --output=samples.png
    python -m train.generate sample --workdir=runs/digits --output=samples.png --count=100 --temperature=0.6 --seed=7
    python -m train.generate sample --workdir=runs/digits --output=samples/

The picture is a PNG grid of the likelihood's mean for latents from the prior; with a folder (its name ends in a
slash) every image is a PNG of its own, in the model's size. --temperature multiplies every prior's sigma: 1 is the
model as trained, below 1 the images are cleaner and more alike (the paper shows 0.6 to 1). Image i depends on the seed
and on i, not on how many there are. With --batch_norm_iterations=500 the statistics of batch norm are those of samples
at this temperature, which takes a while and helps where low temperatures come out wrong in color or contrast.

Exit code: 0 done, 2 a mistake in the command.
"""

from absl import flags

from nvae_tf.generation.output_place import FOLDER
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from train import shared_flags

RUN = shared_flags.define_run(__name__, "PNG file to write, or folder (DIR/) for a file an image.", "Of the latents.")
COUNT = flags.DEFINE_integer("count", 64, "Number of images.", lower_bound=1)
TEMPERATURE = shared_flags.define_temperature(__name__)
BATCH_NORM_ITERATIONS = shared_flags.define_batch_norm_iterations(__name__)
COLUMNS = shared_flags.define_columns(__name__, None, "Images a row; a nearly square picture if not given.")


def main() -> None:
    """Generates and writes the picture."""
    place = RUN.place((".png", FOLDER))
    temperature = shared_flags.temperature_of(TEMPERATURE)
    start_tensorflow_quietly()
    from nvae_tf.evaluation.batch_norm_statistics import readjusted
    from nvae_tf.generation.image_grid import image_grid, write_png
    from nvae_tf.generation.image_sequence import write_pictures
    from nvae_tf.generation.sampling import generate_images
    from nvae_tf.generation.status import at_temperature, images_done
    from nvae_tf.latent_plan import latent_plan
    from nvae_tf.models.temperatures import temperatures_of_groups
    from nvae_tf.progress import StatusLine

    temperatures_of_groups(temperature, latent_plan(RUN.config().model))
    trained, status, count = RUN.load(), StatusLine(), COUNT.value
    model = trained.model
    if BATCH_NORM_ITERATIONS.value:
        adjusted = readjusted(model, temperature, BATCH_NORM_ITERATIONS.value, seed=RUN.seed.value)
        status.keep(adjusted.text)
        model = adjusted.model
    images = generate_images(model, count, temperature, RUN.seed.value, images_done(status, count))
    if place.kind == FOLDER:
        write_pictures(place.path, images, [f"sample_{number:05d}" for number in range(count)])
    else:
        write_png(place.path, image_grid(images, COLUMNS.value, enlarge=None))
    status.keep(f"{count:,} images at {at_temperature(temperature)}, from step {trained.step:,}, in {place.path}")
