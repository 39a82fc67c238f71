"""Turns latents into pictures: those of `train.generate encode`, or what a program has made of them.

    python -m train.generate decode --workdir=runs/digits --input=latents.npz --output=pictures.png
    python -m train.generate decode --workdir=runs/digits --input=latents.npz --output=pictures/
    python -m train.generate decode --workdir=runs/digits --input=latents.npz --kept_groups=2 --output=pictures.png

The picture is a PNG grid of the likelihood's means; with a folder (its name ends in a slash) every one is a PNG of its
own, in the model's size and with its name from the file. With --kept_groups only the latents of so many groups, from
the top, are taken, and the rest are drawn from the prior at --temperature.

Exit code: 0 done, 2 a mistake in the command.
"""

import pathlib

from absl import flags

from nvae_tf.generation.output_place import FOLDER
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from train import shared_flags

RUN = shared_flags.define_run(
    __name__, "PNG file to write, or folder (DIR/) for a file a picture.", "Of the groups that are drawn."
)
INPUT = flags.DEFINE_string("input", None, "File of latents, .npz.", required=True)
KEPT_GROUPS = shared_flags.define_kept_groups(
    __name__, None, "So many groups, from the top, keep the file's latents; all if not given."
)
TEMPERATURE = shared_flags.define_temperature(__name__)
COLUMNS = shared_flags.define_columns(__name__, None, "Images a row; a nearly square picture if not given.")


def main() -> None:
    """Decodes and writes the picture."""
    place = RUN.place((".png", FOLDER))
    temperature = shared_flags.temperature_of(TEMPERATURE)
    if not pathlib.Path(INPUT.value).is_file():
        raise FileNotFoundError(f"--input={INPUT.value}: no such file; train.generate encode writes one")
    start_tensorflow_quietly()
    from nvae_tf.generation.image_grid import image_grid, write_png
    from nvae_tf.generation.image_sequence import write_pictures
    from nvae_tf.generation.latents_file import load_latents
    from nvae_tf.generation.reconstruction import checked_kept_groups
    from nvae_tf.generation.sampling import decode_images, generate_images
    from nvae_tf.generation.status import images_done
    from nvae_tf.latent_plan import latent_plan
    from nvae_tf.models.temperatures import temperatures_of_groups
    from nvae_tf.progress import StatusLine

    plan = latent_plan(RUN.config().model)
    kept_groups = checked_kept_groups(KEPT_GROUPS.value, plan)
    temperatures_of_groups(temperature, plan)
    latents, names = load_latents(INPUT.value, plan)
    trained, status, count = RUN.load(), StatusLine(), len(latents[0])
    drawing = temperature, RUN.seed.value, images_done(status, count)
    if kept_groups:
        images = decode_images(trained.model, latents[:kept_groups], *drawing)
    else:
        images = generate_images(trained.model, count, *drawing)
    if place.kind == FOLDER:
        write_pictures(place.path, images, names or [f"picture_{number:05d}" for number in range(count)])
    else:
        write_png(place.path, image_grid(images, COLUMNS.value, enlarge=None))
    status.keep(f"{count:,} images of latents in {INPUT.value}, from step {trained.step:,}, in {place.path}")
