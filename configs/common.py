"""What the presets share: the default settings, and those that follow from a data set."""

import dataclasses
import types
import typing

from ml_collections import ConfigDict, FieldReference, config_dict

from nvae_tf.config import ExperimentConfig, config_to_dict
from nvae_tf.data.model_settings import MODEL_SETTINGS
from nvae_tf.data.specs import data_spec
from nvae_tf.data_spec import DataSpec


def default_config() -> ConfigDict:
    """The settings of `nvae_tf.config` in groups, unlocked.

    `objective.total_steps` is left out: the length of the run gives it.
    """
    config = ConfigDict(config_to_dict(ExperimentConfig()))
    del config.objective.total_steps
    for group, kind in typing.get_type_hints(ExperimentConfig).items():
        for name, expected in typing.get_type_hints(kind).items():
            if isinstance(expected, types.UnionType) and config[group][name] is None:
                config[group][name] = _placeholder(kind, name)
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


def _placeholder(kind: type, setting: str) -> FieldReference:
    """Stands for None and takes a value of the setting's type, which a plain None does not."""
    return config_dict.placeholder(typing.get_args(typing.get_type_hints(kind)[setting])[0])
