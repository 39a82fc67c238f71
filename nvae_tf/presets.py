"""Settings as an `ml_collections.ConfigDict` to be changed: presets by name, files of one's own, the settings of a run.

The presets are the files of the folder `configs`: one a data set, each with a function `get_config`.
"""

import math
import os
import pathlib
import runpy
import traceback
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from nvae_tf import config as configuration
from nvae_tf.config import OLD_NAMES, DataSpec, ExperimentConfig, TrainConfig, check_choice, config_from_dict
from nvae_tf.data_sets import MODEL_SETTINGS, data_spec
from nvae_tf.files import beside_package

# Channels at the image's own resolution, latent groups of the largest scale, and residual cells of each part.
_SIZES = {"tiny": (16, 2, 1), "small": (32, 4, 1), "medium": (32, 8, 2)}
SIZES = (*_SIZES, "published")
SIZE_MEANING = (
    "Size of the model: tiny, small (both for CPUs), medium, or published (the paper's for this data set, or else for "
    "images of this size). It replaces the settings of --config; settings of the model given as flags stay."
)
RECIPES = ("published", "efficient")
RECIPE_MEANING = (
    "How the model is trained: published (the settings of --config), or efficient (docs/recipes.md), which replaces "
    "them: residual scale 0.3, 8 latent channels a group, half the batch, 0.7 of the epochs or images; settings given "
    "as flags stay."
)
# Presets whose models are not the paper's.
_OWN_MODELS = ("own_images", "digits", "photos", "scientific")


def experiment_config(
    settings: str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """The settings of a preset by its name, of a run by its folder, or of a dictionary (`ConfigDict`), checked.

    A preset's settings may be changed: `experiment_config("digits", {"train.steps": 100})`; with `"size": "tiny"` the
    model has another size (`model_of_size`), and with `"recipe": "efficient"` another way of training
    (`recipe_settings`). ValueError: a wrong setting.
    """
    if overrides is not None and not (isinstance(settings, str) and isinstance(overrides, Mapping)):
        wrong = configuration.shown(overrides)
        raise ValueError(f"overrides = {wrong}: must be as {{'train.steps': 100}}, beside a preset's name")
    is_name = isinstance(settings, str) and settings not in preset_files()
    if is_name and os.path.isfile(file := os.path.join(settings, "config.json")):
        if overrides is not None:
            raise ValueError(f"{settings}: the settings of a run can't be changed; leave the overrides out")
        return configuration.read_config(file)
    if isinstance(settings, str):
        settings, given = preset(settings).unlock(), dict(overrides or {})
        size, recipe = given.pop("size", None), given.pop("recipe", None)
        for place, value in given.items():
            group, _, name = str(place).partition(".")
            check_choice(f"override {place}", group, settings, what="no group of settings; give names as train.steps")
            with settings.ignore_type():  # the type is checked below
                settings[group][name] = value
        settings.model.update(model_of_size(size, config_from_dict(DataSpec, settings.data), given))
        for group, values in recipe_settings(recipe, settings, given).items():
            settings[group].update(values)
    return config_from_dict(ExperimentConfig, settings)


def model_of_size(size: str | None, data: DataSpec, given: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of the model that a size sets for images of known height and width, less those that are given."""
    if size is None:
        return {}
    check_choice("setting size", size, SIZES)
    if None in data.image_shape:
        raise ValueError(f"setting size = {size!r}: give data.height, data.width and data.channels too")
    side = min(data.height, data.width)
    channels, groups, cells = _SIZES.get(size, (0, 0, 0))
    # Latents have 16 pixels at most in the small models, and half of the image's in the medium one; the fewest are 4.
    blocks = 1 if size == "medium" else max(1, math.ceil(math.log2(side / 16)))
    scales = 3 if size == "medium" else max(1, min(3, math.ceil(math.log2(side / 2**blocks)) - 1))
    settings = {"num_latent_scales": scales, "num_groups_per_scale": groups, "min_groups_per_scale": 1}
    settings |= {"adaptive_groups": True, "num_flows": 0}
    for part in ("pre", "post"):
        settings |= {f"num_{part}process_blocks": blocks, f"num_{part}process_cells": cells}
    for part in ("encoder", "decoder"):
        # Each block doubles the channels.
        settings[f"num_channels_{part}"] = max(8, channels // 2 ** (blocks - 1))
        settings[f"num_cells_per_group_{part}"] = cells
    if size == "published":
        name = "cifar10" if side <= 32 else "celeba64" if side <= 64 else "celebahq256"
        name = data.name if data.name in preset_files().keys() - _OWN_MODELS else name
        settings = {setting: preset(name).model[setting] for setting in settings}
    return {setting: value for setting, value in settings.items() if f"model.{setting}" not in given}


def recipe_settings(recipe: str | None, settings: Mapping[str, Any], given: Iterable[str]) -> dict[str, dict]:
    """The settings that a recipe (None: published) changes, in their groups, less those that are given."""
    check_choice("setting recipe", "published" if recipe is None else recipe, RECIPES)
    if recipe != "efficient":
        return {}
    train = config_from_dict(TrainConfig, settings.get("train", {}))
    batch_size, part = train.batch_size, train.accumulate_steps
    if "train.batch_size" not in given:
        batch_size = max(1, batch_size // part // 2) * part  # microbatches stay equal
    changed = {"epochs": max(1, round(0.7 * train.epochs)), "batch_size": batch_size}
    changed["steps"] = round(0.7 * train.steps * train.batch_size / batch_size)
    groups = {"model": {"residual_scale": 0.3, "num_latent_per_group": 8}, "train": changed}
    return {
        group: {name: value for name, value in values.items() if f"{group}.{name}" not in given}
        for group, values in groups.items()
    }


def preset(name: str) -> ConfigDict:
    """The settings of a preset: `preset("mnist")` reads configs/mnist.py. Values may be changed, no names added."""
    files = preset_files()
    check_choice("preset", name, files, what="no such preset")
    return load_settings(str(files[name])).lock()


def preset_files() -> dict[str, pathlib.Path]:
    """The file of each preset, by name."""
    return {file.stem: file for file in sorted(beside_package("configs").glob("[a-z]*.py"))}


def settings_file(text: str) -> str:
    """The file that the value of a flag `--config` means: a preset's name, or a path."""
    presets = preset_files()
    if os.path.isfile(text):
        return text
    if text not in presets:
        nearest = configuration.did_you_mean(pathlib.Path(text).stem, presets)
        raise ValueError(f"--config={text}: no such preset or file{nearest or '; presets: ' + ', '.join(presets)}")
    return str(presets[text])


def unlocked_config(config: ExperimentConfig) -> ConfigDict:
    """The settings in groups, unlocked; without `objective.total_steps`, which the length of the run gives."""
    settings = ConfigDict(configuration.config_to_dict(config))
    del settings.objective.total_steps
    return _with_placeholders(settings)


def config_for_data(name: str) -> ConfigDict:
    """The default settings for the images of a data set that `nvae_tf.data` knows, unlocked.

    The model's input settings follow the data's: `--config.data.num_bits=5` changes both.
    """
    config = unlocked_config(ExperimentConfig(data=data_spec(name)))
    for setting, data_setting in MODEL_SETTINGS.items():
        config.model[setting] = config.data.get_ref(data_setting)
    return config


def config_like(other: str, name: str) -> ConfigDict:
    """The settings of the preset `other` for the images of the data set called `name`, unlocked."""
    config, settings = config_for_data(name), preset(other)
    for group in ("model", "objective", "optimizer", "train"):
        config[group].update({key: settings[group][key] for key in set(settings[group]) - set(MODEL_SETTINGS)})
    return config


def completed_config(settings: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """Settings with all that is left out of them at its default, unlocked; what follows from the data is left open."""
    config, groups = ConfigDict(settings).unlock(), configuration.config_to_dict(ExperimentConfig())
    del groups["objective"]["total_steps"]
    groups["model"] |= dict.fromkeys(MODEL_SETTINGS)
    for name in ("size", "recipe"):
        if name in config:
            raise ValueError(f"{name} is not for files of settings: give it as the flag --config.{name}")
    for group, values in config.items():
        check_choice(f"setting {group}", group, groups, what="no such setting")
        if not isinstance(values, ConfigDict):
            raise ValueError(f"{group} is a group of settings, not the single value {values!r}")
    for group, defaults in groups.items():
        values = config[group] = config.get(group, ConfigDict())
        for old in OLD_NAMES.keys() & values.keys():
            if values.get(OLD_NAMES[old], values[old]) != values[old]:
                raise ValueError(f"settings {group}.{OLD_NAMES[old]} and its old name differ; give one")
            values[OLD_NAMES[old]] = values[old]
            del values[old]
        values.update({name: default for name, default in defaults.items() if name not in values})
    return _with_placeholders(config)


def load_settings(path: str) -> ConfigDict:
    """The settings of a file, unlocked; those that it leaves out are at their defaults.

    The file is a run's `config.json` or Python with a function `get_config`. What is wrong is a ValueError of one line.
    """
    try:  # a user's file may raise anything
        if path.endswith(".json"):
            config = unlocked_config(configuration.read_config(path))
            # The model follows the data, as in a preset, in what is the same for both.
            for setting, data_setting in MODEL_SETTINGS.items():
                if config.model[setting] == config.data[data_setting]:
                    config.model[setting] = config.data.get_ref(data_setting)
            if config.model.num_classes == config.data.num_classes:
                config.model.num_classes = 0  # left open: `complete_config` takes it from the data again
            return config
        get_config = runpy.run_path(path).get("get_config")
        configuration.check(callable(get_config), "has no function get_config")
        settings = get_config()
        if not isinstance(settings, Mapping | ConfigDict):
            raise ValueError(f"get_config returns {settings!r}, not an ml_collections.ConfigDict as in configs/")
        return completed_config(settings)
    except Exception as error:
        raise ValueError(_in_one_line(error, path)) from error


def _with_placeholders(settings: ConfigDict) -> ConfigDict:
    """The settings, of which those that are None take a value of the setting's type, which a plain None does not."""
    for group, kind in typing.get_type_hints(ExperimentConfig).items():
        for name, expected in typing.get_type_hints(kind).items():
            if name in settings[group] and settings[group].get_type(name) is type(None):
                settings[group][name] = config_dict.placeholder(next(iter(typing.get_args(expected)), expected))
        for old, name in OLD_NAMES.items():  # set and read under the old name, too
            if name in settings[group] and old not in settings[group]:
                settings[group][old] = settings[group].get_ref(name)
    return settings


def _in_one_line(error: Exception, file: str) -> str:
    """What is wrong with the file, and in which line where that is known."""
    if isinstance(error, SyntaxError) and error.filename:
        # Maybe in another file, which this one imports.
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    text = " ".join(str(error).split())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    # A check of this project names the setting, so the kind of error adds nothing.
    text = text if isinstance(error, ValueError | OSError) and not lines else f"{type(error).__name__}: {text}"
    return f"line {lines[-1]}: {text}" if lines else text
