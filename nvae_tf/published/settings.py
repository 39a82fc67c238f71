"""The settings of a published checkpoint in this project's words."""

import contextlib
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nvae_tf.config import ModelConfig, ObjectiveConfig
from nvae_tf.errors import first_line


class Images(NamedTuple):
    """Those of a published data set: square; padded to a size; of 1 bit if they are binary.

    Attributes:
      data_name: this project's name of the data set.
    """

    data_name: str
    size: int
    channels: int
    padded_size: int | None = None
    binary: bool = False


# The data sets that the published code knows, by its names for them.
PUBLISHED_IMAGES = {
    "mnist": Images("mnist", 28, 1, 32, binary=True),
    "omniglot": Images("omniglot", 28, 1, 32, binary=True),
    "stacked_mnist": Images("stacked_mnist", 28, 3, 32),
    "cifar10": Images("cifar10", 32, 3),
    "celeba_64": Images("celeba64", 64, 3),
    "celeba_256": Images("celebahq256", 256, 3),
    "imagenet_32": Images("imagenet32", 32, 3),
    "imagenet_64": Images("imagenet64", 64, 3),
    "ffhq": Images("ffhq256", 256, 3),
    "lsun_bedroom_128": Images("lsun_bedroom128", 128, 3),
    "lsun_bedroom_256": Images("lsun_bedroom256", 256, 3),
    "lsun_church_64": Images("lsun_church64", 64, 3),
    "lsun_church_128": Images("lsun_church128", 128, 3),
}

# Settings that mean the same under another name.
MODEL_SETTINGS = {
    "num_latent_scales": "num_latent_scales",
    "num_groups_per_scale": "num_groups_per_scale",
    "num_latent_per_group": "num_latent_per_group",
    "num_channels_encoder": "num_channels_enc",
    "num_channels_decoder": "num_channels_dec",
    "num_preprocess_blocks": "num_preprocess_blocks",
    "num_preprocess_cells": "num_preprocess_cells",
    "num_postprocess_blocks": "num_postprocess_blocks",
    "num_postprocess_cells": "num_postprocess_cells",
    "num_cells_per_group_encoder": "num_cell_per_cond_enc",
    "num_cells_per_group_decoder": "num_cell_per_cond_dec",
    "num_flows": "num_nf",
    "cell_set": "arch_instance",
    "squeeze_excite": "use_se",
    "residual_distributions": "res_dist",
}

OBJECTIVE_SETTINGS = {
    "kl_anneal_portion": "kl_anneal_portion",
    "kl_constant_portion": "kl_const_portion",
    "kl_constant_weight": "kl_const_coeff",
    "regularisation": "weight_decay_norm",
    "anneal_regularisation": "weight_decay_norm_anneal",
    "regularisation_initial": "weight_decay_norm_init",
}
OPTIMIZER_SETTINGS = {
    "learning_rate": "learning_rate",
    "learning_rate_min": "learning_rate_min",
    "warmup_epochs": "warmup_epochs",
    "weight_decay": "weight_decay",
}
TRAIN_SETTINGS = {"batch_size": "batch_size", "epochs": "epochs", "seed": "seed"}

# Old files lack these.
_DEFAULTS = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10}
# Of the `args` of a file; others have no effect.
USED_SETTINGS = {"dataset", "num_x_bits", *_DEFAULTS}.union(
    *(group.values() for group in (MODEL_SETTINGS, OBJECTIVE_SETTINGS, OPTIMIZER_SETTINGS, TRAIN_SETTINGS))
)


def model_config_from_published(settings: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a published checkpoint from its `args`.

    Raises:
      ValueError: a setting is missing or of a wrong type, or the data set is not one that the published code knows.
    """
    with _wrong_types_told():
        return _model_config(settings)


def objective_config_from_published(settings: Mapping[str, Any]) -> ObjectiveConfig:
    """The loss of a published checkpoint from its `args`; the number of steps is not in them.

    Raises:
      ValueError: a setting is missing or of a wrong type.
    """
    values = {name: _setting(settings, published) for name, published in OBJECTIVE_SETTINGS.items()}
    with _wrong_types_told():
        return ObjectiveConfig(**values | {"anneal_regularisation": bool(values["anneal_regularisation"])})


def _model_config(settings: Mapping[str, Any]) -> ModelConfig:
    settings = {**_DEFAULTS, **settings}
    dataset = _setting(settings, "dataset")
    if dataset not in PUBLISHED_IMAGES:
        raise ValueError(
            f"the checkpoint's data set {dataset!r} is not one of {', '.join(sorted(PUBLISHED_IMAGES))}, "
            "so the size of its images is not known"
        )
    images = PUBLISHED_IMAGES[dataset]
    num_mixtures = _setting(settings, "num_mixture_dec")
    values = {name: _setting(settings, published) for name, published in MODEL_SETTINGS.items()}
    for name in ("squeeze_excite", "residual_distributions"):
        values[name] = bool(values[name])
    values |= {
        "num_bits": 1 if images.binary else _setting(settings, "num_x_bits"),
        "num_mixtures": num_mixtures,
        "min_groups_per_scale": settings["min_groups_per_scale"],
    }
    # Sizes are calculated from them before anything else looks at their types.
    for name, value in values.items():
        kind = str if name == "cell_set" else int
        if not isinstance(value, kind):
            raise TypeError(f"model.{name} = {reprlib.repr(value)}: must be of type {kind.__name__}")
    return ModelConfig(
        image_height=images.size,
        image_width=images.size,
        image_channels=images.channels,
        padded_height=images.padded_size,
        padded_width=images.padded_size,
        likelihood="bernoulli" if images.binary else "normal" if num_mixtures == 1 else "logistic_mixture",
        adaptive_groups=bool(settings["ada_groups"]),
        **values,
    )


@contextlib.contextmanager
def _wrong_types_told() -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        raise ValueError(f"'args' has a setting of a wrong type ({first_line(error)}); the file is damaged") from error


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    if name not in settings:
        raise ValueError(f"the checkpoint's settings lack {name!r}; they have {', '.join(sorted(settings))}")
    return settings[name]
