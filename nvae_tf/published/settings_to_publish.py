"""This project's settings in the words of published checkpoints: their `args` and `arch_instance`."""

import dataclasses
from typing import Any

from nvae_tf.config import ExperimentConfig, ModelConfig, resolve_lengths
from nvae_tf.latent_plan import CELL_SETS, Branch, InvertedBranch
from nvae_tf.published.settings import (
    MODEL_SETTINGS,
    OBJECTIVE_SETTINGS,
    OPTIMIZER_SETTINGS,
    PUBLISHED_IMAGES,
    TRAIN_SETTINGS,
    Images,
    model_config_from_published,
)

# Which branch of a cell set stands in which of the published tables.
_TABLES = {"enc": "encoder", "dec": "decoder", "pre": "preprocess", "post": "postprocess"}


def published_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The `args` of a published checkpoint for the settings of an experiment.

    Of the data sets that the published code knows, that of the same name is named if there is one, else the first
    whose images are of the same size and kind.

    Raises:
      ValueError: the published form can't say all settings of the model; the message names those.
    """
    model, total_steps = config.model, config.objective.total_steps
    # A warm-up that is not set is that of the run's length.
    config = resolve_lengths(config, max(total_steps // config.train.epochs, 1), total_steps)
    values = {published: getattr(model, name) for name, published in MODEL_SETTINGS.items()}
    values |= {
        "ada_groups": model.adaptive_groups,
        "min_groups_per_scale": model.min_groups_per_scale,
        "num_mixture_dec": 1 if model.likelihood == "normal" else model.num_mixtures,
        # Binary images have one bit whatever is said here; this is what the published commands say.
        "num_x_bits": 8 if model.likelihood == "bernoulli" else model.num_bits,
    }
    for group, words in (
        (config.objective, OBJECTIVE_SETTINGS),
        (config.optimizer, OPTIMIZER_SETTINGS),
        (config.train, TRAIN_SETTINGS),
    ):
        values |= {published: getattr(group, name) for name, published in words.items()}
    values |= {"dataset": _data_set(config), "fast_adamax": True}
    if unlike := differing_settings(model, model_config_from_published(values)):
        raise ValueError(f"the published form can't say {', '.join(unlike)}")
    return values


def differing_settings(model: ModelConfig, other: ModelConfig) -> list[str]:
    """What one model has otherwise than another, `model.exact_edges = True`; what has no effect is passed over."""
    mine, others = _with_effect(model), _with_effect(other)
    return [f"model.{name} = {value!r}" for name, value in mine.items() if value != others[name]]


def cell_tables(cell_set: str) -> dict[str, list[str]]:
    """The operations of a cell set's branches, as `arch_instance` of published checkpoints has them."""
    branches = {short: getattr(CELL_SETS[cell_set], part) for short, part in _TABLES.items()}
    tables = {}
    for short in ("enc", "dec", "pre", "post"):
        change = "down" if short in ("enc", "pre") else "up"
        tables |= {f"{kind}_{short}": _operations(branches[short]) for kind in ("normal", change)}
    return tables | {"ar_nn": [""]}


def _data_set(config: ExperimentConfig) -> str:
    fitting = [name for name, images in PUBLISHED_IMAGES.items() if _are_images_of(images, config.model)]
    if not fitting:
        model = config.model
        raise ValueError(
            f"the published form knows no data set with images of model.image_height = {model.image_height}, "
            f"image_width = {model.image_width}, image_channels = {model.image_channels}, in a frame of "
            f"{model.network_height}x{model.network_width}, model.likelihood = {model.likelihood!r}"
        )
    return min(fitting, key=lambda name: PUBLISHED_IMAGES[name].data_name != config.data.name)


def _are_images_of(images: Images, model: ModelConfig) -> bool:
    padded = images.padded_size or images.size
    return (
        (model.image_height, model.image_width, model.image_channels) == (images.size, images.size, images.channels)
        and (model.network_height, model.network_width) == (padded, padded)
        and images.binary == (model.likelihood == "bernoulli")
    )


def _with_effect(model: ModelConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(model)
    settings |= {"padded_height": model.network_height, "padded_width": model.network_width}
    if model.likelihood != "logistic_mixture":
        settings |= {"num_mixtures": None, "exact_edges": None}
    return settings


def _operations(branch: Branch) -> list[str]:
    if isinstance(branch, InvertedBranch):
        return [f"mconv_e{branch.expansion}k{branch.kernel_size}g{branch.groups or 0}"]
    return [f"res_{operation}" for operation in branch.operations]
