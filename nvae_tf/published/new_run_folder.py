"""A run folder that appears whole or not at all."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from nvae_tf.errors import first_line
from nvae_tf.published.early_checks import check_writable

CONFIG_NAME = "config.py"
# For those who want to change settings in a file; `--config` takes config.json too.
CONFIG_TEXT = '''"""The settings of this run, for train.main: those of config.json beside this file.

    python -m train.main --config=RUN/config.py --workdir=RUN
"""

import json
import pathlib

from nvae_tf.presets import default_config


def get_config():
    settings = json.loads(pathlib.Path(__file__).with_name("config.json").read_text())
    # Follows from the length of the run.
    del settings["objective"]["total_steps"]
    config = default_config()
    config.update(settings)
    return config.lock()
'''


def check_output_is_free(output: pathlib.Path) -> None:
    """Checks that a run folder can be made at `output`, which may be missing or empty.

    Raises:
      ValueError: it can't.
    """
    place = output.resolve()
    if place.exists():
        if not place.is_dir():
            raise ValueError(f"--output={output}: a file; name a new or an empty folder")
        found = sorted(entry.name for entry in place.iterdir())
        if found:
            raise ValueError(f"--output={output}: not empty, it holds {found[0]}; name a new or an empty folder")
        # An empty folder is replaced by the whole one.
        if place.is_mount() or place == pathlib.Path.cwd():
            what = "a mount point" if place.is_mount() else "the folder that the command runs in"
            raise ValueError(f"--output={output}: {what}, which can't be replaced; name a new folder, {output / 'run'}")
    parent = next(folder for folder in place.parents if folder.exists())
    if not parent.is_dir():
        raise ValueError(f"--output={output}: can't be made, {parent} is a file; name another folder")
    check_writable("--output", output, parent)


@contextlib.contextmanager
def new_run_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a hidden folder beside `output` to write to, which takes its place when the block ends well.

    After a block that ends with an error nothing is left; a killed process may leave `.NAME.partial-*` behind.

    Raises:
      OSError: in the block something could not be written.
      ValueError: see `check_output_is_free`.
    """
    check_output_is_free(output)
    place = output.resolve()
    parent = place.parent
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    try:
        # Others may not enter the hidden folder; the one inside it has the usual permissions.
        with _failure_told(output), tempfile.TemporaryDirectory(prefix=f".{place.name}.partial-", dir=parent) as hidden:
            written = pathlib.Path(hidden) / place.name
            written.mkdir()
            yield written
            check_output_is_free(output)  # somebody else may have been quicker
            written.rename(place)
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
                folder.rmdir()
        raise


@contextlib.contextmanager
def _failure_told(output: pathlib.Path) -> Iterator[None]:
    """Names the folder that the user knows: the hidden one is gone when the message is read."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error).rpartition(f"/{output.resolve().name}/")[2]
        raise OSError(
            f"--output={output}: could not be written, and nothing of it is left ({reason}). Make room on its disk, or "
            "name a folder on another one"
        ) from error
