"""The passes through a model's networks: images -> features -> latents -> the distribution of images.

`model` is the `NVAE` (nvae.py) whose networks compute. Images are `[batch, height, width, channels]` in [0, 1]. Without
`forward` a pass is one of inference. Seeds are int32 `[batch, 2]`, see `latents.image_seeds`; labels int32 `[batch]`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf import objective as objectives
from nvae_tf.config import MOST_IMPORTANCE_SAMPLES, check, whole_number
from nvae_tf.layers import FoldedPass, ForwardPass, StackedLayer, layers_of_kind
from nvae_tf.models.images import real_pixels
from nvae_tf.models.latents import (
    GivenSource,
    GuidedSource,
    InferredGroup,
    KeptChannelsSource,
    LatentSample,
    LatentSource,
    PosteriorSource,
    PriorSource,
    inferred_group,
    latents_type,
    noise_per_image,
)
from nvae_tf.models.reweighted_prior import with_reweighted_prior
from nvae_tf.models.top_down import ClassEmbedding, TopDown
from nvae_tf.objective import ImportanceWeighting


class Decoded(NamedTuple):
    """The end of a top-down pass."""

    parameters: tf.Tensor  # the likelihood's, over the padded frame, `[batch, height, width, parameters]`
    likelihood: tfp.distributions.Distribution  # over the real pixels, event `[height, width, channels]` in [0, 1]
    latents: list[LatentSample]  # top group first

    def elbo(self, images: tf.Tensor) -> objectives.Elbo:
        """The bound's terms for the images that the latents were inferred from, in nats."""
        return objectives.Elbo(-self.likelihood.log_prob(images), objectives.kl_per_group(self.latents))

    def flat_latents(self) -> tf.Tensor:
        """All latents of an image as one row `[batch, total]`, group after group, see `groups_of_flat`."""
        pieces = []
        for latent in self.latents:
            size = math.prod(latent.z.shape[1:])
            flat_groups = tf.reshape(latent.z, [latent.groups, -1, size])
            pieces.append(tf.reshape(tf.transpose(flat_groups, [1, 0, 2]), [-1, latent.groups * size]))
        return tf.concat(pieces, axis=1)


def inference_pass(
    model, images: tf.Tensor, noise: Sequence[tf.Tensor], forward: ForwardPass | None = None, kept_channels=None
) -> Decoded:
    """Both passes for images `[batch, height, width, channels]`, with every latent from the posterior.

    `noise` are the groups' standard-normal draws, top group first. Latent channels outside of a mask `kept_channels`,
    see `latents.active_channels`, are at the prior's mean.
    """
    forward = forward or FoldedPass()
    features = model.bottom_up.features(images, forward)
    sources = list(map(PosteriorSource, features, noise))
    if kept_channels is not None:
        sources = list(map(KeptChannelsSource, sources, tf.unstack(kept_channels)))
    return top_down_pass(model, sources, tf.shape(images)[0], forward)


def top_down_pass(
    model, sources: Sequence[LatentSource], batch_size, forward: ForwardPass | None = None, kept=None
) -> Decoded:
    """From one latent source for each group to the distribution of images, of the first `kept` alone if it is given."""
    parameters, latents = model.top_down.run(sources, batch_size, forward or FoldedPass())
    parameters = parameters if kept is None else parameters[:kept]
    pixels = real_pixels(parameters, model.config.image_height, model.config.image_width)
    return Decoded(parameters, model.likelihood.distribution(pixels), latents)


def pass_of_loop(model, labels: tf.Tensor | None = None) -> ForwardPass:
    """A pass of inference that has read all weights already, for what is called in every turn of a loop."""
    forward = FoldedPass(labels=labels)
    for layer in layers_of_kind(model, (StackedLayer, TopDown, ClassEmbedding)):
        forward.weights_of(layer)
    return forward


def encoded_latents(model, images, seeds, labels, noise_scale=1.0, kept_channels=None) -> list[LatentSample]:
    """Latents from the posterior; `noise_scale` multiplies its sigma (0: the means)."""
    noise = [noise_scale * eps for eps in noise_per_image(model.plan.latent_shapes(), seeds)]
    return inference_pass(model, images, noise, FoldedPass(labels=labels), kept_channels).latents


def inferred(model, images, seeds, labels, noise_scale: float) -> tuple[InferredGroup, ...]:
    """What `NVAE.infer` returns."""
    return tuple(map(inferred_group, encoded_latents(model, images, seeds, labels, noise_scale)))


def encoded(model, images, seeds, labels, kept_channels, noise_scale: float) -> tuple[tf.Tensor, ...]:
    """What `NVAE.encode` returns; every row has the same `kept_channels`."""
    kept_channels = None if kept_channels is None else kept_channels[0]
    latents = encoded_latents(model, images, seeds, labels, noise_scale, kept_channels)
    return latents_type(len(latents))._make(latent.z for latent in latents)


def features(model, images, seeds, labels, groups: Sequence[int], pool: str | None) -> tf.Tensor:
    """What `NVAE.features` returns."""
    latents, columns = encoded_latents(model, images, seeds, labels, noise_scale=0.0), []
    for latent in (latents[group] for group in groups):
        means = latent.posterior.loc / latent.prior.scale
        means = means if pool is None else tf.reduce_mean(means, axis=(1, 2))
        columns.append(tf.reshape(means, (-1, math.prod(means.shape[1:]))))
    return tf.concat(columns, axis=1)


def generated(
    model, seeds, labels, *latents, temperatures, guidance=1.0, prior=None, mean=True, scanned=False
) -> tf.Tensor:
    """What `NVAE.generate` and `decode` return, for the temperature of each group.

    Latents of the top groups may be given; the other groups' draws are the same as without, and as with a reweighted
    prior of the top groups.
    """
    is_guided, num_groups = guidance != 1.0, model.plan.num_groups
    check(not (is_guided and latents), "guidance is of the priors of all groups: no latents may be given with it")
    sources: list[LatentSource] = list(map(GivenSource, latents))
    if len(sources) < num_groups:
        noise = noise_per_image(model.plan.latent_shapes(), seeds)
        for eps, temperature in list(zip(noise, temperatures, strict=True))[len(sources) :]:
            sources.append(GuidedSource(eps, temperature, guidance) if is_guided else PriorSource(eps, temperature))
    if prior is not None:
        sources = with_reweighted_prior(prior, sources, seeds, temperatures, model.plan, labels)
    count = kept = tf.shape(seeds)[0]
    if is_guided:
        count, labels = 2 * count, tf.concat([labels, -tf.ones_like(labels)], axis=0)
    forward = FoldedPass(labels=labels, scanned=scanned)
    decoded = top_down_pass(model, sources, count, forward, kept if is_guided else None)
    if mean:
        return decoded.likelihood.mean()
    pixels = real_pixels(decoded.parameters, model.config.image_height, model.config.image_width)
    return model.likelihood.sample(pixels, seeds)


def elbo(model, images: tf.Tensor, seeds: tf.Tensor, labels: tf.Tensor | None) -> objectives.Elbo:
    """The bound's terms in nats, at one draw of the latents."""
    noise = noise_per_image(model.plan.latent_shapes(), seeds)
    return inference_pass(model, images, noise, FoldedPass(labels=labels)).elbo(images)


def nelbo_of_classes(model, images: tf.Tensor, noise_of: Callable, samples: int = 1) -> tf.Tensor:
    """The NELBO of images given each class, in nats, `[classes, batch]`: the mean over draws of the latents.

    `noise_of(number)` is the noise of a draw, as for `inference_pass`.
    """
    # What does not depend on the class is computed once.
    forward, count, classes = pass_of_loop(model), tf.shape(images)[0], model.config.num_classes
    features = model.bottom_up.features(images, forward)

    def nelbo(number: tf.Tensor) -> tf.Tensor:
        class_pass = dataclasses.replace(forward, labels=tf.fill([count], number % classes))
        sources = list(map(PosteriorSource, features, noise_of(number // classes)))
        return top_down_pass(model, sources, count, class_pass).elbo(images).nelbo

    nelbos = tf.map_fn(nelbo, tf.range(classes * samples), fn_output_signature=tf.float32)
    return tf.reduce_mean(tf.reshape(nelbos, [samples, classes, -1]), axis=0)


def class_probabilities(model, images: tf.Tensor, seeds: tf.Tensor, samples: int) -> tf.Tensor:
    """What `NVAE.classify` returns."""
    noise_of = functools.partial(noise_per_image, model.plan.latent_shapes(), seeds)
    return tf.nn.softmax(-tf.transpose(nelbo_of_classes(model, images, noise_of, samples)))


def importance_weighted(model, images, seeds, labels, importance_samples: int) -> tf.Tensor:
    """The importance-weighted bound `[batch]` in nats; the bottom-up pass runs once."""
    importance_samples = whole_number("importance_samples", importance_samples, 1, MOST_IMPORTANCE_SAMPLES)
    begun = ImportanceWeighting.begun(tf.shape(images)[0], num_numbers=1)
    features, whole = model.bottom_up.features(images), (0, importance_samples, (importance_samples,))
    return add_importance_samples(model, begun, images, features, seeds, labels, *whole).bounds[:, 0]


def add_importance_samples(
    model, before: ImportanceWeighting, images, features, seeds, labels, first, last, numbers, samples_at_once=1
) -> ImportanceWeighting:
    """Adds samples `first ... last - 1` of every image to those `before`, functions of seed and number.

    Images `[batch, height, width, channels]` have these features; `numbers` see `objective.add_samples`. One pass draws
    `samples_at_once`, with as many times the memory.
    """
    forward = pass_of_loop(model, None if labels is None else tf.repeat(labels, samples_at_once))
    if samples_at_once > 1:
        images, *features = (tf.repeat(tensor, samples_at_once, axis=0) for tensor in (images, *features))
    shapes, num_rows = model.plan.latent_shapes(), tf.shape(images)[0]

    def log_weights(indices: tf.Tensor) -> tf.Tensor:
        noise = noise_per_image(shapes, seeds, indices[0], samples_at_once)
        decoded = top_down_pass(model, list(map(PosteriorSource, features, noise)), num_rows, forward)
        log_q, log_p = objectives.log_posterior_and_prior(decoded.latents)
        return tf.reshape(decoded.likelihood.log_prob(images) + log_p - log_q, [-1, samples_at_once])

    return objectives.add_samples(log_weights, before, numbers, first, last, samples_at_once)
