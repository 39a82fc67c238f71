"""How many images a run was begun with: a run that goes on with others is another run, which must be said."""

import json
import pathlib
from collections.abc import Callable

from nvae_tf.checkpoints.run_folder import write_whole
from train.preparation import Images


def note_images(file: pathlib.Path, images: Images, tell: Callable[[str], None]) -> None:
    """Writes the numbers of training and test images into the run folder, or tells that they have changed.

    Args:
      file: the run folder's `images.json`.
      images: the data set as it is now.
      tell: takes a line for people.
    """
    now = {"train": images.train.count, "test": images.test.count}
    before = json.loads(file.read_text()) if file.is_file() else now
    if before != now:
        tell(
            f"Note: the run began with {before['train']:,} training and {before['test']:,} test images, and there are "
            f"{now['train']:,} and {now['test']:,} now. It goes on, in another order of images; figures before and "
            "after can't be compared."
        )
    write_whole(file, json.dumps(now) + "\n")
