"""The common part of the scripts in `train` and `export`: flags and their checks, `--help`, errors of one line.

No other file of the library knows flags.
"""

import difflib
import functools
import importlib
import inspect
import itertools
import os
import pathlib
import re
import signal
import sys
import textwrap
import types
import typing
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict, config_dict, config_flags

from nvae_tf.config import OLD_NAMES, ExperimentConfig, check_choice, named_settings, setting_meanings
from nvae_tf.errors import exit_on_user_error, start_tensorflow_quietly, wrap_read_errors
from nvae_tf.files import check_has_config, check_writable
from nvae_tf.presets import RECIPE_MEANING, SIZE_MEANING, load_settings, settings_file, unlocked_config

# A flag that is defined here belongs to the script that asks for it, and is on its page of --help.
flags.disclaim_key_flags()

HELP = {"-h", "--h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull"}
FOLDER = "folder"
IMPORT_HELP = "Python modules, also of the current folder, that register likelihoods and cells of your own."
RUN_HELP = "Run folder of nvae-train; or digits or fashion, models that come with this package; or hf://user/repo."


def run(main: Callable[..., None], words: str | None = None, page: str | None = None) -> None:
    """Reads the flags of the script that `main` belongs to, and calls it.

    Annotated parameters of `main` become flags, see `define_parameters`, and get their values; the values of the
    flag `words` may also stand without its name. `--help` prints the flags after the `page`, by default the script's
    docstring. A wrong flag, or another error that a user can cause, ends the process with one line and exit code 2.
    """
    module, parameters = sys.modules[main.__module__], inspect.signature(main).parameters
    # An installed command calls from a script of its own, to which absl would count the flags.
    name = sys.argv[0] if module.__name__ == "__main__" else module.__name__
    define_parameters(parameters, name)
    flags.DEFINE_list("import", [], IMPORT_HELP, module_name=name)
    if words:
        _name_words(words)
    # Pillow warns of odd but harmless metadata, and of large pictures.
    warnings.filterwarnings("ignore", module="PIL")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"

    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # as Ctrl-C: what is half-written is removed
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

    def guarded(_: Sequence[str]) -> None:
        with exit_on_user_error():
            main(**parameter_values(parameters))

    page = (page or module.__doc__ or "").strip()
    app.run(guarded, flags_parser=lambda arguments: _read_flags(arguments, module, page))


def command(main: Callable[..., None], words: str | None = None) -> Callable[[], None]:
    """The function that an installed command calls: it runs a script's `main`, see `run`.

    Where Python was started with the script, `python -m train.main`, it is run at once: this call stands last.
    """
    script = functools.partial(run, main, words)
    if main.__module__ == "__main__":
        script()
    return script


def _name_words(flag: str) -> None:
    """Lets the value of a flag, or the values of one that takes several, stand without its name between other flags."""
    switches = {name for name in flags.FLAGS if flags.FLAGS[name].boolean}
    for place, (before, word) in enumerate(zip(sys.argv, sys.argv[1:], strict=False), 1):
        name = before.lstrip("-").removeprefix("no")
        takes_value = before.startswith("-") and "=" not in before and name not in switches
        if not word.startswith("-") and (place == 1 or not takes_value):
            sys.argv[place] = f"--{flag}={word}"
            if not isinstance(flags.FLAGS[flag], flags.MultiFlag):
                return


def take_mode(what: str, modes: Collection[str], page: str, default: str = "") -> str:
    """Takes the mode that stands first out of the command line; prints the page of all modes for `--help`."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first in HELP:
        print_page(page)
    if default and (not first or first.startswith("-")):
        return default
    with exit_on_user_error():
        check_choice(f"the {what}", first, modes, f"not one of the {what.split()[0]}s")
    return sys.argv.pop(1)


def define_config() -> Any:
    """Defines --config, and with it a flag --config.GROUP.NAME for each setting; returns its holder."""

    class SettingsParser(flags.ArgumentParser):
        def parse(self, text: str) -> ConfigDict:
            settings = load_settings(settings_file(text))
            settings.size, settings.recipe = config_dict.placeholder(str), config_dict.placeholder(str)
            return settings.lock()

    text = "The settings of the run: the name of a preset (digits), a file of your own, or the config.json of a run."
    holder = config_flags.DEFINE_config_file("config", None, text)
    flags.FLAGS["config"].parser = SettingsParser()
    flags.mark_flag_as_required("config")
    return holder


def define_parameters(parameters: Mapping[str, inspect.Parameter], module: str | None = None) -> None:
    """Defines a flag of the same name for each parameter of a function; `parameter_values` reads them.

    A parameter is annotated `Annotated[type, meaning, *limits]`: limits are the least and the largest number, or all
    texts that are allowed. A sequence is written with commas between its values; paths also as several flags.
    """

    class WithCommas(flags.ArgumentParser):
        def __init__(self, read: Callable[[str], Any], can_be_one: bool):
            self._read, self._can_be_one = read, can_be_one

        def parse(self, value: Any) -> Any:
            if not isinstance(value, str):
                return value
            # A file's name may have commas.
            words = [value] if self._read is str and os.path.exists(value) else value.split(",")
            values = [self._read(word.strip()) for word in words]
            return values[0] if self._can_be_one and len(values) == 1 else values

    for name, parameter in parameters.items():
        annotated, meaning, *limits = typing.get_args(parameter.annotation)
        kinds = typing.get_args(annotated) if isinstance(annotated, types.UnionType) else (annotated,)
        element_types = [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is Sequence]
        element = element_types[0] if element_types else kinds[0]
        required = parameter.default is parameter.empty
        default, about = None if required else parameter.default, {"required": required, "module_name": module}
        if os.PathLike in kinds:
            flags.DEFINE_multi(WithCommas(str, can_be_one=False), None, name, default, meaning, **about)
        elif element is bool:
            flags.DEFINE_boolean(name, default, meaning, **about)
        elif element is str and limits:
            flags.DEFINE_enum(name, default, limits, meaning, **about)
        else:
            parser = {int: flags.IntegerParser, float: flags.FloatParser, str: flags.ArgumentParser}[element](*limits)
            parser = WithCommas(parser.parse, element in kinds) if element_types else parser
            # absl.logging has a flag --log_dir, for programs that let it write files.
            flags.DEFINE(parser, name, default, meaning, allow_override=True, **about)


def parameter_values(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The values of the flags of `define_parameters`, by name."""
    values = {name: flags.FLAGS[name].value for name in parameters}
    # A flag that was given several times has a list for each.
    repeated = [name for name in parameters if isinstance(flags.FLAGS[name], flags.MultiFlag) and values[name]]
    return values | {name: list(itertools.chain(*values[name])) for name in repeated}


def check_config_flags(arguments: Sequence[str]) -> None:
    """Checks `--config` and the names of all `--config.group.setting` flags before any of them is used."""
    valid = _settings_with_flags()
    for argument in arguments:
        setting = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        group, _, name = setting[1].rpartition(".") if setting else ("", "", "")
        if setting and f"{group}.{OLD_NAMES.get(name, name)}".removeprefix(".") not in valid:
            nearest = difflib.get_close_matches(setting[1], valid, n=1, cutoff=0.0)[0]
            raise ValueError(f"--config.{setting[1]}: no such setting; did you mean --config.{nearest}?")
    config = flag_value(arguments, "config")
    if config:
        settings_file(config)
    if flag_value(arguments, "config.recipe") and (not config or config.endswith(".json")):
        raise ValueError("--config.recipe: a recipe changes a preset or a file of your own, not the settings of a run")


def _settings_with_flags() -> list[str]:
    """The names of all settings but `objective.total_steps`, which follows from the length of the run."""
    return ["size", "recipe", *(name for name in named_settings(ExperimentConfig()) if name != "objective.total_steps")]


def flag_value(arguments: Sequence[str], name: str) -> str | None:
    """The value of a flag, written `--name=value` or `--name value`: the last one, or None without."""
    value = None
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if match := re.fullmatch(rf"--?{name}(?:=(.*))?", argument):
            value = following if match[1] is None else match[1]
    return value


def run_folder(path: str) -> pathlib.Path:
    """The folder of the run that a command only reads, which may be a shared one (`nvae_tf.runs.sharing`)."""
    # Not at the top: most commands need no Hub.
    from nvae_tf.runs.sharing import find_run_folder

    folder = find_run_folder(path)
    check_has_config(folder, f"--workdir={path}", "give a run folder of nvae-train, or digits or fashion")
    return folder


def check_run_folder(path: str, is_written: bool = True) -> None:
    """Checks the run folder of a command that writes into it, unless its output goes elsewhere, before it works."""
    from nvae_tf.runs.sharing import copy_command

    if copy := copy_command(path):
        raise ValueError(f"--workdir={path}: this command writes into the run folder; make one by `{copy}`")
    check_has_config(pathlib.Path(path), f"--workdir={path}")
    if is_written:
        check_writable(pathlib.Path(path), f"--workdir={path}")


class OutputPlace(NamedTuple):
    """A file or a folder to write; `kind` is the file's ending in small letters, or FOLDER."""

    path: pathlib.Path
    kind: str


def output_place(value: str, kinds: Sequence[str], overwrite: bool, flag: str = "output") -> OutputPlace:
    """The file or folder that a flag names; a folder is meant where it exists or the name ends in a slash.

    `kinds` are the possible kinds: ".png", ... and FOLDER. ValueError where it can't be written or replaced.
    """
    path, given = pathlib.Path(value), f"--{flag}={value}"
    kind = FOLDER if path.is_dir() or value.endswith(("/", os.sep)) else path.suffix.lower()
    if kind not in kinds or (kind == FOLDER and path.is_file()):
        allowed = " or ".join("a folder that ends in /" if each == FOLDER else f"a file *{each}" for each in kinds)
        raise ValueError(f"{given}: give the name of {allowed}")
    check_writable(path if path.is_dir() else path.parent, given)
    if not overwrite and (any(path.iterdir()) if path.is_dir() else path.exists()):
        raise ValueError(f"{given}: is there already; give another name, or --overwrite")
    return OutputPlace(path, kind)


def _read_flags(arguments: Sequence[str], module: types.ModuleType, page: str) -> list[str]:
    with exit_on_user_error():
        if HELP & set(arguments[1:]):
            print_page(manual_page(module, page, arguments[1:]))
        if names := flag_value(arguments[1:], "import"):
            start_tensorflow_quietly()  # which the modules import
            sys.path.append(os.getcwd())  # as `python -m` has it, an installed command does not
            for name in filter(None, names.split(",")):
                with wrap_read_errors(f"--import={name}: not imported (", "); give the module's name, without .py"):
                    importlib.import_module(name)
        try:
            if hasattr(module, "CONFIG"):
                check_config_flags(arguments[1:])
                arguments = _with_recorded_config(arguments)
            rest = flags.FLAGS(arguments)
        except flags.Error as error:
            name = getattr(error, "flagname", None)
            settings = {setting.rpartition(".")[2]: setting for setting in _settings_with_flags()}
            nearest = difflib.get_close_matches(name or "", settings, n=1, cutoff=0.85)
            if hasattr(module, "CONFIG") and nearest:
                raise ValueError(f"--{name}: no such flag; did you mean --config.{settings[nearest[0]]}?") from error
            missing = re.match(r"flag --(\w+)=None: ", str(error))
            text = re.sub(r"invalid literal for int\(\) .*: (.*)", r"\1 is no whole number", str(error))
            text = re.sub(r"could not convert string to float: (.*)", r"\1 is no number", text)
            raise ValueError(f"--{missing[1]} is missing" if missing else f"{text} (see --help)") from error
        # At level INFO, absl's default, TensorFlow's Python side logs trifles.
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.WARNING
        if rest[1:]:
            raise ValueError(f"{rest[1]!r}: not a flag; flags are written --name=value (see --help)")
    return rest


def _with_recorded_config(arguments: Sequence[str]) -> list[str]:
    """The arguments; where they name the folder of a run and no settings, with the settings of that run."""
    workdir = flag_value(arguments, "workdir")
    if flag_value(arguments, "config") is not None or not workdir:
        return list(arguments)
    recorded = pathlib.Path(workdir, "config.json")
    if not recorded.is_file():
        fix = "to begin one, give its settings: --config=PRESET, or --config=FILE"
        raise ValueError(f"--workdir={workdir}: no run to continue, there is no {recorded}; {fix}")
    return [arguments[0], f"--config={recorded}", *arguments[1:]]


def print_page(page: str) -> None:
    """Prints a page of `--help` and ends the process."""
    try:
        print(page, flush=True)
    except BrokenPipeError:
        # The reader, a pager, has closed the pipe; nothing is left to be flushed at the end.
        sys.stdout = None
    sys.exit(0)


def manual_page(module: types.ModuleType, page: str, arguments: Sequence[str] = ()) -> str:
    """The page of a script, its flags with their meanings, and the settings that the arguments choose."""
    sections = [page, "Flags:"]
    for flag in flags.FLAGS.get_flags_for_module(module):
        values = flag.default if isinstance(flag.default, list | tuple) else [flag.default]
        default = "" if values in ([None], []) else f" (default: {','.join(map(str, values))})"
        sections.append(_entry(f"--{flag.name}", f"{flag.help or ''}{default}"))
    if hasattr(module, "CONFIG"):
        chosen = flag_value(arguments, "config")
        source = "the default settings" if chosen is None else f"--config={chosen}"
        config = unlocked_config(ExperimentConfig()) if chosen is None else load_settings(settings_file(chosen))
        sections.append(f"Settings, each a flag --config.GROUP.NAME=VALUE, with the values of {source}:")
        sections.append(_entry("--config.size=SIZE", SIZE_MEANING))
        sections.append(_entry("--config.recipe=RECIPE", RECIPE_MEANING))
        for group, kind in typing.get_type_hints(ExperimentConfig).items():
            # Without `objective.total_steps`, which follows from the length of the run.
            values, texts = config[group], setting_meanings(kind)
            entries = [_entry(f"{group}.{name} = {values[name]}", texts[name]) for name in texts if name in values]
            sections.append("\n".join(entries))
    return "\n\n".join(sections)


def _entry(head: str, text: str) -> str:
    return f"  {head}\n{textwrap.indent(textwrap.fill(' '.join(text.split()), 94), ' ' * 6)}"
