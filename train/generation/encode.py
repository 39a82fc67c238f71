"""Turns pictures into the model's latents, for `train.generate decode` or for programs of one's own.

    python -m train.generate encode --workdir=runs/digits --output=latents.npz
    python -m train.generate encode --workdir=runs/faces --input=my_pictures --mean --output=latents.npz

The file is NumPy's: group_00 is the top group's latent, float32 [count, height, width, latent channels], group_01 the
next, and so on; names are the pictures' names, about is JSON with the latent shapes. All images of the test part are
taken if nothing else is said. In Python nvae_tf.generation.latents_file.load_latents reads it.

Exit code: 0 done, 2 a mistake in the command.
"""

from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from train import shared_flags
from train.generation.chosen_pictures import check_choice_of_pictures, chosen_pictures

RUN = shared_flags.define_run(__name__, "File to write, .npz.", "Of the binarization and the latents.")
PICTURES = shared_flags.define_pictures(__name__, "Number of images of the data set; all if not given.")
MEAN = shared_flags.define_mean(__name__)


def main() -> None:
    """Encodes and writes the file."""
    place = RUN.place((".npz",))
    check_choice_of_pictures(PICTURES)
    start_tensorflow_quietly()
    from nvae_tf.generation.encoding import encode_images
    from nvae_tf.generation.latents_file import save_latents
    from nvae_tf.generation.status import images_done
    from nvae_tf.progress import StatusLine

    images, names, words = chosen_pictures(PICTURES, RUN.config(), RUN.seed.value, at_most=None)
    trained, status = RUN.load(), StatusLine()
    latents = encode_images(trained.model, images, RUN.seed.value, MEAN.value, images_done(status, len(images)))
    save_latents(place.path, latents, names)
    status.keep(f"latents of {words} in {len(latents)} groups, from step {trained.step:,}, in {place.path}")
