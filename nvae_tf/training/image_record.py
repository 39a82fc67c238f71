"""With how many images a run was begun, in all and a step: where that changes, it is another run."""

import pathlib
from collections.abc import Callable

from nvae_tf.config import check
from nvae_tf.files import atomic_write
from nvae_tf.training.image_counts import ImageCounts, read_image_counts
from nvae_tf.training.run import Run


def note_images(file: pathlib.Path, run: Run, tell: Callable[[str], None]) -> None:
    """Writes the numbers of images into the run folder, or tells that those of the data set have changed.

    Args:
      file: the run folder's `images.json`.
      run: the run as it is now.
      tell: takes a line for people.

    Raises:
      ValueError: see `read_image_counts`.
    """
    images = run.images
    now = ImageCounts(images.train.count, images.test.count, run.images_a_step, images.held_out)
    before = read_image_counts(file)
    if before == now:
        return
    if before is not None and (before.train, before.test) != (now.train, now.test):
        tell(
            f"Note: the run began with {before.train:,} training and {before.test:,} test images, and there are "
            f"{now.train:,} and {now.test:,} now. It goes on, in another order of images; figures before and "
            "after can't be compared."
        )
    atomic_write(file, now.text())


def check_images_a_step(file: pathlib.Path, run: Run) -> None:
    """Refuses to go on with another number of images a step, on other devices or not.

    Raises:
      ValueError: it differs from that in the run folder's `images.json`, the message says what would fit; or see
        `read_image_counts`.
    """
    batch, count = run.config.train.batch_size, run.replicas.count
    noted = read_image_counts(file)
    before = batch * count if noted is None or noted.a_step is None else noted.a_step
    fitting = (
        f"set train.batch_size={before // count}" if before % count == 0 else f"take a divisor of {before} replicas"
    )
    check(
        before == batch * count,
        f"train.batch_size = {batch} on {count} replicas makes {batch * count} images a step; this run was begun with "
        f"{before}: {fitting}",
    )
