"""Shows what a trained model keeps of real images: originals, and below each its reconstruction.

    python -m train.generate reconstruct --workdir=runs/digits --output=reconstructions.png
    python -m train.generate reconstruct --workdir=runs/faces --input=me.jpg --resize=crop --output=me.png
    python -m train.generate reconstruct --workdir=runs/faces --input=my_pictures --kept_groups=5 --output=out/

The picture is a PNG of pairs of rows. The upper of a pair has the first images of the test part, or the pictures of
--input, as the model sees them (binary data are binarized); the lower the likelihood's mean for latents from the
posterior. With --kept_groups only the latents of so many groups, from the top, are the picture's, and the rest come
from the prior at --temperature. With a folder (its name ends in a slash) every reconstruction is a PNG of its own, in
the model's size and with the name of its picture.

Exit code: 0 done, 2 a mistake in the command.
"""

from nvae_tf.generation.grid_rows import pairs_of_rows
from nvae_tf.generation.output_place import FOLDER
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from train import shared_flags
from train.generation.chosen_pictures import check_choice_of_pictures, chosen_pictures

_COUNT = 40

RUN = shared_flags.define_run(
    __name__, "PNG file to write, or folder (DIR/) for a file a picture.", "Of the binarization and the latents."
)
PICTURES = shared_flags.define_pictures(
    __name__, f"Number of images of the data set; {_COUNT}, or all if there are fewer."
)
KEPT_GROUPS = shared_flags.define_kept_groups(
    __name__, None, "So many groups, from the top, keep the picture's latents; all if not given."
)
TEMPERATURE = shared_flags.define_temperature(__name__)
MEAN = shared_flags.define_mean(__name__)
COLUMNS = shared_flags.define_columns(__name__, 10, "At most so many images a row.")


def main() -> None:
    """Reconstructs and writes the picture."""
    place = RUN.place((".png", FOLDER))
    temperature = shared_flags.temperature_of(TEMPERATURE)
    check_choice_of_pictures(PICTURES)
    start_tensorflow_quietly()
    from nvae_tf.generation.image_grid import image_grid, write_png
    from nvae_tf.generation.image_sequence import picture_names, write_pictures
    from nvae_tf.generation.reconstruction import checked_kept_groups, reconstruct_images
    from nvae_tf.generation.status import images_done
    from nvae_tf.latent_plan import latent_plan
    from nvae_tf.models.temperatures import temperatures_of_groups
    from nvae_tf.progress import StatusLine

    config, seed = RUN.config(), RUN.seed.value
    plan = latent_plan(config.model)
    kept_groups = checked_kept_groups(KEPT_GROUPS.value, plan)
    temperatures_of_groups(temperature, plan)
    originals, names, words = chosen_pictures(PICTURES, config, seed, _COUNT)
    # Two of one name are told now.
    names = picture_names(names) if place.kind == FOLDER else names
    trained, status = RUN.load(), StatusLine()
    made = reconstruct_images(
        trained.model, originals, kept_groups, temperature, seed, MEAN.value, images_done(status, len(originals))
    )
    if place.kind == FOLDER:
        write_pictures(place.path, made, names)
    else:
        columns = min(COLUMNS.value, len(originals))
        write_png(place.path, image_grid(pairs_of_rows(originals, made, columns), columns, enlarge=None))
    above = "their reconstructions" if place.kind == FOLDER else "each above its reconstruction"
    kept = "" if kept_groups == plan.num_groups else f" by the top {kept_groups} of {plan.num_groups} groups"
    status.keep(f"{words}, {above}{kept} from step {trained.step:,}, in {place.path}")
