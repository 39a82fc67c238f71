"""What every command shares: reading flags, the manual page of `--help`, and errors of one line."""

import contextlib
import difflib
import itertools
import os
import pathlib
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

from absl import app, flags, logging

from nvae_tf.config import ExperimentConfig, config_to_dict
from nvae_tf.errors import TRACEBACK_VARIABLE, USER_ERROR_CODE, exit_on_user_error
from nvae_tf.files import check_writable

_HELP = {"-h", "--h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull"}
_WIDTH = 100
# Follows from the length of the run, so no one sets it.
DERIVED_SETTINGS = ("objective.total_steps",)
_CONVERSION_ERRORS = {
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is not a whole number",
    r"could not convert string to float: (.*)": r"\1 is not a number",
    r"\('Non-boolean argument to boolean flag', (.*)\)": r"\1 is neither True nor False",
}
PRESETS = pathlib.Path("configs")
DATA_PATH_HELP = "Where the images lie now, if no longer at the run's data.path."


def run(main: Callable[[], None]) -> None:
    """Reads the flags of the command that `main` belongs to, and runs it.

    `--help` prints the module's docstring and its flags. A wrong flag, and an error of the kinds that a user
    can cause, end the process with one line and exit code 2.
    """
    module = sys.modules[main.__module__]

    # Of odd metadata, which do no harm, and of large pictures.
    warnings.filterwarnings("ignore", module="PIL")

    def guarded(_: Sequence[str]) -> None:
        with exit_on_user_error():
            main()

    app.run(guarded, flags_parser=lambda arguments: _read_flags(arguments, module))


def valid_settings() -> tuple[str, ...]:
    """All settings that a config and its flags know, as `train.batch_size`."""
    groups = config_to_dict(ExperimentConfig())
    names = (f"{group}.{name}" for group, settings in groups.items() for name in settings)
    return tuple(name for name in names if name not in DERIVED_SETTINGS)


def check_config_flags(arguments: Sequence[str]) -> None:
    """Looks at `--config` and at the names of all `--config.group.setting` flags before any of them is used.

    Raises:
      ValueError: there is no such file or setting; the message has the nearest one.
    """
    valid = valid_settings()
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        setting = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if setting and setting[1] not in valid:
            nearest = difflib.get_close_matches(setting[1], valid, n=1, cutoff=0.0)[0]
            raise ValueError(f"--config.{setting[1]}: no such setting; did you mean --config.{nearest}?")
        file = re.fullmatch(r"--?config(?:=(.*))?", argument)
        if file:
            _check_config_file(pathlib.Path((following if file[1] is None else file[1]).partition(":")[0]))


def _check_config_file(path: pathlib.Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        example = path / "config.json"
        raise ValueError(f"--config={path}: a folder; give a file" + (f": {example}" if example.is_file() else ""))
    present = [str(file) for file in (*path.parent.glob("*.py"), *path.parent.glob("*.json"))]
    present = present or [str(file) for file in PRESETS.glob("[a-z]*.py")]
    nearest = difflib.get_close_matches(str(path), present, n=1, cutoff=0.0)
    raise ValueError(f"--config={path}: no such file" + (f"; did you mean {nearest[0]}?" if nearest else ""))


def check_run_folder(path: str) -> None:
    """Looks at the run folder of a command, before it begins to work.

    Raises:
      FileNotFoundError: there is none.
    """
    if not pathlib.Path(path).is_dir():
        raise FileNotFoundError(f"--workdir={path}: no such folder; give the --workdir of a run of train.main")
    if not pathlib.Path(path, "config.json").is_file():
        raise FileNotFoundError(
            f"--workdir={path}: not a run folder, it has no config.json; give the --workdir of a run of train.main"
        )


def check_output(path: pathlib.Path, overwrite: bool) -> None:
    """Looks at the file that a command is to write, before it begins to work.

    Raises:
      ValueError: it is there already and is not to be overwritten, or no PNG file can be there or be written.
    """
    if path.is_dir():
        raise ValueError(f"--output={path}: a folder; give the name of a file")
    if path.suffix.lower() != ".png":
        raise ValueError(f"--output={path}: the picture is a PNG file; give a name that ends in .png")
    check_writable(path.parent, f"--output={path}")
    if path.exists() and not overwrite:
        raise ValueError(f"--output={path}: there is such a file; give another name, or --overwrite to replace it")


def _read_flags(arguments: Sequence[str], module: ModuleType) -> list[str]:
    if _HELP & set(arguments[1:]):
        with contextlib.suppress(BrokenPipeError):
            print(manual_page(module), flush=True)
            sys.exit(0)
        # Whoever reads has seen enough; nothing is left to be flushed at the end.
        sys.stdout = None
        sys.exit(0)
    try:
        with exit_on_user_error():
            check_config_flags(arguments[1:])
            rest = flags.FLAGS(arguments)
            # TensorFlow's Python side tells trifles at level INFO, which absl would set now.
            if flags.FLAGS["verbosity"].using_default_value:
                flags.FLAGS.verbosity = logging.WARNING
            if rest[1:]:
                raise ValueError(f"{rest[1]!r}: not a flag; flags are written --name=value (see --help)")
        return rest
    except flags.Error as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        missing = re.match(r"flag --(\w+)=None: ", str(error))
        message = f"--{missing[1]} is missing" if missing else _in_plain_words(str(error))
        print(f"error: {message} (see --help)", file=sys.stderr)
        sys.exit(USER_ERROR_CODE)


def _in_plain_words(message: str) -> str:
    """What Python says of a value that is not of a setting's type, without Python's words."""
    for pattern, words in _CONVERSION_ERRORS.items():
        message = re.sub(pattern, words, message)
    return message


def manual_page(module: ModuleType) -> str:
    """The docstring of a command and what its flags mean."""
    sections = [(module.__doc__ or "").strip(), "Flags:"]
    for flag in flags.FLAGS.get_flags_for_module(module):
        default = "" if flag.default is None else f" (default: {flag.default})"
        text = " ".join(f"{flag.help or ''}{default}".split())
        sections.append(f"  --{flag.name}\n{textwrap.indent(textwrap.fill(text, _WIDTH - 6), ' ' * 6)}")
    if hasattr(module, "CONFIG"):
        sections.append(
            "Settings, each a flag --config.GROUP.NAME=VALUE, and their values where a config file says nothing "
            "else:\n" + _list_of_settings()
        )
    return "\n\n".join(sections)


def _list_of_settings() -> str:
    groups = config_to_dict(ExperimentConfig())
    lines = []
    for group, settings in groups.items():
        values = [f"{name}={value}" for name, value in settings.items() if f"{group}.{name}" not in DERIVED_SETTINGS]
        lines.append(f"  {group}")
        lines.append(textwrap.indent(textwrap.fill("  ".join(values), _WIDTH - 4, break_on_hyphens=False), "    "))
    return "\n".join(lines)
