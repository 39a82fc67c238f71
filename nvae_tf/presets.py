"""Settings as an `ml_collections.ConfigDict` to be changed: presets by name, files of one's own, those of a run.

The presets are the files of the folder `configs`: one a data set, each with a function `get_config`.
"""

import pathlib
import runpy
import traceback
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from nvae_tf.config import (
    OLD_NAMES,
    ExperimentConfig,
    check,
    check_choice,
    config_from_dict,
    config_to_dict,
    did_you_mean,
    read_config,
    shown,
)
from nvae_tf.data_sets import MODEL_SETTINGS, data_spec
from nvae_tf.files import beside_package


def experiment_config(
    settings: str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """The settings of a preset by its name, or nested ones (a dictionary, an `ml_collections.ConfigDict`), checked.

    Those of a preset may be changed: `experiment_config("digits", {"train.steps": 100})`. A ValueError names a setting
    that is unknown (and the nearest valid one), of the wrong type or impossible.
    """
    if overrides is not None and not (isinstance(settings, str) and isinstance(overrides, Mapping)):
        raise ValueError(f"overrides = {shown(overrides)}: must be as {{'train.steps': 100}}, beside a preset's name")
    if isinstance(settings, str):
        settings = preset(settings).unlock()
        for place, value in (overrides or {}).items():
            group, _, name = str(place).partition(".")
            check_choice(f"override {place}", group, settings, what="no group of settings; give names as train.steps")
            # The type is checked below.
            with settings.ignore_type():
                settings[group][name] = value
    return config_from_dict(ExperimentConfig, settings)


def preset(name: str) -> ConfigDict:
    """The settings of a preset: `preset("mnist")` those of configs/mnist.py. Values may be changed, no names added."""
    files = preset_files()
    check_choice("preset", name, files, what="no such preset")
    return load_settings(str(files[name])).lock()


def preset_files() -> dict[str, pathlib.Path]:
    """The file of each preset, by name."""
    return {file.stem: file for file in sorted(beside_package("configs").glob("[a-z]*.py"))}


def settings_file(text: str) -> str:
    """The file that the value of a flag `--config` means: a preset's name, or a path, after a colon an argument."""
    name, colon, argument = text.partition(":")
    path, presets = pathlib.Path(name), preset_files()
    if path.is_file():
        return text
    if name in presets:
        return f"{presets[name]}{colon}{argument}"
    if path.is_dir():
        example = path / "config.json"
        raise ValueError(f"--config={path}: a folder; give a file" + (f": {example}" if example.is_file() else ""))
    beside = [str(file) for file in (*path.parent.glob("*.py"), *path.parent.glob("*.json"))] if path.suffix else []
    nearest = did_you_mean(name if beside else path.stem, beside or presets)
    raise ValueError(f"--config={name}: no such preset or file{nearest or '; presets: ' + ', '.join(presets)}")


def default_config() -> ConfigDict:
    """The default settings in groups, unlocked; without `objective.total_steps`, which the length of the run gives."""
    return _unlocked(ExperimentConfig())


def config_for_data(name: str) -> ConfigDict:
    """The default settings for the images of a data set that `nvae_tf.data` knows, unlocked.

    The model's input settings follow those of the data: `--config.data.num_bits=5` changes both.
    """
    config = _unlocked(ExperimentConfig(data=data_spec(name)))
    for setting, data_setting in MODEL_SETTINGS.items():
        config.model[setting] = config.data.get_ref(data_setting)
    return config


def config_like(other: str, name: str) -> ConfigDict:
    """The settings of the preset `other` for the images of the data set called `name`, unlocked."""
    config, settings = config_for_data(name), preset(other)
    for group in ("model", "objective", "optimizer", "train"):
        for setting, value in settings[group].items():
            if group != "model" or setting not in MODEL_SETTINGS:
                config[group][setting] = value
    return config


def completed_config(settings: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """Settings with all that is left out of them at its default, unlocked; what follows from the data is left open."""
    config, groups = ConfigDict(settings).unlock(), typing.get_type_hints(ExperimentConfig)
    for group, values in config.items():
        check_choice(f"setting {group}", group, groups, what="no such setting")
        check(isinstance(values, ConfigDict), f"{group} is a group of settings, not the single value {values!r}")
        for old, name in OLD_NAMES.items():
            if old in values and name not in values:
                values[name] = values[old]
                del values[old]
    for group, defaults in default_config().items():
        if group not in config:
            config[group] = ConfigDict()
        for name, default in defaults.items():
            if name not in config[group] and name not in OLD_NAMES:
                config[group][name] = None if group == "model" and name in MODEL_SETTINGS else default
    return _with_placeholders(config)


def load_settings(path: str) -> ConfigDict:
    """The settings of a file, unlocked; those that it leaves out are at their defaults.

    The file is `config.json` of a run folder, or Python, and after a colon follows what its function `get_config` is
    called with. Whatever is wrong with it is a ValueError of one line.
    """
    name, colon, argument = path.partition(":")
    get_config = None
    # A user's file may raise anything.
    try:
        if name.endswith(".json"):
            config = _unlocked(read_config(name))
            # The model follows the data, as in a preset, in what is the same for both.
            for setting, data_setting in MODEL_SETTINGS.items():
                if config.model[setting] == config.data[data_setting]:
                    config.model[setting] = config.data.get_ref(data_setting)
            if config.model.num_classes == config.data.num_classes:
                # Left open: `complete_config` takes it from the data again.
                config.model.num_classes = 0
            return config
        get_config = runpy.run_path(name).get("get_config")
        check(callable(get_config), "has no function get_config")
        settings = get_config(argument) if colon else get_config()
        returned = f"get_config returns {settings!r}, not settings"
        what = "an ml_collections.ConfigDict, as those of configs/ do"
        check(isinstance(settings, Mapping | ConfigDict), f"{returned}: {what}")
        return completed_config(settings)
    except Exception as error:
        code = getattr(get_config, "__code__", None)
        raise ValueError(_in_one_line(error, name, code and code.co_firstlineno)) from error


def _unlocked(config: ExperimentConfig) -> ConfigDict:
    """The settings in groups, without that which follows from the length of the run."""
    settings = ConfigDict(config_to_dict(config))
    del settings.objective.total_steps
    return _with_placeholders(settings)


def _with_placeholders(settings: ConfigDict) -> ConfigDict:
    """The settings, of which those that are None take a value of the setting's type, which a plain None does not."""
    for group, kind in typing.get_type_hints(ExperimentConfig).items():
        for name, expected in typing.get_type_hints(kind).items():
            if name in settings[group] and settings[group].get_type(name) is type(None):
                placeholder = config_dict.placeholder(next(iter(typing.get_args(expected)), expected))
                settings[group][name] = placeholder
        # Set and read under the old name, too.
        for old, name in OLD_NAMES.items():
            if name in settings[group] and old not in settings[group]:
                settings[group][old] = settings[group].get_ref(name)
    return settings


def _in_one_line(error: Exception, name: str, line: int | None) -> str:
    """What is wrong with the file, and in which line; `line` where no line of the file has raised the error."""
    kind, text = f"{type(error).__name__}: ", " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename:
        # Maybe that of another file, which this one imports.
        place = "" if pathlib.Path(error.filename) == pathlib.Path(name) else f"{error.filename}, "
        return f"{place}line {error.lineno}: {kind}{error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    if frames:
        return f"line {frames[-1].lineno}: {kind}{text}"
    # A check of this project names the setting, so the kind of error adds nothing.
    kind = "" if isinstance(error, ValueError | OSError) else kind
    return (f"line {line}: " if line else "") + kind + text
