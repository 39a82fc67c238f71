"""The settings of published checkpoints, their `args`, in this project's words, and back."""

import dataclasses
import reprlib
import typing
from collections.abc import Mapping
from typing import Any

from nvae_tf import data_sets
from nvae_tf.config import DataSpec, ExperimentConfig, ModelConfig, ObjectiveConfig, check_choice, resolve_lengths
from nvae_tf.data_sets import DATA_SPECS
from nvae_tf.latent_plan import CELL_SETS, InvertedBranch


def _lsun(what: str, size: int) -> DataSpec:
    """Bedrooms or churches of another size, which are the same images."""
    return dataclasses.replace(DATA_SPECS[f"lsun_{what}64"], name=f"lsun_{what}{size}", height=size, width=size)


# Data sets of the published code by its names: this project's, and the numbers of training and test images if known.
PUBLISHED_DATA = {
    "mnist": (DATA_SPECS["mnist"], (60_000, 10_000)),
    "omniglot": (DATA_SPECS["omniglot"], (24_345, 8_070)),
    "stacked_mnist": (DATA_SPECS["stacked_mnist"], (60_000, 10_000)),
    "cifar10": (DATA_SPECS["cifar10"], (50_000, 10_000)),
    "celeba_64": (DATA_SPECS["celeba64"], (162_770, 19_962)),
    "celeba_256": (DATA_SPECS["celebahq256"], (27_000, 3_000)),
    "imagenet_32": (DATA_SPECS["imagenet32"], (1_281_149, 49_999)),
    "imagenet_64": (DATA_SPECS["imagenet64"], (1_281_149, 49_999)),
    "ffhq": (DATA_SPECS["ffhq256"], (63_000, 7_000)),
    "lsun_bedroom_128": (_lsun("bedroom", 128), None),
    "lsun_bedroom_256": (_lsun("bedroom", 256), None),
    "lsun_church_64": (DATA_SPECS["lsun_church64"], None),
    "lsun_church_128": (_lsun("church", 128), None),
}

# This project's names of settings, by group, and the published ones.
_SAME_NAMES = """
num_latent_scales num_groups_per_scale min_groups_per_scale num_latent_per_group
num_preprocess_blocks num_preprocess_cells num_postprocess_blocks num_postprocess_cells
""".split()
MODEL_SETTINGS = dict(zip(_SAME_NAMES, _SAME_NAMES, strict=True)) | {
    "num_channels_encoder": "num_channels_enc",
    "num_channels_decoder": "num_channels_dec",
    "num_cells_per_group_encoder": "num_cell_per_cond_enc",
    "num_cells_per_group_decoder": "num_cell_per_cond_dec",
    "num_flows": "num_nf",
    "num_mixtures": "num_mixture_dec",
    "cell_set": "arch_instance",
    "squeeze_excite": "use_se",
    "residual_distributions": "res_dist",
    "adaptive_groups": "ada_groups",
}
OBJECTIVE_SETTINGS = {
    "kl_anneal_portion": "kl_anneal_portion",
    "kl_constant_portion": "kl_const_portion",
    "kl_constant_weight": "kl_const_coeff",
    "regularization": "weight_decay_norm",
    "anneal_regularization": "weight_decay_norm_anneal",
    "regularization_initial": "weight_decay_norm_init",
}
# Settings with the same name in both.
OPTIMIZER_SETTINGS = ("learning_rate", "learning_rate_min", "warmup_epochs", "weight_decay")
TRAIN_SETTINGS = ("batch_size", "epochs", "seed")
_DEFAULTS = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10}  # old files lack these
# Of the `args` of a file; others have no effect.
USED_SETTINGS = {"dataset", "num_x_bits", *MODEL_SETTINGS.values(), *OBJECTIVE_SETTINGS.values()}
USED_SETTINGS |= {*OPTIMIZER_SETTINGS, *TRAIN_SETTINGS}
# Which branch of a cell set stands in which of the published tables, and how its cells change the size.
_TABLES = {"enc": ("encoder", "down"), "dec": ("decoder", "up")}
_TABLES |= {"pre": ("preprocess", "down"), "post": ("postprocess", "up")}


def model_config_from_published(settings: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a published checkpoint from its `args`; ValueError where a setting is missing or wrong."""
    settings = {**_DEFAULTS, **settings}
    dataset = _setting(settings, "dataset", str)
    check_choice("the checkpoint's data set", dataset, PUBLISHED_DATA)
    spec, _ = PUBLISHED_DATA[dataset]
    values = {name: getattr(spec, data_name) for name, data_name in data_sets.MODEL_SETTINGS.items()}
    values |= _group(ModelConfig, MODEL_SETTINGS, settings)
    if spec.likelihood != "bernoulli":
        values["num_bits"] = _setting(settings, "num_x_bits", int)
        values["likelihood"] = "normal" if values["num_mixtures"] == 1 else "logistic_mixture"
    return ModelConfig(**values)


def objective_config_from_published(settings: Mapping[str, Any]) -> ObjectiveConfig:
    """The loss of a published checkpoint from its `args`, which lack the number of steps; raises as the above does."""
    return ObjectiveConfig(**_group(ObjectiveConfig, OBJECTIVE_SETTINGS, settings))


def _group(group: type, names: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
    kinds = typing.get_type_hints(group)
    return {name: _setting(settings, published, kinds[name]) for name, published in names.items()}


def _setting(settings: Mapping[str, Any], name: str, kind: type) -> Any:
    if name not in settings:
        raise ValueError(f"the checkpoint's settings lack {name!r}; they have {', '.join(sorted(settings))}")
    value = settings[name]
    if not isinstance(value, {float: int | float, bool: int}.get(kind, kind)):
        raise ValueError(f"'args' has {name} = {reprlib.repr(value)}, which must be of type {kind.__name__}")
    return bool(value) if kind is bool else value  # zeros and ones pass for truth values


def published_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The `args` of a published checkpoint for an experiment; ValueError where they can't express a setting.

    The data set is the published one of the same name, or else with such images.
    """
    model, total_steps = config.model, config.objective.total_steps
    if any(isinstance(branch, type) for branch in CELL_SETS[model.cell_set]):
        raise ValueError(f"the published form can't say model.cell_set = {model.cell_set!r}")
    if model.num_bits > 8:
        raise ValueError(f"the published form can't say model.num_bits = {model.num_bits}")
    # A warm-up that is not set follows from the run's length.
    config = resolve_lengths(config, max(total_steps // config.train.epochs, 1), total_steps)
    values = {published: getattr(model, name) for name, published in MODEL_SETTINGS.items()}
    values |= {published: getattr(config.objective, name) for name, published in OBJECTIVE_SETTINGS.items()}
    values |= {name: getattr(config.optimizer, name) for name in OPTIMIZER_SETTINGS}
    values |= {name: getattr(config.train, name) for name in TRAIN_SETTINGS}
    if model.likelihood == "normal":
        values["num_mixture_dec"] = 1
    # Of binary images it is what the published commands say, without effect.
    values["num_x_bits"] = 8 if model.likelihood == "bernoulli" else model.num_bits
    shape = (*model.image_shape, model.network_height, model.network_width)
    fitting = [
        name
        for name, (spec, _) in PUBLISHED_DATA.items()
        if shape == (*spec.image_shape, spec.padded_height or spec.height, spec.padded_width or spec.width)
        and (spec.likelihood == "bernoulli") == (model.likelihood == "bernoulli")
    ]
    if not fitting:
        words = "{}x{}x{} images, {}x{} with their frame".format(*shape)
        raise ValueError(f"the published form knows no data set of {words} and likelihood {model.likelihood!r}")
    values["dataset"] = min(fitting, key=lambda name: PUBLISHED_DATA[name][0].name != config.data.name)
    values["fast_adamax"] = True
    if unlike := differing_settings(model, model_config_from_published(values)):
        raise ValueError(f"the published form can't say {', '.join(unlike)}")
    return values


def differing_settings(model: ModelConfig, other: ModelConfig) -> list[str]:
    """Settings of one model that differ from another's, as `model.exact_edges = True`, but for those without effect."""
    mine, others = _with_effect(model), _with_effect(other)
    return [f"model.{name} = {value!r}" for name, value in mine.items() if value != others[name]]


def cell_tables(cell_set: str) -> dict[str, list[str]]:
    """The operations of a cell set's branches, as `arch_instance` of published checkpoints has them."""
    tables = {"ar_nn": [""]}
    for short, (part, change) in _TABLES.items():
        branch = getattr(CELL_SETS[cell_set], part)
        if isinstance(branch, InvertedBranch):
            operations = [f"mconv_e{branch.expansion}k{branch.kernel_size}g{branch.groups or 0}"]
        else:
            operations = [f"res_{operation}" for operation in branch.operations]
        tables |= {f"normal_{short}": operations, f"{change}_{short}": operations}
    return tables


def _with_effect(model: ModelConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(model)
    settings |= {"padded_height": model.network_height, "padded_width": model.network_width}
    if model.likelihood != "logistic_mixture":
        settings |= {"num_mixtures": None, "exact_edges": None}
    return settings
