"""What people give on a command line: places to write, temperatures. Checked before TensorFlow starts."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from nvae_tf.config import check
from nvae_tf.errors import require
from nvae_tf.files import check_writable

FOLDER = "folder"
# Files with a figure.
FIGURES = (".png", ".svg", ".pdf")
TEMPERATURE_HELP = (
    "What multiplies the priors' sigma, greater than 0: one number, or one for every scale (the smallest first) or "
    "every latent group (the top one first), as 0.7,0.8."
)
BATCH_NORM_HELP = (
    "Readjust the batch-norm statistics to the temperature with so many batches before samples are drawn (the "
    "paper takes 500), in a copy of the model; 0 for none."
)


class OutputPlace(NamedTuple):
    """A file or a folder to write; `kind` is the file's ending in small letters, or FOLDER."""

    path: pathlib.Path
    kind: str


def output_place(value: str, kinds: Sequence[str], overwrite: bool, flag: str = "output") -> OutputPlace:
    """The file or folder that a flag names; a folder is meant where it exists or the name ends in a slash.

    `kinds` are those that are possible: ".png", ... and FOLDER. ValueError where it can't be written, or is there and
    not to be replaced.
    """
    path, given = pathlib.Path(value), f"--{flag}={value}"
    endings = " or ".join(kind for kind in kinds if kind != FOLDER)
    if path.is_dir() or value.endswith(("/", os.sep)):
        check(FOLDER in kinds, f"{given}: a folder; give the name of a file that ends in {endings}")
        check(not path.is_file(), f"{given}: this is a file, not a folder")
        check_writable(path if path.is_dir() else path.parent, given)
        check(
            overwrite or not path.is_dir() or not any(path.iterdir()),
            f"{given}: there are files in this folder; give another, or --overwrite to write into it",
        )
        return OutputPlace(path, FOLDER)
    kind = path.suffix.lower()
    folder = ", or a folder that ends in /" if FOLDER in kinds else ""
    check(bool(kind) and kind in kinds, f"{given}: give a name that ends in {endings}{folder}")
    check_writable(path.parent, given)
    message = f"{given}: there is such a file; give another name, or --overwrite to replace it"
    check(overwrite or not path.exists(), message)
    return OutputPlace(path, kind)


def require_matplotlib() -> None:
    """Checks that figures can be drawn; the ValueError says how, and how it goes without."""
    try:
        require("matplotlib", "reports")
    except ValueError as error:
        raise ValueError(f"{error}, or give --raw for a bare grid of images") from None


def parse_temperature(text: str) -> float | list[float]:
    """A number, or those of a list such as `0.7,0.8`; ValueError where one is not greater than 0 and finite."""
    values = []
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            raise ValueError(f"--temperature: {word!r} is not a number; several are written 0.7,0.8") from None
        check(0.0 < value < float("inf"), f"--temperature={word}: must be greater than 0; 1 is the model as trained")
        values.append(value)
    return values if len(values) > 1 else values[0]
