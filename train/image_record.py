"""With how many images a run was begun, in all and a step: where that changes, it is another run."""

import json
import pathlib
from collections.abc import Callable

from nvae_tf.setting_checks import check
from nvae_tf.whole_files import write_whole
from train.preparation import Run


def note_images(file: pathlib.Path, run: Run, tell: Callable[[str], None]) -> None:
    """Writes the numbers of images into the run folder, or tells that those of the data set have changed.

    Args:
      file: the run folder's `images.json`.
      run: the run as it is now.
      tell: takes a line for people.
    """
    images = run.images
    now = {"train": images.train.count, "test": images.test.count, "a_step": run.images_a_step}
    before = _noted(file)
    if before == now:
        return
    if before and (before["train"], before["test"]) != (now["train"], now["test"]):
        tell(
            f"Note: the run began with {before['train']:,} training and {before['test']:,} test images, and there are "
            f"{now['train']:,} and {now['test']:,} now. It goes on, in another order of images; figures before and "
            "after can't be compared."
        )
    write_whole(file, json.dumps(now) + "\n")


def check_images_a_step(file: pathlib.Path, run: Run) -> None:
    """Refuses to go on with another number of images a step, on other devices or not.

    Raises:
      ValueError: it differs from that in the run folder's `images.json`; the message says what would fit.
    """
    batch, count = run.config.train.batch_size, run.replicas.count
    # Runs of older versions do not say it.
    before = _noted(file).get("a_step", batch * count)
    fitting = (
        f"set train.batch_size={before // count}" if before % count == 0 else f"take a divisor of {before} replicas"
    )
    check(
        before == batch * count,
        f"train.batch_size = {batch} on {count} replicas makes {batch * count} images a step; this run was begun with "
        f"{before}: {fitting}",
    )


def _noted(file: pathlib.Path) -> dict[str, int]:
    return json.loads(file.read_text()) if file.is_file() else {}
