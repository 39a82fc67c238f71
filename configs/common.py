"""What the presets share: the default settings, and those that follow from a data set; and settings of other origin."""

import dataclasses
import os
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict

from nvae_tf.config import ExperimentConfig, config_to_dict, read_config
from nvae_tf.data.spec import MODEL_SETTINGS, data_spec
from nvae_tf.data_spec import DataSpec
from nvae_tf.setting_checks import check, check_choice


def default_config() -> ConfigDict:
    """The settings of `nvae_tf.config` in groups, unlocked.

    `objective.total_steps` is left out: the length of the run gives it.
    """
    return _unlocked(ExperimentConfig())


def recorded_config(path: str | os.PathLike) -> ConfigDict:
    """The settings of a run from its `config.json`, unlocked.

    Those of the model follow those of the data, as in a preset, where both are the same.

    Raises:
      FileNotFoundError, ValueError: see `nvae_tf.config.read_config`.
    """
    config = _unlocked(read_config(path))
    for setting, data_setting in MODEL_SETTINGS.items():
        if config.model[setting] == config.data[data_setting]:
            config.model[setting] = config.data.get_ref(data_setting)
    return config


def completed_config(settings: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """Settings of some groups, with all that is left out of them at its default, unlocked.

    Settings of the model that follow from the data are left to `nvae_tf.data.spec`.

    Raises:
      ValueError: there is no such group, or a single value in the place of one.
    """
    config, groups = ConfigDict(settings).unlock(), typing.get_type_hints(ExperimentConfig)
    for group, values in config.items():
        check_choice(f"setting {group}", group, groups, what="no such setting")
        check(isinstance(values, ConfigDict), f"{group} is a group of settings, not the single value {values!r}")
    for group, defaults in default_config().items():
        if group not in config:
            config[group] = ConfigDict()
        for name, default in defaults.items():
            if name not in config[group]:
                config[group][name] = None if group == "model" and name in MODEL_SETTINGS else default
            if config[group].get_type(name) is type(None):
                config[group][name] = _placeholder(groups[group], name)
    return config


def config_for_data(name: str) -> ConfigDict:
    """The default settings for the images of a data set that `nvae_tf.data` knows, unlocked.

    The model's input settings follow those of the data: `--config.data.num_bits=5` changes both.
    """
    config = default_config()
    for setting, value in dataclasses.asdict(data_spec(name)).items():
        if value is not None:
            config.data[setting] = value
        else:
            config.data[setting] = _placeholder(DataSpec, setting)
    for setting, data_setting in MODEL_SETTINGS.items():
        config.model[setting] = config.data.get_ref(data_setting)
    return config


def config_like(preset: ConfigDict, name: str) -> ConfigDict:
    """The settings of a preset for the images of another data set, unlocked.

    All of `data`, and the settings of the model that follow from it, are those of the data set called `name`.
    """
    config = config_for_data(name)
    for group in ("model", "objective", "optimizer", "train"):
        for setting, value in preset[group].items():
            if group != "model" or setting not in MODEL_SETTINGS:
                config[group][setting] = value
    return config


def _unlocked(config: ExperimentConfig) -> ConfigDict:
    """The settings in groups, without that which follows from the length of the run."""
    settings = ConfigDict(config_to_dict(config))
    del settings.objective.total_steps
    for group, kind in typing.get_type_hints(ExperimentConfig).items():
        for name, value in settings[group].items():
            if value is None:
                settings[group][name] = _placeholder(kind, name)
    return settings


def _placeholder(kind: type, setting: str) -> FieldReference:
    """Stands for None and takes a value of the setting's type, which a plain None does not."""
    expected = typing.get_type_hints(kind)[setting]
    return config_dict.placeholder(next(iter(typing.get_args(expected)), expected))
