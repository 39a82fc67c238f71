"""What the presets share: the default settings, and those that follow from a data set."""

import types
import typing

from ml_collections import ConfigDict, config_dict

from nvae_tf.config import ExperimentConfig, config_to_dict
from nvae_tf.data.model_settings import image_settings
from nvae_tf.data.specs import data_spec


def default_config() -> ConfigDict:
    """The settings of `nvae_tf.config` in groups, unlocked.

    `objective.total_steps` is left out: the length of the run gives it.
    """
    config = ConfigDict(config_to_dict(ExperimentConfig()))
    del config.objective.total_steps
    for group, kind in typing.get_type_hints(ExperimentConfig).items():
        for name, expected in typing.get_type_hints(kind).items():
            if isinstance(expected, types.UnionType):
                # A placeholder, because a flag can't override a plain None.
                config[group][name] = config_dict.placeholder(typing.get_args(expected)[0])
    return config


def config_for_data(name: str) -> ConfigDict:
    """The default settings for the images of a data set that `nvae_tf.data` knows, unlocked."""
    config = default_config()
    config.data.name = name
    config.model.update(image_settings(data_spec(name)))
    return config
