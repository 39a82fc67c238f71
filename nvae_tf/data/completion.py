"""Completes the settings of a run by looking at its images: before TensorFlow is started, where that is possible."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nvae_tf.config import ExperimentConfig, config_from_dict, experiment_config
from nvae_tf.data.model_settings import MODEL_SETTINGS
from nvae_tf.data.picture_files import PictureHeader
from nvae_tf.data.sources import first_image, source_at
from nvae_tf.data_spec import DataSpec


def complete_config(settings: Mapping[str, Any]) -> ExperimentConfig:
    """The settings of a run from those of a config file, with all that they leave to the data.

    Args:
      settings: nested; an `ml_collections.ConfigDict` or a dictionary.

    Raises:
      ValueError, FileNotFoundError, ConnectionError: a setting is impossible, or the images can't be used.
    """
    groups = {group: dict(values.items()) for group, values in settings.items()}
    spec = complete_spec(config_from_dict(DataSpec, groups.get("data", {}), "data."))
    model = groups.setdefault("model", {})
    for name, data_name in MODEL_SETTINGS.items():
        if model.get(name) is None:
            model[name] = getattr(spec, data_name)
    return dataclasses.replace(experiment_config(groups), data=spec)


def complete_spec(spec: DataSpec) -> DataSpec:
    """The spec with what is None or "auto" in it decided: by the first image, and by `num_bits` for the likelihood.

    Raises:
      ValueError, FileNotFoundError, ConnectionError: see `complete_config`.
    """
    if spec.source == "auto":
        spec = dataclasses.replace(spec, source=source_at(spec.path))
    if spec.likelihood is None:
        spec = dataclasses.replace(spec, likelihood="bernoulli" if spec.num_bits == 1 else "logistic_mixture")
    if None in (*spec.image_shape, spec.file_bits):
        found = first_image(spec)
        height, width = _size(spec, found)
        spec = dataclasses.replace(
            spec,
            height=height,
            width=width,
            channels=spec.channels or found.channels,
            file_bits=spec.file_bits or found.bits,
        )
    return spec


def _size(spec: DataSpec, found: PictureHeader) -> tuple[int, int]:
    """Height and width that the model gets; one that is not set follows from the other, or from the first image."""
    if spec.height or spec.width:
        return spec.height or spec.width, spec.width or spec.height
    if spec.resize != "none":
        raise ValueError(
            f"data.resize = {spec.resize!r}, but to which size? Set --config.data.height=64 (in pixels; "
            "--config.data.width too if it is another)"
        )
    if spec.crop_box:
        left, top, right, bottom = spec.crop_box
        return bottom - top, right - left
    if None in (found.height, found.width):
        raise ValueError(
            f"The images of {spec.source_name} have different sizes: set --config.data.resize=crop (or stretch) and "
            "--config.data.height=64 (in pixels; --config.data.width too if it is another)"
        )
    return found.height, found.width
