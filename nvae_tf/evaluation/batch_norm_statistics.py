"""Running batch-norm statistics for sampling at a temperature (Vahdat & Kautz 2020, section 4).

With the statistics of training images, images at a low temperature come out wrong in color and contrast. So the
generator is first run with batch statistics on latents of the prior at that temperature.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.layers import ForwardPass, StackedBatchNormalization
from nvae_tf.layers.cpu_kernels import EPSILON
from nvae_tf.models import NVAE
from nvae_tf.models.latents import PriorSource, Temperature, batch_noise, temperatures_of_groups
from nvae_tf.models.passes import top_down_pass
from nvae_tf.models.reweighted_prior import check_prior

# Images are drawn from seeds (seed, number of the image), so no image has the latents of this stream.
_STREAM = -1


class ReadjustedModel(NamedTuple):
    """A copy of a model with other running statistics in its generator."""

    model: NVAE
    text: str  # how far they moved


def readjusted(
    model: NVAE,
    temperature: Temperature,
    iterations: int = 500,
    batch_size: int = 16,
    seed: int = 0,
    prior: str = "model",
) -> ReadjustedModel:
    """A copy of a model with the running batch-norm statistics of sampling at a temperature, from a prior.

    The generator's statistics follow `iterations` batches of at least 2 images by the layers' own rule, `0.95 running +
    0.05 batch`; all else stays as it is. ValueError where a statistic is not finite.
    """
    if iterations < 1 or batch_size < 2:
        raise ValueError(f"iterations = {iterations}, batch_size = {batch_size}: must be at least 1, and at least 2")
    temperatures, reweighted = temperatures_of_groups(temperature, model.plan), check_prior(prior, model)
    copy = type(model).from_config(model.get_config())
    for variable, value in zip(copy.weights, model.weights, strict=True):
        variable.assign(value)
    copy.read_prior = lambda: model.reweighted_prior
    layers = copy.top_down._flatten_layers(include_self=False)
    norms = [layer for layer in layers if isinstance(layer, StackedBatchNormalization)]
    if not norms:
        return ReadjustedModel(copy, "the generator has no batch norm: nothing to readjust")
    running = {id(variable) for stack in norms for variable in stack.statistics}

    @tf.function(input_signature=[tf.TensorSpec((), tf.int64)], autograph=False)
    def all_finite_after(first: tf.Tensor) -> tf.Tensor:
        # All classes of a conditional model in turn.
        numbers, classes = tf.cast(first, tf.int32) + tf.range(batch_size), copy.config.num_classes
        forward = ForwardPass(training=True, labels=numbers % classes if classes else None)
        noise = batch_noise(copy.plan.latent_shapes(), batch_size, (seed, _STREAM), first)
        sources = list(map(PriorSource, noise, temperatures))
        if reweighted is not None:
            # Numbers below 0, which no image has.
            seeds = tf.stack([tf.fill([batch_size], seed), -1 - numbers], axis=1)
            top = reweighted.sources(seeds, temperatures, copy.plan, forward.labels)
            sources[: len(top)] = top
        top_down_pass(copy, sources, batch_size, forward)
        updates = [(variable, value) for variable, value in forward.updates if id(variable) in running]
        for variable, value in updates:
            variable.assign(value)
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for _, value in updates])

    before = _statistics(norms)
    for number in range(iterations):
        if not all_finite_after(tf.constant(number * batch_size, tf.int64)).numpy():
            raise ValueError(f"batch norm can't be readjusted: not finite in iteration {number + 1} of {iterations}")
    return ReadjustedModel(copy, _moved(before, _statistics(norms)))


def _statistics(norms: Sequence[StackedBatchNormalization]) -> list[tuple[np.ndarray, ...]]:
    """The running mean and variance of each layer of the stacks, `[channels]` each."""
    return [
        tuple(variable.numpy()[index] for variable in stack.statistics)
        for stack in norms
        for index in range(stack.count)
    ]


def _moved(before: Sequence[tuple], after: Sequence[tuple]) -> str:
    """A line that says how far the statistics of layers moved, over their channels."""
    pairs = list(zip(before, after, strict=True))
    shifts = [np.abs(new[0] - old[0]) / np.sqrt(old[1] + EPSILON) for old, new in pairs]
    ratios = [np.log((new[1] + EPSILON) / (old[1] + EPSILON)) for old, new in pairs]
    shift, ratio = (np.median([np.median(layer) for layer in values]) for values in (shifts, ratios))
    extreme = max(np.concatenate(ratios), key=abs)
    return (
        f"batch norm of {len(pairs)} layers: means moved by {shift:.2g} standard deviations (median), at most "
        f"{np.concatenate(shifts).max():.2g}; variances are {np.exp(ratio):.2g} times the old (median), "
        f"{np.exp(extreme):.2g} times at the extreme"
    )
