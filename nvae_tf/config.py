"""The settings of an experiment: frozen dataclasses, validated, to and from plain dictionaries and JSON.

Nothing here imports TensorFlow, so that a wrong setting is reported at once, before any work is done. Whether the
settings of a model fit its images is checked in latent_plan.py, and what needs the data in data/{spec,sources}.py.
"""

import dataclasses
import difflib
import functools
import inspect
import json
import math
import pathlib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

__version__ = "0.2.0"

LIKELIHOODS = ("bernoulli", "logistic_mixture", "normal")
NOISY_SIGNAL = "noisy_signal"  # the likelihood that follows from `data.noise`
# Classes of one's own, by the setting that names them: see `nvae_tf.register_likelihood` and `nvae_tf.register_cell`.
REGISTERED: dict[str, dict[str, type]] = {"likelihood": {}, "cell_set": {}}
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
RECOMPUTATIONS = ("none", "groups", "all")
LARGEST_SEED = 2**31 - 1
# Float32 counts no further one by one, so that more samples would not change their sum.
MOST_IMPORTANCE_SAMPLES = 2**24
MAX_PIXELS = 64_000_000
MOST_CHANNELS = 32
MOST_CLASSES = 100_000
OLD_NAMES = {  # former names of settings, which files and flags may still give
    "regularisation": "regularization",
    "anneal_regularisation": "anneal_regularization",
    "regularisation_initial": "regularization_initial",
    "binarise": "binarize",
    "initialise_from": "initialize_from",
}
# Settings of which None stands for a number that follows from the length of the run, see `resolve_lengths`.
INTERVALS = ("checkpoint_every_steps", "evaluate_every_steps", "sample_every_steps")

CHECKPOINTS = ("latest", "best")  # a run's checkpoints by name, for `nvae_tf.load` and the commands
CHECKPOINT_HELP = "Which of the run's checkpoints: the latest, or the one with the best test score (train.keep_best)."
# Where the latents of samples come from: the prior as it was trained, or that which nvae-prior has learned.
PRIORS = ("model", "reweighted")
PRIOR_HELP = "The prior that latents are drawn from: the model's own, or the reweighted one of nvae-prior."
PRIOR_KINDS = ("classifier", "mixture")
# The help of flags that several commands share.
DATA_PATH_HELP = "Where the images lie now, if no longer at the run's data.path."
TEMPERATURE_HELP = (
    "What multiplies the priors' sigma, greater than 0: one number, or one for every scale (the smallest first) or "
    "every latent group (the top one first), as 0.7,0.8."
)
BATCH_NORM_HELP = (
    "Readjust the batch-norm statistics to the temperature with this number of batches before samples are drawn (the "
    "paper takes 500), in a copy of the model; 0 for none."
)

_MOST_HALVINGS = 16  # 16 halvings reduce a side of 65,536 pixels to one pixel
_LARGEST_MAX_PIXELS = 178_956_970  # Pillow opens no larger picture


def check(valid: bool, message: str) -> None:
    """Raises ValueError with the message unless `valid`."""
    if not valid:
        raise ValueError(message)


def check_choice(where: str, name: str, names: Iterable[str], what: str = "not one of the choices") -> None:
    """Raises ValueError unless `name` is one of `names`; the message suggests the nearest, and lists them if few."""
    names = tuple(names)
    if name not in names:
        nearest = did_you_mean(str(name), names)
        listed = "" if nearest and len(names) > 20 else f" ({', '.join(names)})"
        hint = "; a module registers others: --import=MODULE" if where.rpartition(".")[2] in REGISTERED else ""
        raise ValueError(f"{where} = {shown(name)}: {what}{listed}{nearest}{hint}")


def shown(value: Any) -> str:
    """A value that a user gave, for a message: its `repr` in one line of at most 100 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def whole_number(where: str, value: Any, smallest: int = 0, largest: int = LARGEST_SEED) -> int:
    """The value as an int; ValueError unless it is a whole number in this range."""
    rule = f"must be a whole number from {smallest} to {largest}"
    return int(real_number(where, value, rule, smallest, largest, whole=True))


def real_number(
    where: str, value: Any, rule: str, smallest: float = -math.inf, largest: float = math.inf, whole: bool = False
) -> float:
    """The value, also of NumPy or TensorFlow, as a float; a ValueError says the rule unless it is finite and so."""
    try:
        number = complex(math.nan if isinstance(value, str | bytes | bool) else value)
    except (TypeError, ValueError, OverflowError):
        number = complex(math.nan)
    is_finite = math.isfinite(number.real) and not number.imag
    if not is_finite or not smallest <= number.real <= largest or (whole and number.real % 1):
        raise ValueError(f"{where} = {shown(value)}: {rule}")
    return number.real


class NotRegistered(ValueError):
    """A setting names a likelihood or a cell whose module this process has not imported."""


def register(setting: str, name: str, taken: Iterable[str], kind: type) -> type:
    """Adds a class of one's own to `REGISTERED`, and returns it. Files have its full name, `module:name`.

    The same class again, as of a notebook's cell, replaces the former. ValueError: the name is no word, or another's.
    """
    if not (isinstance(name, str) and name.isidentifier()) or not isinstance(kind, type):
        raise ValueError(f"{setting} {shown(name)} for {shown(kind)}: register a class, by a name like 'my_cell_2'")
    other = REGISTERED[setting].get(name, kind)
    if name in taken or (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
        owner = "nvae_tf" if name in taken else f"{other.__module__}.{other.__qualname__}"
        raise ValueError(f"{setting} {name!r} is registered already, by {owner}; give another name")
    REGISTERED[setting][name] = kind
    return kind


def _full_name(setting: str, value: Any, where: str) -> str | None:
    """The full name, `module:name`, of a registered class that a setting names, with a module or without."""
    if setting not in REGISTERED or not isinstance(value, str):
        return None
    module, _, name = value.rpartition(":")
    if name in REGISTERED[setting]:
        return f"{REGISTERED[setting][name].__module__}:{name}"  # its module may have moved
    if module:
        fix = f"import {module} first (a command: --import={module})"
        fix = "put the class into a module, and import that (--import=MODULE)" if module == "__main__" else fix
        raise NotRegistered(f"{where} = {value!r}: not registered here; {fix}")
    return None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The valid name nearest to `name`, as the end of a message; empty where nothing is near."""
    # A part of a name means that name: "float16" is meant for "mixed_float16", not for "float32".
    containing = [candidate for candidate in names if name and name in candidate]
    matches = containing[:1] or difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


@functools.cache
def _type_hints(kind: type) -> dict[str, Any]:
    """The types of a class's settings; reading them anew takes the most time of making one."""
    return typing.get_type_hints(kind, include_extras=True)


class _Settings:
    """A group of settings: the base of frozen dataclasses, whose constructors check types and limits.

    `Annotated[int, 1, 8]` has the least and the largest number (without: the `least` of the group, no limit),
    `Annotated[str, *choices]` all texts that are allowed.
    """

    def __init_subclass__(cls, group: str = "", least: float = 0):
        cls.group, cls.least = group, least

    def __new__(cls, /, *values: Any, **settings: Any):
        for name in settings:
            check_choice(f"setting {cls.group}{name}", name, _type_hints(cls), what="no such setting")
        return super().__new__(cls)

    def __post_init__(self):
        for name, expected in _type_hints(type(self)).items():
            value, where = getattr(self, name), f"{self.group}{name}"
            value = _full_name(name, value, where) or _converted(value, expected, where, self.least)
            object.__setattr__(self, name, value)
        for name, rule in self._faults():
            raise ValueError(f"{self.group}{name} = {shown(getattr(self, name))}: {rule}")

    def _faults(self) -> Iterator[tuple[str, str]]:
        """Yields the name of each setting that does not fit the others, and the rule."""
        yield from ()


def _converted(value: Any, annotated: Any, where: str, least: float) -> Any:
    """The value as the type that is expected, where whole floats pass for integers; ValueError beyond the limits."""
    expected, *limits = typing.get_args(annotated) if hasattr(annotated, "__metadata__") else [annotated]
    optional = isinstance(expected, types.UnionType)
    if optional:
        # None and nothing are how a flag sets back what a config file has set.
        if value is None or (isinstance(value, str | tuple) and value in ("", "None", (), (None,), ("None",))):
            return None
        expected = typing.get_args(expected)[0]
    rule = f"must be of type {expected.__name__}{' or None' if optional else ''}"
    if expected in (int, float):
        low, high = (*limits, math.inf)[:2] if limits else (least, math.inf)
        finite = " and finite" if expected is float else ""
        rule += f", at least {low}{finite}" if high == math.inf else f", from {low} to {high}"
        return expected(real_number(where, value, rule, low, high, whole=expected is int))
    if expected is tuple and (value is None or isinstance(value, list | tuple)):
        # JSON knows no tuples, and a flag with nothing behind it gives one of nothing.
        value = tuple(item for item in value or () if item not in ("", None))
    if not isinstance(value, expected):
        raise ValueError(f"{where} = {shown(value)}: {rule}")
    if expected is str and limits:
        check_choice(where, value, limits)
    return value


def _is_variance(numbers: tuple, lowest: float) -> bool:
    """Whether `a s + b` is a variance of noise for all signals s from the lowest on, and for larger ones no smaller."""
    are_numbers = len(numbers) == 2 and all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
    return are_numbers and numbers[0] >= 0 and numbers[0] * lowest + numbers[1] > 0


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Settings, group="model.", least=1):
    """The architecture and the likelihood (Vahdat & Kautz 2020, section 3 and table 6).

    Images are `[batch, image_height, image_width, image_channels]` in [0, 1]. The network sees the image in the middle
    of a frame of zeros, and the likelihood counts the real pixels only (MNIST: 28 in 32).

    Attributes:
      image_height: height of the images in pixels; follows `data.height`.
      image_width: width of the images in pixels; follows `data.width`.
      image_channels: channels of the images, with the mixture 1 to 32; follows `data.channels`.
      padded_height: height of the frame; None: the smallest that the hierarchy can halve, often the image's own.
      padded_width: width of the frame; None likewise.
      num_bits: bits per channel that the likelihood resolves, 1 to 16; follows `data.num_bits`.
      likelihood: p(x | z): "bernoulli", "logistic_mixture" (discretized), "normal", or a registered one; with
        `data.noise` "noisy_signal", where the network gives the signal s, and x is s with noise.
      noise_variance: (a, b) of that noise, whose variance is `a s + b`, for images in [0, 1]; follows `data.noise`.
      num_mixtures: components of the mixture of logistics.
      exact_edges: whether the lowest and highest level of the mixture have their exact mass; False as published,
        but beyond 8 bits they always have it.
      num_latent_scales: scales of the latent hierarchy, each half as high and wide as the one below.
      num_groups_per_scale: latent groups of a scale, of the largest where `adaptive_groups` is set.
      adaptive_groups: whether each smaller scale has half as many groups.
      min_groups_per_scale: smallest number of groups in each scale but the largest.
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
      cell_set: which residual cells: "res_mbconv" (the paper's) or another of `nvae_tf.latent_plan`, or registered.
      squeeze_excite: whether each cell ends with squeeze and excitation.
      residual_scale: factor of the residual branch of each cell; 0.1 as published.
      residual_distributions: whether posteriors are relative to the priors (section 3.2).
      num_classes: classes that the model is conditional on, 0 for none; follows `data.num_classes`.
    """

    image_height: int = 32
    image_width: int = 32
    image_channels: int = 3
    padded_height: int | None = None
    padded_width: int | None = None
    num_bits: Annotated[int, 1, 16] = 8
    likelihood: Annotated[str, *LIKELIHOODS, NOISY_SIGNAL] = "logistic_mixture"
    noise_variance: tuple = ()
    num_mixtures: int = 10
    exact_edges: bool = False
    num_latent_scales: int = 1
    num_groups_per_scale: int = 10
    adaptive_groups: bool = False
    min_groups_per_scale: int = 1
    num_latent_per_group: int = 20
    num_channels_encoder: int = 32
    num_channels_decoder: int = 32
    num_preprocess_blocks: Annotated[int, 0] = 1
    num_preprocess_cells: int = 2
    num_postprocess_blocks: Annotated[int, 0] = 1
    num_postprocess_cells: int = 2
    num_cells_per_group_encoder: int = 2
    num_cells_per_group_decoder: int = 2
    num_flows: Annotated[int, 0] = 0
    cell_set: str = "res_mbconv"
    squeeze_excite: bool = True
    residual_scale: Annotated[float, 0] = 0.1
    residual_distributions: bool = True
    num_classes: Annotated[int, 0] = 0

    def _faults(self):
        if self.num_classes == 1:
            yield "num_classes", "one class says nothing; use 0 for none, or at least 2"
        if self.num_preprocess_blocks + self.num_latent_scales > _MOST_HALVINGS:
            scales = f"num_latent_scales = {self.num_latent_scales}"
            yield "num_preprocess_blocks", f"with {scales} more than {_MOST_HALVINGS} halvings of the images; use fewer"
        if self.is_denoising and not _is_variance(self.noise_variance, 0.0):
            yield "noise_variance", "must be a, b of the variance a s + b, a at least 0 and b above; data.noise sets it"
        if self.noise_variance and not self.is_denoising:
            yield "noise_variance", f"is for the likelihood {NOISY_SIGNAL}; data.noise sets both"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Size of one image, `(height, width, channels)`."""
        return self.image_height, self.image_width, self.image_channels

    @property
    def is_denoising(self) -> bool:
        """Whether the network gives a signal, of which the images are noisy measurements, see `data.noise`."""
        return self.likelihood == NOISY_SIGNAL

    @property
    def has_masses(self) -> bool:
        """Whether scores in bits per value mean something: a registered likelihood says so by `exact_masses = True`."""
        own = REGISTERED["likelihood"].get(self.likelihood.rpartition(":")[2])
        return not self.is_denoising and (own is None or getattr(own, "exact_masses", False))

    @property
    def size_divisor(self) -> int:
        """What the hierarchy needs height and width to be divisible by: the smallest scale is smaller by this much."""
        return 2 ** (self.num_preprocess_blocks + self.num_latent_scales - 1)

    @property
    def network_height(self) -> int:
        """Height that the network sees, the frame of padding included."""
        return self.padded_height or -(-self.image_height // self.size_divisor) * self.size_divisor

    @property
    def network_width(self) -> int:
        """Width that the network sees, the frame of padding included."""
        return self.padded_width or -(-self.image_width // self.size_divisor) * self.size_divisor


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(_Settings, group="objective."):
    """The training loss (Vahdat & Kautz 2020, section 3.2 and appendix A).

    Attributes:
      total_steps: length of the run in steps, which the KL schedule is relative to.
      kl_anneal_portion: part of the run over which the KL weight rises linearly to `kl_final_weight`.
      kl_constant_portion: part of the run before that, with the weight `kl_constant_weight`.
      kl_constant_weight: the KL weight at the start, as a fraction of the final one.
      regularization: lambda, the weight of the spectral and the batch-norm regularizers.
      anneal_regularization: whether it goes there log-linearly from `regularization_initial` as the KL weight rises.
      regularization_initial: lambda at the start where it is annealed.
      kl_final_weight: beta of the loss `reconstruction + beta * sum_g KL_g` after the warm-up; scores stay the bound's.
      kl_scale_weights: a factor besides for the KL of each scale, the smallest first, as 1,0.5,0.5; empty for 1.
      free_nats: lambda of "free bits" (Kingma et al. 2016), in nats per group: `max(mean of KL_g, lambda)`; 0 for none.
    """

    total_steps: Annotated[int, 1] = 100_000
    kl_anneal_portion: Annotated[float, 0, 1] = 0.3
    kl_constant_portion: Annotated[float, 0, 1] = 0.0001
    kl_constant_weight: Annotated[float, 0, 1] = 0.0001
    regularization: float = 1e-2
    anneal_regularization: bool = False
    regularization_initial: Annotated[float, -math.inf] = 10.0  # without annealing it has no effect
    kl_final_weight: float = 1.0
    kl_scale_weights: tuple = ()
    free_nats: float = 0.0

    def _faults(self):
        for name in ("regularization", "regularization_initial") if self.anneal_regularization else ():
            if getattr(self, name) <= 0.0:
                yield name, "must be positive to be annealed on a log scale"
        if not all(type(value) in (int, float) and 0 <= value < math.inf for value in self.kl_scale_weights):
            yield "kl_scale_weights", "must be numbers of at least 0, one a scale, the smallest first, as 1,0.5,0.5"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Settings, group="optimizer."):
    """Adamax and its learning-rate schedule (Vahdat & Kautz 2020, appendix A).

    Attributes:
      learning_rate: the highest learning rate, reached after the warm-up.
      learning_rate_min: the rate at the end of the cosine decay.
      warmup_epochs: length of the linear warm-up in epochs, not of one step; None: 5, but at most a tenth of the run.
      weight_decay: L2 penalty of Adamax, added to the gradients.
      ema_momentum: of an exponential moving average of the weights, which evaluation and generation use; 0 for none.
    """

    learning_rate: float = 1e-2
    learning_rate_min: float = 1e-4
    warmup_epochs: float | None = None
    weight_decay: float = 3e-4
    ema_momentum: float = 0.0

    def _faults(self):
        if self.learning_rate == 0.0:
            yield "learning_rate", "must be greater than 0"
        if self.ema_momentum >= 1.0:
            yield "ema_momentum", "must be less than 1"


@dataclasses.dataclass(frozen=True)
class DataSpec(_Settings, group="data.", least=1):
    """One data set: the group `data` of a run's settings.

    What is None is looked up in the data, by `nvae_tf.data.spec`, before a run starts.

    Attributes:
      name: the name by which reports call the set. Nothing else depends on it.
      source: the kind of source, a key of `nvae_tf.data.sources.SOURCES`, or "auto": what lies at `path`.
      source_name: the set's name within its source, for a source that has several (a TFDS name: `name/config`).
      path: the file or folder with the images; for TFDS its data folder, None for TFDS' default.
      train_split: the source's own name of the training part: a TFDS split such as `train[:90%]`, a sub-folder.
      test_split: the source's own name of the test part.
      test_fraction: the part of the images that is held out for testing where the source has no test part.
      split_seed: decides which images these are.
      height: height of the images that the model gets, in pixels.
      width: their width in pixels.
      channels: their channels, 1 to 32; of pictures up to 4.
      file_bits: bits per channel of the stored images, 8 or 16; 32 for other numbers, see `range`.
      convert: whether pictures that have other channels or bits than these are converted, rather than refused.
      crop_box: `(left, top, right, bottom)` in pixels, cut out of every image first; None cuts nothing.
      resize: how images come to `height` and `width`: "none" (they have this size), "crop" (the shorter side is
        scaled to fit and the longer one cut evenly at both ends), "stretch". Bilinear, antialiased.
      stacked_images: how many images of one channel, drawn at random, make one image, as its channels.
      num_bits: bits per channel that the model sees and the likelihood resolves. Up to 8 are the upper ones of what is
        stored; with 9 to 16 the stored values are the levels, from 0 to 2^num_bits - 1.
      binarize: whether each pixel is drawn afresh from Bernoulli(intensity) at every access, to 1 bit.
      horizontal_flip: whether training images are mirrored at random.
      likelihood: "bernoulli", "logistic_mixture" or "normal"; None: the first for 1 bit, else the second.
      padded_height: height of the frame of zeros around the images; None: the smallest that can be halved.
      padded_width: width of that frame.
      on_bad_file: "stop" at a picture that can't be used, or "skip" it and report it.
      max_pixels: height times width of the largest picture file that can be used, up to 178,956,970.
      cache: folder for images that are decoded once and then read from there; None decodes at every access.
      labels: whether the images come with the numbers of their classes, for a model that is conditional on them.
      num_classes: how many classes there are; None: looked up. Only with `labels`.
      alpha: what becomes of an alpha channel: "keep" it, "drop" it, or lay the image on "white", "black" or a color
        "#rrggbb". Without it RGBA has 3 channels and gray with alpha has 1.
      display_channels: one channel, shown as gray, or three, shown as RGB, that figures show, counted from 0; empty:
        all up to 4, otherwise the first three.
      range: the stored numbers, of any type, that are 0 and 1 for the model, as 0,4095.5, for a likelihood with a
        density; empty: images are whole numbers of `num_bits`.
      tiff_axes: what the pages of a TIFF file are: each an image ("pages"), all the channels of one image ("channels"),
        or by the axes of OME and ImageJ, otherwise images ("auto").
      crop: "random" cuts images out of the larger ones of TIFF files: for training at places that are drawn at every
        access, for testing at the places of a grid. "none" does not.
      noise: the noise of the images, each drawn with it once, for a model that learns the signal from them alone:
        "gaussian", or "poisson_gaussian", whose variance rises with the signal. It decides the likelihood.
      noise_sigma: standard deviation of Gaussian noise, in the stored numbers' units, or "estimate": from the images.
      noise_variance: a and b of the variance `a s + b` of Poisson-Gaussian noise, s being a stored number, as 2.1,40.
    """

    name: str = "cifar10"
    source: str = "tfds"
    source_name: str | None = "cifar10"
    path: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    test_fraction: Annotated[float, 0, 1] = 0.1
    split_seed: Annotated[int, 0, 2**32 - 1] = 0
    height: int | None = 32
    width: int | None = 32
    channels: Annotated[int | None, 1, MOST_CHANNELS] = 3
    file_bits: int | None = 8
    convert: bool = False
    crop_box: tuple | None = None
    resize: Annotated[str, "none", "crop", "stretch"] = "none"
    stacked_images: int = 1
    num_bits: Annotated[int, 1, 16] = 8
    binarize: bool = False
    horizontal_flip: bool = True
    likelihood: Annotated[str | None, *LIKELIHOODS, NOISY_SIGNAL] = "logistic_mixture"
    padded_height: int | None = None
    padded_width: int | None = None
    on_bad_file: Annotated[str, "stop", "skip"] = "stop"
    cache: str | None = None
    max_pixels: Annotated[int, 1, _LARGEST_MAX_PIXELS] = MAX_PIXELS
    labels: bool = False
    num_classes: Annotated[int | None, 2, MOST_CLASSES] = None
    alpha: str = "keep"
    display_channels: tuple = ()
    range: tuple = ()
    tiff_axes: Annotated[str, "auto", "pages", "channels"] = "auto"
    crop: Annotated[str, "none", "random"] = "none"
    noise: Annotated[str, "none", "gaussian", "poisson_gaussian"] = "none"
    noise_sigma: str = "estimate"
    noise_variance: tuple = ()

    def __post_init__(self):
        if type(self.noise_sigma) in (int, float):
            object.__setattr__(self, "noise_sigma", str(self.noise_sigma))
        super().__post_init__()

    def _faults(self):
        if self.file_bits not in (None, 8, 16, *((32,) if self.range else ())):
            yield "file_bits", "must be 8 or 16"
        if self.num_bits > (self.file_bits or 16) and not self.range:
            yield "num_bits", f"the images are stored with {self.file_bits} bits; set it to {self.file_bits} or fewer"
        is_range = len(self.range) == 2 and all(type(n) in (int, float) and math.isfinite(n) for n in self.range)
        if self.range and not (is_range and self.range[0] < self.range[1]):
            yield "range", "must be two numbers, the lower one first, as 0,4095.5"
        if self.noise != "none":
            yield from self._noise_faults(self.range[0] if is_range else None)
        elif self.likelihood == NOISY_SIGNAL:
            yield "likelihood", "follows from --config.data.noise, which is none"
        elif self.range and self.likelihood in ("bernoulli", "logistic_mixture"):
            yield "range", f"{self.likelihood} is of whole numbers; set --config.data.likelihood=normal"
        if self.test_fraction in (0.0, 1.0):
            yield "test_fraction", "must lie between 0 and 1"
        if self.train_split == self.test_split:
            yield "test_split", "must differ from data.train_split"
        if not re.fullmatch("keep|drop|white|black|#[0-9a-fA-F]{6}", self.alpha):
            yield "alpha", "must be keep, drop, white, black or a color as #ff8000"
        if self.stacked_images == 1 and self.seen_channels(self.channels) != self.channels:
            yield "alpha", f"leaves no alpha channel: set --config.data.channels={self.channels - 1}"
        if self.binarize and self.num_bits != 1:
            yield "num_bits", "images that are binarized (data.binarize) have 1 bit; set it to 1"
        if self.stacked_images not in (1, self.channels):
            yield "stacked_images", f"must be 1 or data.channels = {self.channels}"
        shaped = self.resize != "none" or self.crop_box or self.stacked_images > 1
        if self.crop == "random" and (self.source not in ("auto", "tiff") or shaped):
            yield "crop", "cuts images of data.source=tiff, without data.resize, data.crop_box and data.stacked_images"
        numbers, most = self.display_channels, (self.channels or MOST_CHANNELS) - 1
        if len(numbers) not in (0, 1, 3) or not all(type(n) is int and 0 <= n <= most for n in numbers):
            yield "display_channels", f"must be one number or three, from 0 to {most}, as 3,2,1"
        box = (0, 0, 1, 1) if self.crop_box is None else self.crop_box
        is_box = len(box) == 4 and all(isinstance(side, int) and side >= 0 for side in box)
        if not is_box or box[0] >= box[2] or box[1] >= box[3]:
            yield "crop_box", "must be (left, top, right, bottom) in whole pixels, with left < right and top < bottom"

    def _noise_faults(self, lowest: float | None) -> Iterator[tuple[str, str]]:
        if lowest is None:
            yield "noise", "says nothing without --config.data.range, the stored numbers that are 0 and 1 for the model"
        elif self.noise == "poisson_gaussian" and not _is_variance(self.noise_variance, lowest):
            yield "noise_variance", f"must be a,b with a at least 0 and the variance a s + b above 0 from {lowest:g} on"
        elif self.noise == "gaussian" and self.noise_sigma != "estimate":
            if not re.fullmatch(r"\d*\.?\d+(e[+-]?\d+)?", self.noise_sigma) or not float(self.noise_sigma) > 0.0:
                yield "noise_sigma", 'must be a number above 0, or "estimate"'

    @property
    def unit_noise(self) -> tuple[float, ...]:
        """`noise_variance` of the model, where `range` is [0, 1]: empty without noise, and before it is estimated."""
        if self.noise == "none" or (self.noise, self.noise_sigma) == ("gaussian", "estimate"):
            return ()
        (low, high), is_gaussian = self.range, self.noise == "gaussian"
        slope, constant = (0.0, float(self.noise_sigma) ** 2) if is_gaussian else self.noise_variance
        return slope / (high - low), (slope * low + constant) / (high - low) ** 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Size of one image, `(height, width, channels)`, once all three are known."""
        return (self.height, self.width, self.channels)

    @property
    def dtype(self) -> str:
        """The type of the images up to the model's graph, which scales them to [0, 1]."""
        return "float32" if self.range else "uint16" if self.num_bits > 8 else "uint8"

    def seen_channels(self, channels: int | None) -> int | None:
        """The channels, after `alpha`, of images that are stored with `channels`."""
        return channels - 1 if self.alpha != "keep" and channels in (2, 4) else channels


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Settings, group="train.", least=1):
    """The group `train` of a run's settings.

    Attributes:
      batch_size: images a step and replica.
      epochs: length of the run in passes over the training images, where `steps` is 0.
      steps: its length in steps; 0 leaves it to `epochs`.
      seed: of the initial weights, the order of images and all draws.
      checkpoint_every_steps: steps between checkpoints; None: a tenth of the run, from 10 to 1,000 steps.
      checkpoint_every_minutes: minutes after which a checkpoint is written in any case; 0: by steps alone.
      keep_checkpoints: how many of the latest checkpoints are kept.
      keep_checkpoint_every_hours: has no effect; earlier versions kept one for good now and then.
      evaluate_every_steps: steps between scores of the test images; None: a tenth of the run, as above.
      sample_every_steps: steps between image grids of samples; None: a tenth of the run, as above.
      log_every_steps: steps between points of the training curves.
      logger: where curves and images go: "tensorboard", or "wandb" (Weights & Biases, `pip install "nvae_tf[wandb]"`).
      initialize_from: run folder, hf://user/repo, or published file (.pt), with whose weights the run starts.
      loss_tolerance: a step is skipped when its loss exceeds the moving average by more than this number of
        mean absolute deviations, see `nvae_tf.optimization.RunawayGuard`; 0 skips only what is not finite.
      refused_steps: skipped steps in a row after which the latest checkpoint is restored, at half the learning rate.
      rollbacks: how many times the run does so before it ends with an error.
      strategy: which devices train: "one_device", all of this machine ("mirrored"), all of several processes that
        TF_CONFIG names ("multi_worker"), or "auto", whatever is there.
      replicas: how many devices a process takes; 0 for all GPUs. Without GPUs the CPU is divided into this number.
      precision: "float32", or "mixed_bfloat16" or "mixed_float16": only the networks are in half precision.
      xla: whether XLA compiles the training step: whole ("jit"), in parts ("cluster"), not ("off"), or "auto".
      scan: whether equal groups and cells are one loop of the step's program ("on"), which XLA compiles much faster, or
        one after another ("off"); "auto": a loop where XLA compiles the whole step. Several replicas can't have it.
      recompute: what the backward pass computes again for less memory: "none", the cells of latent "groups", "all".
      accumulate_steps: into how many microbatches a replica's batch is cut, one after the other, for less memory.
      label_dropout: the part of labeled images that are trained without their class, for samples without, and guidance.
      deterministic: whether TensorFlow may use only operations that can be repeated bit for bit.
      profile_steps: first and last step of a profile for TensorBoard; empty for none.
      keep_best: whether the checkpoint with the best test score is kept too.
    """

    batch_size: int = 32
    epochs: int = 400
    steps: Annotated[int, 0] = 0
    seed: Annotated[int, 0, LARGEST_SEED] = 0
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: Annotated[float, 0] = 10.0
    keep_checkpoints: int = 2
    keep_checkpoint_every_hours: Annotated[float, 0] = 0.0
    evaluate_every_steps: int | None = None
    sample_every_steps: int | None = None
    log_every_steps: int = 50
    logger: Annotated[str, "tensorboard", "wandb"] = "tensorboard"
    initialize_from: str | None = None
    loss_tolerance: Annotated[float, 0] = 10.0
    refused_steps: int = 20
    rollbacks: Annotated[int, 0] = 3
    strategy: Annotated[str, "auto", "one_device", "mirrored", "multi_worker"] = "auto"
    replicas: Annotated[int, 0] = 0
    precision: Annotated[str, *PRECISIONS] = "float32"
    xla: Annotated[str, "auto", "off", "jit", "cluster"] = "auto"
    scan: Annotated[str, "auto", "on", "off"] = "auto"
    recompute: Annotated[str, *RECOMPUTATIONS] = "none"
    accumulate_steps: int = 1
    label_dropout: Annotated[float, 0, 1] = 0.1
    deterministic: bool = False
    profile_steps: tuple = ()
    keep_best: bool = True

    def _faults(self):
        if self.batch_size % self.accumulate_steps:
            yield "accumulate_steps", f"must divide train.batch_size = {self.batch_size}"
        steps = self.profile_steps or (1, 1)
        if [type(step) for step in steps] != [int, int] or not 1 <= steps[0] <= steps[1]:
            yield "profile_steps", "must be the first and the last step to profile, as 10,20"


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(_Settings):
    """Everything that a run needs to be made again."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    data: DataSpec = dataclasses.field(default_factory=DataSpec)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def data_at(self, path: str | None) -> DataSpec:
        """The data of a finished run, whose images may lie at another path now, and whose cache may be gone."""
        cache = self.data.cache if self.data.cache and pathlib.Path(self.data.cache).expanduser().is_dir() else None
        return dataclasses.replace(self.data, path=path or self.data.path, cache=cache)

    def without_places(self) -> "ExperimentConfig":
        """The same without settings that name a place on this machine."""
        data = dataclasses.replace(self.data, path=None, cache=None)
        train = dataclasses.replace(self.train, initialize_from=None)
        return dataclasses.replace(self, data=data, train=train)


def resolve_lengths(
    config: ExperimentConfig, steps_per_epoch: int, total_steps: int, recorded: ExperimentConfig | None = None
) -> ExperimentConfig:
    """The settings of a run of known length, with a number in place of each None that follows from the length.

    The warm-up is 5 epochs, as published, but at most a tenth of the run; `INTERVALS` are a tenth of the run, but at
    least 10 steps and at most 1,000. `recorded` are the settings in the folder of a run that is continued: its warm-up
    is kept, and the intervals too unless the length has changed.
    """
    tenth = total_steps // 10
    # The last rate of a warm-up of one step, from which the schedule goes on, is 0.
    defaults = {"warmup_epochs": min(5.0, tenth / steps_per_epoch) if tenth > 1 else 0.0}
    defaults |= dict.fromkeys(INTERVALS, min(max(tenth, 10), 1000, total_steps))
    if recorded is not None:
        names = INTERVALS if recorded.objective.total_steps == total_steps else ()
        kept = {name: getattr(recorded.train, name) for name in names}
        kept["warmup_epochs"] = recorded.optimizer.warmup_epochs
        defaults |= {name: value for name, value in kept.items() if value is not None}

    def completed(group: Any) -> Any:
        is_open = {name: value for name, value in defaults.items() if getattr(group, name, value) is None}
        return dataclasses.replace(group, **is_open)

    objective = dataclasses.replace(config.objective, total_steps=total_steps)
    optimizer, train = completed(config.optimizer), completed(config.train)
    return dataclasses.replace(config, objective=objective, optimizer=optimizer, train=train)


def config_from_dict(kind: type, settings: Mapping[str, Any], where: str = "an experiment") -> Any:
    """Builds the frozen dataclass `kind` from a mapping; `where` is the name of the group for messages."""
    expected, values = typing.get_type_hints(kind), {}
    if not hasattr(settings, "items"):
        names = ", ".join(expected)
        raise ValueError(f"{where} is a group of settings ({names}), not the single value {shown(settings)}")
    for given, value in settings.items():
        name = OLD_NAMES.get(given, str(given))
        if name in values and values[name] != value:
            raise ValueError(f"settings {kind.group}{name} and its old name differ; give one")
        is_group = dataclasses.is_dataclass(expected.get(name))
        values[name] = config_from_dict(expected[name], value, name) if is_group else value
    return kind(**values)


def config_to_dict(config: Any) -> dict[str, Any]:
    """The settings as nested plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def named_settings(config: Any) -> dict[str, Any]:
    """The settings by their full names, such as `train.batch_size`."""
    groups = config_to_dict(config).items()
    return {f"{group}.{name}": value for group, settings in groups for name, value in settings.items()}


def config_to_json(config: ExperimentConfig) -> str:
    """The settings as readable JSON text."""
    return json.dumps(config_to_dict(config), indent=2) + "\n"


def read_config(path: str | pathlib.Path) -> ExperimentConfig:
    """Reads `config.json` of a run folder."""
    try:
        return config_from_dict(ExperimentConfig, json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore it from a copy of the run") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def setting_meanings(kind: type) -> dict[str, str]:
    """What each setting of a dataclass means, from the section Attributes of its docstring."""
    names = [field.name for field in dataclasses.fields(kind)]
    section = inspect.getdoc(kind).partition("Attributes:\n")[2].partition("\n\n")[0]
    parts = re.split(rf"^ *({'|'.join(names)}): ", section, flags=re.MULTILINE)
    texts = dict(zip(parts[1::2], (" ".join(text.split()) for text in parts[2::2]), strict=True))
    return {name: texts[name] for name in names}
