"""`--config`: a Python file with a function `get_config`, or the `config.json` of a run."""

import pathlib
import runpy
import traceback
from collections.abc import Mapping

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.common import completed_config, recorded_config
from nvae_tf.setting_checks import check

# The flag belongs to the command that asks for it, and is on its manual page.
flags.disclaim_key_flags()


def define_config() -> flags.FlagHolder:
    """--config, and with it a flag --config.GROUP.NAME for each setting."""
    text = "File with the settings of the run: one of configs/, your own, or the config.json of another run."
    holder = config_flags.DEFINE_config_file("config", None, text)
    flags.FLAGS["config"].parser = _SettingsParser()
    flags.mark_flag_as_required("config")
    return holder


class _SettingsParser(flags.ArgumentParser):
    def parse(self, path: str) -> ConfigDict:
        return load_settings(path).lock()


def load_settings(path: str) -> ConfigDict:
    """The settings of a file, unlocked; those that it leaves out are at their defaults.

    Args:
      path: a file that ends in .json, as `config.json` of a run folder; or any other, which is Python, and after a
        colon what its function `get_config` is called with.

    Raises:
      ValueError: whatever is wrong with the file, in one line, with the number of its line where there is one.
    """
    name, colon, argument = path.partition(":")
    try:
        if name.endswith(".json"):
            return recorded_config(name)
        get_config = runpy.run_path(name).get("get_config")
        check(callable(get_config), "has no function get_config")
    # A file of somebody may raise anything.
    except Exception as error:
        raise ValueError(_in_one_line(error, name)) from error
    try:
        settings = get_config(argument) if colon else get_config()
        check(
            isinstance(settings, Mapping | ConfigDict),
            f"get_config returns {settings!r}, not settings: an ml_collections.ConfigDict, as those of configs/ do",
        )
        return completed_config(settings)
    except Exception as error:
        first_line = getattr(get_config, "__code__", None) and get_config.__code__.co_firstlineno
        raise ValueError(_in_one_line(error, name, first_line)) from error


def _in_one_line(error: Exception, name: str, line: int | None = None) -> str:
    """What is wrong with the file, and in which line; `line` where no line of the file has raised the error."""
    kind, text = f"{type(error).__name__}: ", " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename:
        # Maybe that of another file, which this one imports.
        place = "" if pathlib.Path(error.filename) == pathlib.Path(name) else f"{error.filename}, "
        return f"{place}line {error.lineno}: {kind}{error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    if frames:
        return f"line {frames[-1].lineno}: {kind}{text}"
    # One of this project's, of a file that says what it should not.
    kind = "" if isinstance(error, ValueError | OSError) else kind
    return (f"line {line}: " if line else "") + kind + text
