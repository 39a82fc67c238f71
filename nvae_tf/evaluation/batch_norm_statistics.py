"""Running batch-norm statistics for sampling at a temperature (Vahdat & Kautz 2020, section 4).

Images at a low temperature come out wrong in color and contrast with the statistics of training images.
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.layers import ForwardPass, StackedBatchNormalization, layers_of_kind
from nvae_tf.layers.cpu_kernels import EPSILON
from nvae_tf.models import NVAE
from nvae_tf.models.latents import PriorSource, batch_noise, temperatures_of_groups
from nvae_tf.models.passes import top_down_pass
from nvae_tf.models.reweighted_prior import check_prior, with_reweighted_prior

# Images are drawn from seeds (seed, number of the image), so no image has the latents of this stream.
_STREAM = -1


class ReadjustedModel(NamedTuple):
    """A copy of a model with other running statistics in its generator."""

    model: NVAE
    text: str  # how far they moved


def readjusted(model: NVAE, temperature, iterations=500, batch_size=16, seed=0, prior="model") -> ReadjustedModel:
    """A copy of a model with the running batch-norm statistics of sampling at a temperature, from a prior.

    The generator's statistics follow `iterations` batches of at least 2 images by the layers' own rule; all else stays
    as it is. ValueError where a statistic is not finite.
    """
    if iterations < 1 or batch_size < 2:
        raise ValueError(f"iterations = {iterations}, batch_size = {batch_size}: must be at least 1, and at least 2")
    temperatures, reweighted = temperatures_of_groups(temperature, model.plan), check_prior(prior, model)
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    copy.read_prior = lambda: model.reweighted_prior
    norms = layers_of_kind(copy.top_down, StackedBatchNormalization)
    if not norms:
        return ReadjustedModel(copy, "the generator has no batch norm: nothing to readjust")

    draw = functools.partial(_draw_batch, copy, reweighted, temperatures, batch_size, seed)
    draw = tf.function(draw, input_signature=[tf.TensorSpec((), tf.int64)], autograph=False)
    before = [[variable.numpy() for variable in stack.statistics] for stack in norms]
    for number in range(iterations):
        if not draw(tf.constant(number * batch_size, tf.int64)).numpy():
            raise ValueError(f"batch norm can't be readjusted: not finite in iteration {number + 1} of {iterations}")
    shifts = [
        np.ravel(np.abs(stack.moving_mean.numpy() - mean) / np.sqrt(variance + EPSILON))
        for stack, (mean, variance) in zip(norms, before, strict=True)
    ]
    shift = f"{np.median(np.concatenate(shifts)):.2g} standard deviations (median)"
    return ReadjustedModel(copy, f"batch norm of {sum(stack.count for stack in norms)} layers: means moved by {shift}")


def _draw_batch(model: NVAE, reweighted, temperatures, batch_size: int, seed: int, first: tf.Tensor) -> tf.Tensor:
    """Draws images from number `first` on; their statistics go into the running ones. Whether all are finite."""
    # All classes of a conditional model in turn.
    numbers, classes = tf.cast(first, tf.int32) + tf.range(batch_size), model.config.num_classes
    forward = ForwardPass(training=True, labels=numbers % classes if classes else None)
    noise = batch_noise(model.plan.latent_shapes(), batch_size, (seed, _STREAM), first)
    sources = list(map(PriorSource, noise, temperatures))
    if reweighted is not None:
        # Numbers below 0, which no image has.
        seeds = tf.stack([tf.fill([batch_size], seed), -1 - numbers], axis=1)
        sources = with_reweighted_prior(reweighted, sources, seeds, temperatures, model.plan, forward.labels)
    top_down_pass(model, sources, batch_size, forward)
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for _, value in forward.commit()])
