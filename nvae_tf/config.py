"""The settings of a whole experiment: frozen dataclasses, validated, to and from plain dictionaries and JSON.

Nothing here imports TensorFlow, so that a wrong setting is told within a moment and before any work is done.
"""

import dataclasses
import inspect
import json
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from nvae_tf.data_spec import LIKELIHOODS, DataSpec
from nvae_tf.setting_checks import check, check_choice
from nvae_tf.train_config import INTERVALS, TrainConfig

# For what follows from the length of a run, see `resolve_lengths`.
_LONGEST_WARMUP_EPOCHS = 5.0
_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 10, 1000

# What is left of images of 65,536 pixels is then one.
_MOST_HALVINGS = 16


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture and the likelihood (Vahdat & Kautz 2020, section 3 and table 6).

    Images are `[batch, image_height, image_width, image_channels]` in [0, 1]. The network sees the image in the middle
    of a frame of zeros, and the likelihood counts the real pixels only (MNIST: 28 in 32).

    Attributes:
      image_height: height of the images in pixels; follows `data.height`.
      image_width: width of the images in pixels; follows `data.width`.
      image_channels: channels of the images, 1 to 4; follows `data.channels`.
      padded_height: height of the frame; None: the smallest that the hierarchy can halve, often the image's own.
      padded_width: width of the frame; None likewise.
      num_bits: bits per channel that the likelihood resolves, 1 to 8; follows `data.num_bits`.
      likelihood: p(x | z): "bernoulli", "logistic_mixture" (discretized) or "normal".
      num_mixtures: components of the mixture of logistics.
      exact_edges: whether the lowest and highest level of the mixture have their exact mass; False as published.
      num_latent_scales: scales of the latent hierarchy, each half as high and wide as the one below.
      num_groups_per_scale: latent groups of a scale, of the largest where `adaptive_groups` is set.
      adaptive_groups: whether each smaller scale has half as many groups.
      min_groups_per_scale: but at least so many.
      num_latent_per_group: channels of a group's latent.
      num_channels_encoder: channels of the encoder at the image's own resolution; twice as many after each halving.
      num_channels_decoder: the same for the decoder.
      num_preprocess_blocks: blocks before the latent scales, each of which halves height and width.
      num_preprocess_cells: residual cells of such a block.
      num_postprocess_blocks: blocks after the latent scales, each of which doubles height and width.
      num_postprocess_cells: residual cells of such a block.
      num_cells_per_group_encoder: residual cells of the encoder for each group.
      num_cells_per_group_decoder: residual cells of the decoder for each group.
      num_flows: pairs of autoregressive flow cells on each posterior; 0 for Normal posteriors.
      cell_set: which residual cells: "res_mbconv" (the paper's) or another of `nvae_tf.latent_plan`.
      squeeze_excite: whether each cell ends with squeeze and excitation.
      residual_distributions: whether posteriors are relative to the priors (section 3.2).
    """

    image_height: int = 32
    image_width: int = 32
    image_channels: int = 3
    padded_height: int | None = None
    padded_width: int | None = None
    num_bits: int = 8
    likelihood: str = "logistic_mixture"
    num_mixtures: int = 10
    exact_edges: bool = False
    num_latent_scales: int = 1
    num_groups_per_scale: int = 10
    adaptive_groups: bool = False
    min_groups_per_scale: int = 1
    num_latent_per_group: int = 20
    num_channels_encoder: int = 32
    num_channels_decoder: int = 32
    num_preprocess_blocks: int = 1
    num_preprocess_cells: int = 2
    num_postprocess_blocks: int = 1
    num_postprocess_cells: int = 2
    num_cells_per_group_encoder: int = 2
    num_cells_per_group_decoder: int = 2
    num_flows: int = 0
    cell_set: str = "res_mbconv"
    squeeze_excite: bool = True
    residual_distributions: bool = True

    def __post_init__(self):
        zero_allowed = {"num_flows", "num_preprocess_blocks", "num_postprocess_blocks"}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool):
                smallest = 0 if field.name in zero_allowed else 1
                check(value >= smallest, f"model.{field.name} = {value}: must be at least {smallest}")
        check(self.num_bits <= 8, f"model.num_bits = {self.num_bits}: must be from 1 to 8")
        check_choice("model.likelihood", self.likelihood, LIKELIHOODS)
        check(
            self.num_preprocess_blocks + self.num_latent_scales <= _MOST_HALVINGS,
            f"model.num_preprocess_blocks = {self.num_preprocess_blocks} and num_latent_scales = "
            f"{self.num_latent_scales}: more than {_MOST_HALVINGS} together, and each halves the images; use fewer",
        )

    @property
    def size_divisor(self) -> int:
        """What the hierarchy needs height and width to be divisible by: the smallest scale is smaller by this much."""
        return 2 ** (self.num_preprocess_blocks + self.num_latent_scales - 1)

    @property
    def network_height(self) -> int:
        """Height that the network sees, the frame of padding included."""
        return self.padded_height or _round_up(self.image_height, self.size_divisor)

    @property
    def network_width(self) -> int:
        """Width that the network sees, the frame of padding included."""
        return self.padded_width or _round_up(self.image_width, self.size_divisor)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The training loss (Vahdat & Kautz 2020, section 3.2 and appendix A).

    Attributes:
      total_steps: length of the run in steps, which the KL schedule is relative to.
      kl_anneal_portion: part of the run over which the KL weight rises linearly to 1.
      kl_constant_portion: part of the run before that, with the weight `kl_constant_weight`.
      kl_constant_weight: the KL weight at the start.
      regularisation: lambda, the weight of the spectral and the batch-norm regularizers.
      anneal_regularisation: whether lambda goes log-linearly from `regularisation_initial` to `regularisation` as the
        KL weight rises.
      regularisation_initial: lambda at the start where it is annealed.
    """

    total_steps: int = 100_000
    kl_anneal_portion: float = 0.3
    kl_constant_portion: float = 0.0001
    kl_constant_weight: float = 0.0001
    regularisation: float = 1e-2
    anneal_regularisation: bool = False
    regularisation_initial: float = 10.0

    def __post_init__(self):
        check(self.total_steps >= 1, f"objective.total_steps = {self.total_steps}: must be at least 1")
        for name in ("kl_anneal_portion", "kl_constant_portion", "kl_constant_weight"):
            value = getattr(self, name)
            check(0.0 <= value <= 1.0, f"objective.{name} = {value}: must lie in [0, 1]")
        check(
            self.regularisation >= 0.0,
            f"objective.regularisation = {self.regularisation}: must not be negative",
        )
        if self.anneal_regularisation:
            for name in ("regularisation", "regularisation_initial"):
                value = getattr(self, name)
                check(value > 0.0, f"objective.{name} = {value}: must be positive to be annealed on a log scale")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adamax and its learning-rate schedule (Vahdat & Kautz 2020, appendix A).

    Attributes:
      learning_rate: the highest learning rate, reached after the warm-up.
      learning_rate_min: the rate at the end of the cosine decay.
      warmup_epochs: length of the linear warm-up in epochs; None: 5, but at most a tenth of the run.
      weight_decay: L2 penalty of Adamax, added to the gradients.
      ema_momentum: above 0 an exponential moving average of the weights is kept (`ema = momentum * ema +
        (1 - momentum) * weight` at every step), which evaluation and generation then use.
    """

    learning_rate: float = 1e-2
    learning_rate_min: float = 1e-4
    warmup_epochs: float | None = None
    weight_decay: float = 3e-4
    ema_momentum: float = 0.0

    def __post_init__(self):
        check(
            self.learning_rate > 0.0,
            f"optimizer.learning_rate = {self.learning_rate}: must be greater than 0",
        )
        for name in ("learning_rate_min", "warmup_epochs", "weight_decay"):
            value = getattr(self, name)
            check(value is None or value >= 0.0, f"optimizer.{name} = {value}: must not be negative")
        check(0.0 <= self.ema_momentum < 1.0, f"optimizer.ema_momentum = {self.ema_momentum}: must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything that a run needs to be made again."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    data: DataSpec = dataclasses.field(default_factory=DataSpec)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


def resolve_lengths(
    config: ExperimentConfig, steps_per_epoch: int, total_steps: int, recorded: ExperimentConfig | None = None
) -> ExperimentConfig:
    """The settings of a run of known length, with a number for each that follows from it: where None is set.

    `objective.total_steps` is that length. `optimizer.warmup_epochs` is 5 epochs, as published, but at most a tenth of
    the run. `train.checkpoint_every_steps`, `evaluate_every_steps` and `sample_every_steps` are a tenth of the run, but
    at least 10 steps and at most 1,000.

    Args:
      config: the settings; what is not None is kept.
      steps_per_epoch: whole batches in the training images.
      total_steps: the length of the run.
      recorded: the settings in the folder of a run that is continued. Its warm-up is kept, and the intervals too unless
        the length has changed.
    """
    tenth = total_steps // 10
    # The last rate of a warm-up of one step, from which the schedule goes on, is 0.
    warmup_epochs = min(_LONGEST_WARMUP_EPOCHS, tenth / steps_per_epoch) if tenth > 1 else 0.0
    interval = min(max(tenth, _SHORTEST_INTERVAL), _LONGEST_INTERVAL, total_steps)
    optimizer, train = config.optimizer, config.train
    if recorded is not None:
        optimizer = _with_defaults(optimizer, {"warmup_epochs": recorded.optimizer.warmup_epochs})
        if recorded.objective.total_steps == total_steps:
            train = _with_defaults(train, {name: getattr(recorded.train, name) for name in INTERVALS})
    return dataclasses.replace(
        config,
        objective=dataclasses.replace(config.objective, total_steps=total_steps),
        optimizer=_with_defaults(optimizer, {"warmup_epochs": warmup_epochs}),
        train=_with_defaults(train, dict.fromkeys(INTERVALS, interval)),
    )


def experiment_config(settings: Mapping[str, Any]) -> ExperimentConfig:
    """Turns nested settings (a dictionary or an `ml_collections.ConfigDict`) into an `ExperimentConfig`.

    Raises:
      ValueError: a setting is unknown (the message names the nearest valid one), of the wrong type or impossible.
    """
    return config_from_dict(ExperimentConfig, settings)


def config_from_dict(kind: type, settings: Mapping[str, Any], where: str = "") -> Any:
    """Builds the frozen dataclass `kind` from a mapping; `where` is the dotted place for messages.

    Raises:
      ValueError: see `experiment_config`.
    """
    types_of_fields = typing.get_type_hints(kind)
    values = {}
    for name, value in settings.items():
        check_choice(f"setting {where}{name}", name, tuple(types_of_fields), what="no such setting")
        expected = types_of_fields[name]
        if dataclasses.is_dataclass(expected):
            check(
                isinstance(value, Mapping) or hasattr(value, "items"),
                f"{where}{name} is a group of settings ({', '.join(typing.get_type_hints(expected))}), "
                f"not the single value {value!r}",
            )
            values[name] = config_from_dict(expected, value, f"{where}{name}.")
        else:
            values[name] = _converted(value, expected, f"{where}{name}")
    return kind(**values)


def preset(name: str) -> Any:
    """The settings of a preset by its name, as an `ml_collections.ConfigDict` that may be changed.

    Example:
      >>> config = nvae_tf.experiment_config(nvae_tf.config.preset("mnist"))

    Raises:
      ValueError: there is no such preset; the message has the nearest name.
    """
    # Not at the top: presets are made of the settings here.
    from nvae_tf import presets

    return presets.preset(name)


def setting_meanings(kind: type) -> dict[str, str]:
    """What each setting of a dataclass means, from the section Attributes of its docstring."""
    names = [field.name for field in dataclasses.fields(kind)]
    section = inspect.getdoc(kind).partition("Attributes:\n")[2].partition("\n\n")[0]
    parts = re.split(rf"^ *({'|'.join(names)}): ", section, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], (" ".join(text.split()) for text in parts[2::2]), strict=True))
    return {name: found[name] for name in names}


def config_to_dict(config: Any) -> dict[str, Any]:
    """The settings as nested plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def config_to_json(config: ExperimentConfig) -> str:
    """The settings as readable JSON text."""
    return json.dumps(config_to_dict(config), indent=2) + "\n"


def read_config(path: str | pathlib.Path) -> ExperimentConfig:
    """Reads `config.json` of a run folder.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not JSON, or a setting in it is unknown or impossible.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a run folder written by train.main has one")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        check(isinstance(settings, Mapping), f"{path} is no JSON object of settings; restore it from a copy of the run")
        return experiment_config(settings)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore it from a copy of the run") from error


def _with_defaults(group: Any, values: Mapping[str, Any]) -> Any:
    """The group with those of the values whose setting is None."""
    return dataclasses.replace(group, **{name: value for name, value in values.items() if getattr(group, name) is None})


def _round_up(size: int, divisor: int) -> int:
    return -(-size // divisor) * divisor


def _converted(value: Any, expected: Any, where: str) -> Any:
    """Checks the type of one value; whole floats pass for integers and integers for floats, as flags give them."""
    optional = isinstance(expected, types.UnionType)
    if optional:
        # None and nothing are how a flag sets back what a config file has set.
        if value in (None, "", "None", (), (None,), ("None",)):
            return None
        expected = typing.get_args(expected)[0]
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if expected is tuple and (value is None or isinstance(value, list | tuple)):
        # JSON knows no tuples, and a flag with nothing behind it gives one of nothing.
        return tuple(item for item in value or () if item not in ("", None))
    matches = isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
    check(matches, f"{where} = {value!r}: must be of type {expected.__name__}{' or None' if optional else ''}")
    return value
