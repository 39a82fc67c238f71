"""Draws variants of pictures that keep what the upper latent groups hold of them.

    python -m train.generate vary --workdir=runs/digits --output=variants.png
    python -m train.generate vary --workdir=runs/faces --input=me.png --kept_groups=4 --variants=12 --output=me/

The latents of --kept_groups groups, from the top, come from a picture and are the same for all its variants; the
others are drawn from the prior at --temperature, afresh for each. The picture is a PNG with a row for every picture:
itself as the model sees it, then its variants. With a folder (its name ends in a slash) every variant is a PNG of its
own, in the model's size, with the name of its picture and its number.

Exit code: 0 done, 2 a mistake in the command.
"""

import pathlib

import numpy as np
from absl import flags

from nvae_tf.generation.output_place import FOLDER
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from train import shared_flags
from train.generation.chosen_pictures import check_choice_of_pictures, chosen_pictures

_COUNT = 8

RUN = shared_flags.define_run(
    __name__, "PNG file to write, or folder (DIR/) for a file a variant.", "Of the binarization and the latents."
)
PICTURES = shared_flags.define_pictures(
    __name__, f"Number of images of the data set; {_COUNT}, or all if there are fewer."
)
KEPT_GROUPS = shared_flags.define_kept_groups(
    __name__, 1, "So many groups, from the top, keep the picture's latents; 0 gives plain samples."
)
VARIANTS = flags.DEFINE_integer("variants", 8, "Number of variants of each picture.", lower_bound=1)
TEMPERATURE = shared_flags.define_temperature(__name__)
MEAN = shared_flags.define_mean(__name__)


def main() -> None:
    """Draws the variants and writes the picture."""
    place = RUN.place((".png", FOLDER))
    temperature = shared_flags.temperature_of(TEMPERATURE)
    check_choice_of_pictures(PICTURES)
    start_tensorflow_quietly()
    from nvae_tf.generation.image_grid import image_grid, write_png
    from nvae_tf.generation.image_sequence import picture_names, write_pictures
    from nvae_tf.generation.reconstruction import checked_kept_groups, vary_images
    from nvae_tf.generation.status import images_done
    from nvae_tf.latent_plan import latent_plan
    from nvae_tf.models.temperatures import temperatures_of_groups
    from nvae_tf.progress import StatusLine

    config, seed, count = RUN.config(), RUN.seed.value, VARIANTS.value
    plan = latent_plan(config.model)
    kept_groups = checked_kept_groups(KEPT_GROUPS.value, plan)
    temperatures_of_groups(temperature, plan)
    originals, names, words = chosen_pictures(PICTURES, config, seed, _COUNT)
    # Two of one name are told now.
    names = picture_names(names) if place.kind == FOLDER else names
    trained, status = RUN.load(), StatusLine()
    progress = images_done(status, len(originals) * count)
    made = vary_images(trained.model, originals, kept_groups, count, temperature, seed, MEAN.value, progress)
    if place.kind == FOLDER:
        stems = [str(pathlib.PurePath(name).with_suffix("")) for name in names]
        numbered = [f"{stem}_{number:03d}.png" for stem in stems for number in range(count)]
        write_pictures(place.path, made.reshape(-1, *made.shape[2:]), numbered)
    else:
        rows = np.concatenate([originals[:, np.newaxis], made], axis=1)
        write_png(place.path, image_grid(rows.reshape(-1, *rows.shape[2:]), count + 1, enlarge=None))
    status.keep(
        f"{count:,} variants of each of {words}, with the latents of the top {kept_groups} of {plan.num_groups} groups "
        f"kept, from step {trained.step:,}, in {place.path}"
    )
