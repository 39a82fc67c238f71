"""What a look at the images decides: settings of the data that are left open, and settings of the model that follow."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nvae_tf.config import NOISY_SIGNAL, DataSpec, ExperimentConfig, check, check_choice, config_from_dict, shown
from nvae_tf.data.sources import class_names, first_image, load_split, source_at, spread_numbers
from nvae_tf.data_sets import MODEL_SETTINGS
from nvae_tf.errors import require
from nvae_tf.latent_plan import latent_plan
from nvae_tf.presets import SIZES, model_of_size, recipe_settings


def complete_config(settings: Mapping[str, Any], given: Iterable[str] = ()) -> ExperimentConfig:
    """The settings of a run from nested ones of a config file, completed by a look at the images.

    A `size` and a `recipe` set what is not `given` (as "model.num_flows"). ValueError: they are wrong or make no model.
    """
    if (size := settings.get("size")) is not None:
        check_choice("setting size", size, SIZES)  # now, because a look at the images may take long
    groups = {group: dict(values.items()) for group, values in settings.items() if group not in ("size", "recipe")}
    for group, values in recipe_settings(settings.get("recipe"), groups, given).items():
        groups.setdefault(group, {}).update(values)
    spec = complete_spec(config_from_dict(DataSpec, groups.get("data", {})))
    model = groups.setdefault("model", {})
    model |= {name: getattr(spec, data) for name, data in MODEL_SETTINGS.items() if model.get(name) is None}
    model |= model_of_size(size, spec, given)
    if spec.labels and not model.get("num_classes"):
        model["num_classes"] = spec.num_classes
    if spec.noise != "none":
        model |= {"likelihood": spec.likelihood, "noise_variance": spec.unit_noise}
    config = dataclasses.replace(config_from_dict(ExperimentConfig, groups), data=spec)
    latent_plan(config.model)
    return config


def complete_spec(spec: DataSpec) -> DataSpec:
    """The spec with what is None or "auto" decided: by the images and labels, the likelihood by `num_bits`."""
    for name, usual, noise in (("noise_sigma", "estimate", "gaussian"), ("noise_variance", (), "poisson_gaussian")):
        is_meant = spec.noise == noise or getattr(spec, name) == usual
        fault = f"is for --config.data.noise={noise}, and data.noise is {spec.noise}; leave {name} out"
        check(is_meant, f"data.{name} = {shown(getattr(spec, name))}: {fault}")
    source = source_at(spec.path) if spec.source == "auto" else spec.source
    usual = "normal" if spec.range else "bernoulli" if spec.num_bits == 1 else "logistic_mixture"
    likelihood = NOISY_SIGNAL if spec.noise != "none" else spec.likelihood or usual
    spec = dataclasses.replace(spec, source=source, likelihood=likelihood)
    if None in (*spec.image_shape, spec.file_bits):
        first = first_image(spec)
        height, width = _size(spec, first)
        channels, bits = spec.channels or spec.seen_channels(first.channels), spec.file_bits or first.bits
        spec = dataclasses.replace(spec, height=height, width=width, channels=channels, file_bits=bits)
    if spec.num_classes and not spec.labels:
        raise ValueError(f"data.num_classes = {spec.num_classes}: data.labels is False; set --config.data.labels=True")
    if spec.labels and spec.num_classes is None:
        spec = dataclasses.replace(spec, num_classes=len(class_names(spec)))
    if spec.noise == "gaussian" and spec.noise_sigma == "estimate":
        estimate = require("skimage.restoration", "scientific").estimate_sigma
        source = load_split(spec, "train")
        images = (source.read(np.array([number]))[0] for number in spread_numbers(source.count, 256))  # one at a time
        sigmas = [estimate(image, average_sigmas=True, channel_axis=-1) for image in images]
        sigma = float(f"{np.median(sigmas):.4g}")
        fix = "give --config.data.noise_sigma=NUMBER"
        check(sigma > 0.0, f"data.noise_sigma = estimate: the images show no noise; {fix}")
        spec = dataclasses.replace(spec, noise_sigma=sigma)
    return spec


def _size(spec, first):
    """Height and width for the model; one that is not set follows from the other, or from the first image."""
    if spec.height or spec.width:
        return spec.height or spec.width, spec.width or spec.height
    if spec.crop_box and spec.resize == "none":
        left, top, right, bottom = spec.crop_box
        return bottom - top, right - left
    if spec.resize != "none" or None in (first.height, first.width):
        fix = "set --config.data.height=64"
        if spec.resize == "none":
            fix += ", and for images of different sizes --config.data.resize=crop or stretch"
        raise ValueError(f"data.resize = {spec.resize!r}, but to which size? {fix}")
    return first.height, first.width
