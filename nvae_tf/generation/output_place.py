"""What a mode of `train.generate` may write, and where: looked at before it begins to work."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from nvae_tf.files import check_writable

FOLDER = "folder"


class OutputPlace(NamedTuple):
    """A file or a folder to write; `kind` is the file's ending in small letters, or FOLDER."""

    path: pathlib.Path
    kind: str


def output_place(value: str, kinds: Sequence[str], overwrite: bool, flag: str = "output") -> OutputPlace:
    """Looks at the place of a flag; a folder is meant where it exists or the name ends in a slash.

    Args:
      value: of the flag.
      kinds: which a mode can write: ".png", ... and FOLDER.
      overwrite: whether what is there may be replaced.
      flag: its name.

    Raises:
      ValueError: something is there already and is not to be replaced, or no such file can be there.
    """
    path, told = pathlib.Path(value), f"--{flag}={value}"
    endings = [kind for kind in kinds if kind != FOLDER]
    if path.is_dir() or value.endswith(("/", os.sep)):
        if FOLDER not in kinds:
            raise ValueError(f"{told}: a folder; give the name of a file that ends in {' or '.join(endings)}")
        _check_parent(path, told)
        if path.is_dir() and any(path.iterdir()) and not overwrite:
            raise ValueError(f"{told}: there are files in this folder; give another, or --overwrite to write into it")
        return OutputPlace(path, FOLDER)
    kind = path.suffix.lower()
    if kind not in endings:
        folder = ", or a folder that ends in /" if FOLDER in kinds else ""
        raise ValueError(f"{told}: give a name that ends in {' or '.join(endings)}{folder}")
    _check_parent(path, told)
    if path.exists() and not overwrite:
        raise ValueError(f"{told}: there is such a file; give another name, or --overwrite to replace it")
    return OutputPlace(path, kind)


def _check_parent(path: pathlib.Path, told: str) -> None:
    if path.is_file() and told.endswith(("/", os.sep)):
        raise ValueError(f"{told}: this is a file, not a folder")
    check_writable(path if path.is_dir() else path.parent, told)
