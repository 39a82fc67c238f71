"""The folder of numbered versions that TensorFlow Serving watches; one appears in it whole or not at all."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

# What a server can count to.
LARGEST_VERSION = 2**63 - 1


def check_version_is_free(output: pathlib.Path, version: int) -> None:
    """Checks that `output/version` can be made; `output` may be missing, empty, or hold other versions.

    Raises:
      ValueError: the version exists, or `output` is something else than a folder of versions.
    """
    if not 1 <= version <= LARGEST_VERSION:
        raise ValueError(f"version {version}: versions are whole numbers from 1 to {LARGEST_VERSION}")
    if not output.exists():
        parent = next(folder for folder in output.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise ValueError(f"{output}: can't be made, {parent} is a file; name another folder")
        if not os.access(parent, os.W_OK):
            raise ValueError(f"{output}: can't be made, {parent} can't be written to; name another folder")
        return
    if not output.is_dir():
        raise ValueError(f"{output}: a file; name a folder, the export will be {output}/{version} in it")
    # Hidden entries are what a file manager or a killed export leaves behind; servers pass over them.
    entries = [entry for entry in output.iterdir() if not entry.name.startswith(".")]
    foreign = sorted(entry.name for entry in entries if not (entry.name.isdecimal() and entry.is_dir()))
    if foreign:
        raise ValueError(
            f"{output}: holds {foreign[0]!r}, so it is no folder of numbered versions; name a new or an empty folder"
        )
    versions = {int(entry.name) for entry in entries}
    if version in versions:
        raise ValueError(
            f"{output}: has a version {version} already, which is not overwritten; the next free one is "
            f"{max(versions) + 1}"
        )


@contextlib.contextmanager
def new_version(output: pathlib.Path, version: int) -> Iterator[pathlib.Path]:
    """Gives the place to write a version to, which is not made yet; a block that ends well puts it in place.

    After a block that ends with an error nothing is left, `output` and its parents included if they are new.

    Raises:
      ValueError: see `check_version_is_free`.
    """
    check_version_is_free(output, version)
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    try:
        # On the same file system, so that the last step is one rename. Others may not enter the temporary
        # folder; the version inside it has the usual permissions, for a server that runs as another user.
        with tempfile.TemporaryDirectory(prefix=f".{version}.partial-", dir=output) as hidden:
            written = pathlib.Path(hidden) / str(version)
            yield written
            check_version_is_free(output, version)  # another export may have been quicker
            written.rename(output / str(version))
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
                folder.rmdir()
        raise
