"""Where each group's latent comes from: its sources, the draws behind them, and the checks of what a user gives.

The top-down pass asks one source for each group, so inference, generation and all between are the same pass.
"""

import collections
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf import objective as objectives
from nvae_tf.config import LARGEST_SEED, check, real_number, shown, whole_number
from nvae_tf.distributions.soft_clamped_normal import SoftClampedNormal, soft_clamped_normal
from nvae_tf.latent_plan import LatentPlan, values_of_groups
from nvae_tf.layers.cpu_kernels import fan_out
from nvae_tf.models.images import as_tensor, check_classes, check_values

Shapes = Sequence[tuple[int, int, int]]
Number = int | tf.Tensor
Temperature = float | tf.Tensor | Sequence[float] | np.ndarray


class LatentSample(NamedTuple):
    """One group's latent `[batch, height, width, latent channels]` and where it came from."""

    z: tf.Tensor  # after the flows
    z_before_flows: tf.Tensor  # the posterior's own sample; the same as `z` without flows
    prior: SoftClampedNormal | None  # given the groups above; None where a scanned pass does not keep it
    posterior: SoftClampedNormal | None = None  # before the flows; None where z does not come from it
    has_flows: bool = False  # between `z_before_flows` and `z`
    groups: int = 1  # the number of groups, one group's images after another's: more than one in a scanned pass


def tensors_of_latent(latent: LatentSample) -> list[tf.Tensor]:
    """The tensors that a latent is made of, see `latents_of_groups`: z alone if it is not inferred."""
    normals = [] if latent.posterior is None else [latent.prior, latent.posterior]
    tensors = [latent.z, *(each for normal in normals for each in (normal.loc, normal.scale))]
    # As one: they are of the same shape, and a loop keeps each on its own.
    return [tf.stack([*tensors, latent.z_before_flows] if latent.has_flows else tensors)]


def latents_of_groups(tensors: Sequence[tf.Tensor]) -> list[LatentSample]:
    """The latents of some groups, as one `LatentSample`, from those tensors with an axis for the groups in front."""
    (stacked,) = tensors
    z, *parameters = [tf.reshape(tensor, (-1, *tensor.shape[2:])) for tensor in tf.unstack(stacked, axis=1)]
    pairs = parameters[:2], parameters[2:4]
    prior, posterior = (SoftClampedNormal(*pair, validate_args=False) if pair else None for pair in pairs)
    before, groups = parameters[4:] or [z], stacked.shape[0]
    return [LatentSample(z, before[0], prior, posterior, has_flows=len(parameters) > 4, groups=groups)]


class InferredGroup(NamedTuple):
    """What is inferred of a group's latent, given the groups above: each `[batch, height, width, latent channels]`."""

    z: tf.Tensor  # the draw, after the flows
    mean: tf.Tensor  # of the posterior, before the flows, as are those below
    scale: tf.Tensor
    prior_mean: tf.Tensor
    prior_scale: tf.Tensor
    kl: tf.Tensor  # of posterior and prior, in nats: the sum over an image is the group's, see `objective.elbo`


def inferred_group(latent: LatentSample) -> InferredGroup:
    """The tensors of a latent that was drawn from the posterior."""
    (q, p), kl = (latent.posterior, latent.prior), objectives.kl_per_element(latent)
    return InferredGroup(latent.z, q.loc, q.scale, p.loc, p.scale, kl)


@functools.cache
def latents_type(num_groups: int) -> type[tuple]:
    """The named tuple of the groups' latents, whose `numpy()` gives arrays; `tf.data` makes one tensor of a list."""
    latents = collections.namedtuple("Latents", [f"group_{group:02d}" for group in range(num_groups)])
    latents.numpy = lambda self: tuple(map(np.asarray, self))
    return latents


class GroupLayers(NamedTuple):
    """What one latent group computes, as functions of tensors."""

    cells: list[Callable]  # residual cells on the state; none for the top group
    prior: Callable  # state -> its means and log-scales before the clamp, one tensor `[..., 2 * latent channels]`
    posterior: Callable  # (state, bottom-up feature, prior) -> the same of the posterior
    flows: list[Callable]  # latent -> latent
    combine: Callable  # (state, z) -> state


class PosteriorSource(NamedTuple):
    """Draws from q(z | x, groups above) with standard-normal `noise` `[batch, height, width, latent channels]`."""

    feature: tf.Tensor
    noise: tf.Tensor | float

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        """The latent of the group whose layers and incoming state these are."""
        prior = layers.prior(state)
        posterior = soft_clamped_normal(layers.posterior(state, self.feature, prior))
        scale = posterior.scale
        if layers.flows:
            # The density of what is drawn has two uses of its own.
            scale, scale_of_density = fan_out(scale, 2)
            posterior = SoftClampedNormal(posterior.loc, scale_of_density, validate_args=False)
        z = z_before_flows = posterior.loc + scale * self.noise
        for flow in layers.flows:
            z = flow(z)
        return LatentSample(z, z_before_flows, soft_clamped_normal(prior), posterior, bool(layers.flows))


class PriorSource(NamedTuple):
    """Draws from p(z | groups above) with the given noise; `temperature` multiplies the prior's sigma."""

    noise: tf.Tensor
    temperature: float | tf.Tensor = 1.0

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        prior = soft_clamped_normal(layers.prior(state), self.temperature)
        z = prior.loc + prior.scale * self.noise
        return LatentSample(z, z, prior)


class GivenSource(NamedTuple):
    """Takes the latent from outside: `[batch, height, width, latent channels]`, after the flows."""

    latent: tf.Tensor

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        z = tf.cast(self.latent, tf.float32)
        return LatentSample(z, z, soft_clamped_normal(layers.prior(state)))


class ComposedSource(NamedTuple):
    """Takes the latent of the rows that keep it, and draws the others from a prior."""

    latent: tf.Tensor  # [batch, height, width, latent channels], after the flows
    keep: tf.Tensor  # [batch], which rows' latents are taken
    prior: Any  # the source that draws the others

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        drawn = self.prior.draw(layers, state)
        # Version 1 takes one condition a row; broadcasting it takes several times as long.
        z = tf.compat.v1.where(self.keep, self.latent, drawn.z)
        return LatentSample(z, z, drawn.prior)


class KeptChannelsSource(NamedTuple):
    """Draws as `source` does; channels that are not `kept` `[latent channels]` are at the prior's mean instead."""

    source: PosteriorSource
    kept: tf.Tensor

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        latent = self.source.draw(layers, state)
        return latent._replace(z=tf.where(self.kept, latent.z, latent.prior.loc))


class GuidedSource(NamedTuple):
    """Draws from a class's prior, moved away from the prior without class (classifier-free guidance, Ho & Salimans)."""

    # The state has rows with classes and then the same without, which take the same latents.
    noise: tf.Tensor
    temperature: float | tf.Tensor
    guidance: float | tf.Tensor

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        with_class, without = tf.split(layers.prior(state), 2)
        prior = soft_clamped_normal(without + self.guidance * (with_class - without), self.temperature)
        z = tf.tile(prior.loc + prior.scale * self.noise, [2, 1, 1, 1])
        return LatentSample(z, z, prior)


# Sources are tuples of tensors, which a loop over groups can stack. What else can `draw` is a source too.
LatentSource = PosteriorSource | PriorSource | GivenSource | ComposedSource | KeptChannelsSource | GuidedSource


def active_channels(kl_per_channel: tf.Tensor | np.ndarray, fraction: float = 0.1) -> tf.Tensor:
    """Which latent channels `[groups, channels]` have the largest mean KL: a fraction of all, at least one."""
    check(0.0 < fraction <= 1.0, f"fraction = {fraction}: must be above 0 and at most 1")
    kl = tf.reshape(kl_per_channel, [-1])
    # Of equals the earlier is kept, so that the number is the one asked for.
    ranks = tf.argsort(tf.argsort(kl, direction="DESCENDING", stable=True))
    return tf.reshape(ranks < max(1, round(fraction * kl.shape[0])), kl_per_channel.shape)


def check_labels(labels: Any, count: int | tf.Tensor, num_classes: int) -> tf.Tensor | None:
    """The class of each of `count` images, int32 `[count]`, from one or `count` numbers; ValueError for others."""
    if labels is None:
        return None
    check(num_classes > 0, "labels were given, but this model has no classes (model.num_classes = 0); leave them out")
    labels = as_tensor(labels, "labels")
    if labels.shape.rank is None or labels.shape[1:] == (1,):
        labels = tf.reshape(labels, [-1])  # as Keras has them: a column, or for batches of several shapes
    fits = labels.shape.rank == 0 or isinstance(count, tf.Tensor) or labels.shape[0] in (None, count)
    if labels.shape.rank > 1 or not fits or not labels.dtype.is_integer:
        form = f"must be whole numbers, one or one for each of {count} images, not one-hot vectors"
        raise ValueError(f"labels are {labels.dtype.name} of shape {tuple(labels.shape)}; they {form}")
    check_classes(labels, num_classes)
    labels = tf.cast(labels, tf.int32)
    return labels if labels.shape.rank else tf.fill([count], labels)


def check_guidance(guidance: float, has_labels: bool, num_classes: int, label_dropout: float) -> None:
    """ValueError where guidance is not finite, there is no class to guide toward, or no priors without a class."""
    if real_number("guidance", guidance, "must be finite") != 1.0 and not (has_labels and label_dropout):
        fault = "it leads toward a class; give labels too"
        if not num_classes:
            fault = "this model has no classes (model.num_classes = 0)"
        elif has_labels:
            fault = "this model was trained without label_dropout, so it has no priors of no class; leave guidance out"
        raise ValueError(f"guidance = {guidance}: {fault}")


def check_latents(latents: Sequence[tf.Tensor], plan: LatentPlan, may_lack_groups: bool = False) -> list[tf.Tensor]:
    """Latents from outside as float32, top group first; ValueError unless they fit the plan and are finite."""
    if isinstance(latents, str | bytes) or not isinstance(latents, Sequence):
        raise ValueError(f"latents are one {type(latents).__name__}; give a list, one array a group, as of `encode`")
    tensors, shapes = [as_tensor(latent, "latents") for latent in latents], list(plan.latent_shapes())
    for tensor in tensors:
        check(tensor.dtype.is_floating, f"latents are of type {tensor.dtype.name}; they must be floats")
    given = [tuple(tensor.shape[1:]) for tensor in tensors]
    if not given or given != (shapes[: len(given)] if may_lack_groups else shapes):
        fault = "they are of another architecture, or groups are missing (decode takes the top ones with a temperature)"
        raise ValueError(f"latents have shapes {given} without the batch; this model's are {shapes}: {fault}")
    counts = [tensor.shape[0] for tensor in tensors]
    check(len(set(counts)) == 1, f"latents are of {counts} images; all must be of as many")
    for group, tensor in enumerate(tensors if tf.executing_eagerly() else ()):
        check(bool(tf.reduce_all(tf.math.is_finite(tensor))), f"latents of group {group} are not all finite")
    return [tf.cast(tensor, tf.float32) for tensor in tensors]


def temperatures_of_groups(temperature: Temperature, plan: LatentPlan) -> list[float | tf.Tensor]:
    """The temperature of every group, top group first.

    One number is for all groups; a list, or a tensor of one axis, has one for every scale or group. Any other tensor
    counts as one number. ValueError for another length, or a number that is not greater than 0 and finite.
    """
    if isinstance(temperature, tf.Tensor) and temperature.shape.rank == 1:
        temperature = tf.unstack(temperature)
    several = isinstance(temperature, Sequence) or (isinstance(temperature, np.ndarray) and temperature.ndim == 1)
    rule = "must be greater than 0 and finite; 1 is the model as trained"
    values = [
        value if isinstance(value, tf.Tensor) else real_number("temperature", value, rule, math.ulp(0.0))
        for value in (temperature if several else [temperature])
    ]
    return values_of_groups(values, plan.latent_shapes(), "temperatures") if several else values * plan.num_groups


def in_graph(function: Callable) -> Callable:
    """A function with a loop over images as a graph, where a turn takes a fraction of the time."""
    traced = tf.function(function, autograph=False, reduce_retracing=True)
    return lambda *arguments: (traced if tf.executing_eagerly() else function)(*arguments)


def groups_of_flat(flat: tf.Tensor, shapes: Shapes) -> list[tf.Tensor]:
    """Rows `[batch, total]` -> `[batch, height, width, channels]` of every group."""
    pieces = tf.split(flat, list(map(math.prod, shapes)), axis=1)
    return [tf.reshape(piece, (-1, *shape)) for piece, shape in zip(pieces, shapes, strict=True)]


def batch_noise(shapes: Shapes, batch_size: Number, seed: Sequence[Number], first: Number = 0) -> list[tf.Tensor]:
    """Standard-normal draws `[batch, height, width, channels]` a group; image i's of one seed `[2]` and `first + i`."""
    return groups_of_flat(_numbered_draws(sum(map(math.prod, shapes)), batch_size, seed, first), shapes)


def noise_per_image(shapes: Shapes, seeds: tf.Tensor, first: Number = 0, count: int = 1) -> list[tf.Tensor]:
    """As `batch_noise`, but samples `first ... first + count - 1` of each image by its own seed `[batch, 2]` alone."""
    # An image's samples come one after another: `[batch * count, height, width, channels]` a group.
    size = sum(map(math.prod, shapes))
    noise = _noise_of_seeds(seeds, size, tf.convert_to_tensor(first), count)
    return groups_of_flat(tf.reshape(noise, [-1, size]), shapes)


@in_graph
def _noise_of_seeds(seeds: tf.Tensor, size: int, first: tf.Tensor, count: int) -> tf.Tensor:
    spec = tf.TensorSpec((count, size), tf.float32)
    return tf.map_fn(lambda seed: _numbered_draws(size, count, seed, first), seeds, fn_output_signature=spec)


def batch_size_of(tensor: tf.Tensor) -> Number:
    """The length of the first axis: a number where it is known in the graph, else a tensor."""
    return tensor.shape[0] or tf.shape(tensor)[0]


def image_seeds(seed: Number, count: Number, first: Number = 0) -> tf.Tensor:
    """Seeds int32 `[count, 2]` of images `first .. first + count - 1`; in graphs the seed may be a tensor."""
    if tf.executing_eagerly() or not hasattr(seed, "dtype") or isinstance(seed, np.generic):
        seed = whole_number("seed", seed, -LARGEST_SEED)
    elif not tf.as_dtype(seed.dtype).is_integer or len(seed.shape):
        raise ValueError(f"seed = {shown(seed)}: must be one whole number")
    else:
        in_range = tf.abs(tf.cast(seed, tf.float64)) <= LARGEST_SEED
        check_values(in_range, f"seed must be a whole number from -{LARGEST_SEED} to {LARGEST_SEED}")
    indices = tf.range(first, first + count, dtype=tf.int32)
    return tf.stack([tf.fill(tf.shape(indices), tf.cast(seed, tf.int32)), indices], axis=1)


def _numbered_draws(size: int, count: Number, seed: Sequence[Number], first: Number) -> tf.Tensor:
    # A Philox counter gives four numbers; every draw starts at a counter of its own.
    counters = -(-size // 4)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    counter += tf.stack([tf.cast(first, tf.uint64) * counters, tf.constant(0, tf.uint64)])
    # Philox gives the same numbers eagerly, in a graph and on every device; the default does not. XLA has its own.
    philox, shape = tf.random.Algorithm.PHILOX.value, [count, 4 * counters]
    return tf.raw_ops.StatelessRandomNormalV2(shape=shape, key=key, counter=counter, alg=philox)[:, :size]
