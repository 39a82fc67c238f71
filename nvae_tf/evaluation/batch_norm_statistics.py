"""Running batch-norm statistics for sampling at a temperature (Vahdat & Kautz 2020, section 4).

The running statistics are those of latents of training images; at a low temperature images come out wrong in color and
contrast. So the generator is first run with batch statistics on latents of the prior at that temperature.
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
from nvae_tf.models.top_down import TopDown

# Images are drawn from seeds (seed, number of the image), so no image has the latents of this stream.
_STREAM = -1
_Norm = tuple[str, StackedBatchNormalization, int]  # a layer's name, its stack, and its index in the stack


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
    0.05 batch`; all else stays as it is. ValueError, with the layer, where a statistic is not finite.
    """
    if iterations < 1:
        raise ValueError(f"iterations = {iterations}: must be at least 1")
    if batch_size < 2:
        raise ValueError(f"batch_size = {batch_size}: must be at least 2, or there may be no variance")
    temperatures, reweighted = temperatures_of_groups(temperature, model.plan), check_prior(prior, model)
    copy = type(model).from_config(model.get_config())
    for variable, value in zip(copy.weights, model.weights, strict=True):
        variable.assign(value)
    copy.read_prior = lambda: model.reweighted_prior
    norms = _batch_norms(copy.top_down)
    if not norms:
        return ReadjustedModel(copy, "the generator has no batch norm: nothing to readjust")
    running = {id(variable) for _, stack, _ in norms for variable in stack.statistics}

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
        forward.updates = [(variable, value) for variable, value in forward.updates if id(variable) in running]
        forward.commit()
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for _, value in forward.updates])

    before = _statistics(norms)
    for number in range(iterations):
        if not all_finite_after(tf.constant(number * batch_size, tf.int64)).numpy():
            finite = [np.isfinite(statistics).all() for statistics in _statistics(norms)]
            raise ValueError(
                f"batch norm can't be readjusted: the statistics of {norms[finite.index(False)][0]} are not finite in "
                f"iteration {number + 1} of {iterations}; weights before it are NaN, or what they compute overflows"
            )
    return ReadjustedModel(copy, _moved([name for name, *_ in norms], before, _statistics(norms)))


def _batch_norms(top_down: TopDown) -> list[_Norm]:
    """The batch norms of the generator in the order of their use."""
    holders = [(f"scales/{index}", scale, ("cells", "up")) for index, scale in enumerate(top_down.scales)]
    holders += [(f"postprocess/{index}", block, ("up", "cells")) for index, block in enumerate(top_down.postprocess)]
    stacks = [(f"{name}/{part}", getattr(holder, part)) for name, holder, parts in holders for part in parts]
    return [
        (f"top_down/{name}[{index}], batch norm {number}", norm, index)
        for name, cells in stacks
        if cells is not None
        for index in range(cells.count)
        for number, norm in enumerate(part for part in cells.recorders() if isinstance(part, StackedBatchNormalization))
    ]


def _statistics(norms: Sequence[_Norm]) -> list[tuple[np.ndarray, ...]]:
    """The running mean and variance of each layer, `[channels]` each."""
    return [tuple(variable.numpy()[index] for variable in stack.statistics) for _, stack, index in norms]


def _moved(layers: Sequence[str], before: Sequence[tuple], after: Sequence[tuple]) -> str:
    """A line that says how far the statistics of layers moved, over their channels."""
    pairs = list(zip(before, after, strict=True))
    shifts = [np.abs(new[0] - old[0]) / np.sqrt(old[1] + EPSILON) for old, new in pairs]
    ratios = [np.log((new[1] + EPSILON) / (old[1] + EPSILON)) for old, new in pairs]
    extremes = [ratio[np.argmax(np.abs(ratio))] for ratio in ratios]
    furthest, widest = int(np.argmax([shift.max() for shift in shifts])), int(np.argmax(np.abs(extremes)))
    shift, ratio = (np.median([np.median(layer) for layer in values]) for values in (shifts, ratios))
    return (
        f"batch norm of {len(layers)} layers: means moved by {shift:.2g} standard deviations (median), at most "
        f"{shifts[furthest].max():.2g} ({layers[furthest]}); variances are {np.exp(ratio):.2g} times the old (median), "
        f"{np.exp(extremes[widest]):.2g} times at the extreme ({layers[widest]})"
    )
