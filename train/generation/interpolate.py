"""Goes from picture to picture in small steps: a path between their latents, as a picture or an animation.

    python -m train.generate interpolate --workdir=runs/digits --indices=3,17 --output=path.png
    python -m train.generate interpolate --workdir=runs/faces --input=a.png --input=b.png --steps=30 --output=path.gif
    python -m train.generate interpolate --workdir=runs/faces --indices=1,5,9 --how=spherical,linear --output=path/

The path goes through all pictures in turn and begins and ends at their reconstructions. --how says how the latents go:
spherical (along an arc, which keeps their length), linear, or keep (they stay those of the first picture: what the
other groups alone change); one word for all, or one for every scale (the smallest first) or every latent group (the
top one first). A PNG has a row for the way from one picture to the next, both ends included; a GIF (256 colors) or
WebP (without loss) shows one image after the other; in a folder (its name ends in a slash) every image is a PNG.

Exit code: 0 done, 2 a mistake in the command.
"""

import numpy as np
from absl import flags

from nvae_tf.generation.grid_rows import rows_of_path
from nvae_tf.generation.output_place import FOLDER
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from nvae_tf.setting_checks import check
from train import shared_flags
from train.generation.chosen_pictures import check_choice_of_pictures, chosen_pictures

RUN = shared_flags.define_run(
    __name__,
    "PNG, GIF or WebP file to write, or folder (DIR/) for a file an image.",
    "Of the binarization and the latents.",
)
PICTURES = shared_flags.define_pictures(__name__, count=None)
STEPS = flags.DEFINE_integer("steps", 10, "Steps from one picture to the next.", lower_bound=1)
HOW = flags.DEFINE_list("how", ["spherical"], "spherical, linear or keep; one, or one a scale or a group.")
MEAN = shared_flags.define_mean(__name__)
MILLISECONDS = flags.DEFINE_integer("milliseconds", 80, "How long a GIF or WebP shows each image.", lower_bound=20)
LOOP = flags.DEFINE_boolean("loop", True, "Whether a GIF or WebP begins again for ever.")


def main() -> None:
    """Interpolates and writes the picture."""
    place = RUN.place((".png", ".gif", ".webp", FOLDER))
    check(
        bool(PICTURES.input.value or PICTURES.indices.value),
        "between which pictures? Give two or more with --input=FILE_OR_FOLDER, or by their numbers in the data set, as "
        "--indices=3,17",
    )
    check_choice_of_pictures(PICTURES)
    start_tensorflow_quietly()
    from nvae_tf.generation.interpolation import interpolate_images, ways_of_groups
    from nvae_tf.generation.status import images_done
    from nvae_tf.latent_plan import latent_plan
    from nvae_tf.progress import StatusLine

    config, seed = RUN.config(), RUN.seed.value
    how = HOW.value if len(HOW.value) > 1 else HOW.value[0]
    ways_of_groups(how, latent_plan(config.model).latent_shapes())
    images, _, words = chosen_pictures(PICTURES, config, seed, at_most=None)
    check(len(images) > 1, f"{words}: an interpolation needs at least two")
    trained, status = RUN.load(), StatusLine()
    progress = images_done(status, (len(images) - 1) * (STEPS.value - 1))
    path = interpolate_images(trained.model, images, STEPS.value, how, seed, MEAN.value, progress)
    _write(place, path)
    status.keep(f"{len(path):,} images through {words}, from step {trained.step:,}, in {place.path}")


def _write(place, path: np.ndarray) -> None:
    from nvae_tf.generation.image_grid import image_grid, write_png
    from nvae_tf.generation.image_sequence import write_animation, write_pictures

    if place.kind == FOLDER:
        write_pictures(place.path, path, [f"image_{number:05d}" for number in range(len(path))])
    elif place.kind == ".png":
        write_png(place.path, image_grid(rows_of_path(path, STEPS.value), STEPS.value + 1, enlarge=None))
    else:
        write_animation(place.path, path, MILLISECONDS.value, LOOP.value)
