"""With how many images a run was begun, in all and a step, and how they were split: `images.json` of its folder."""

import json
import pathlib
from typing import NamedTuple

_FORM = "must be a JSON object with whole numbers for train and test, and one above zero for a_step"


class ImageCounts(NamedTuple):
    """The images of a run; None where something is not known.

    Attributes:
      train: how many are for training.
      test: how many for testing.
      a_step: how many one training step takes.
      held_out: whether those for testing were drawn at random, because the source has no parts of its own.
    """

    train: int
    test: int
    a_step: int | None = None
    held_out: bool | None = None

    def text(self) -> str:
        """What the file says."""
        known = {name: value for name, value in self._asdict().items() if value is not None}
        return json.dumps(known) + "\n"


def read_image_counts(file: pathlib.Path) -> ImageCounts | None:
    """What a run folder's `images.json` says; None where there is none. Runs of older versions do not say the
    last two.

    Raises:
      ValueError: it is damaged; the message names the file and the mend.
    """
    if not file.is_file():
        return None
    try:
        return image_counts_from_text(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}; mend it, or delete it: training then notes the numbers anew") from error


def image_counts_from_text(text: str) -> ImageCounts:
    """The numbers that `ImageCounts.text` has written.

    Raises:
      ValueError: the text is of another form; the message says which is needed.
    """
    try:
        found = json.loads(text)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{_FORM} ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(_FORM)
    counts = ImageCounts(*map(found.get, ImageCounts._fields))
    if not isinstance(counts.held_out, bool | None):
        raise ValueError(f"{_FORM} (its held_out is {counts.held_out!r}, neither true nor false)")
    at_least = {"train": 0, "test": 0} | ({} if counts.a_step is None else {"a_step": 1})
    for name, least in at_least.items():
        value = getattr(counts, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{_FORM} (its {name} is {value!r})")
    return counts
