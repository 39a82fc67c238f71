"""The settings of the run that a file becomes, by whoever has written the file."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from nvae_tf.config import experiment_config
from nvae_tf.errors import first_line
from nvae_tf.published.imported_settings import RunSettings, imported_settings
from nvae_tf.published.optimizer import saved_step
from nvae_tf.published.settings import model_config_from_published
from nvae_tf.published.settings_to_publish import differing_settings
from nvae_tf.published.torch_file import TorchCheckpoint
from nvae_tf.reports.run_facts import Origin, origin_from_text
from nvae_tf.training.image_counts import image_counts_from_text


def settings_of_run(checkpoint: TorchCheckpoint, data_path: str | None, data_source: str | None) -> RunSettings:
    """Those of the `args`, or, in a file that this project wrote, those that it was written from.

    Args:
      checkpoint: the file.
      data_path: where the images lie (`data.path`); None leaves it to the settings.
      data_source: what kind of source that is (`data.source`); None leaves it to the settings.

    Raises:
      ValueError: a setting is missing, of a wrong type or impossible; or what this project wrote can't be read.
    """
    if checkpoint.own:
        settings = _own_settings(checkpoint)
    else:
        settings = imported_settings(checkpoint.settings, checkpoint.epoch, _step(checkpoint))
    given = {"path": data_path, "source": data_source}
    changes = {name: value for name, value in given.items() if value is not None}
    config = dataclasses.replace(settings.config, data=dataclasses.replace(settings.config.data, **changes))
    return settings._replace(config=config)


def _own_settings(checkpoint: TorchCheckpoint) -> RunSettings:
    own = checkpoint.own
    try:
        config = experiment_config(json.loads(own["config"]))
    # Crooked JSON, JSON of another form, and JSON that is nested without end.
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"'nvae_tf' has no settings that can be read ({first_line(error)}); the file is damaged, or of another "
            "version of this project"
        ) from error
    if unlike := differing_settings(config.model, model_config_from_published(checkpoint.settings)):
        raise ValueError(f"'args' and 'nvae_tf' in the file contradict each other; 'nvae_tf' has {', '.join(unlike)}")
    images = own.get("images") and _parsed(image_counts_from_text, own, "images")
    origin = own.get("origin") and _parsed(origin_from_text, own, "origin")
    return RunSettings(config, _step(checkpoint) or 0, images, origin or Origin())


def _step(checkpoint: TorchCheckpoint) -> int | None:
    return saved_step(checkpoint.optimizer) if checkpoint.global_step is None else checkpoint.global_step


def _parsed(parse: Callable[[str], Any], own: Mapping[str, Any], name: str) -> Any:
    try:
        return parse(own[name])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'nvae_tf' has {name!r} that can't be read ({error}); the file is damaged") from error
