"""A reweighted prior: the top groups' priors times a learned ratio, sampled by resampling (Aneja et al. 2021).

The prior p(z) of a VAE has holes: most of its mass lies where no image's posterior does. The noise-contrastive prior of
arXiv 2010.02917 is `r(z) p(z) / Z`, where r is the ratio of the posteriors of all images together to the prior. A
classifier of draws of both gives it: its logit is log r. A sample is one of some proposals from the prior, chosen with
probabilities proportional to r (sampling-importance-resampling), group after group; the groups below those that are
reweighted are drawn as usual. Training is in `nvae_tf.training.prior`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nvae_tf.config import PRIORS, check, check_choice
from nvae_tf.distributions.soft_clamped_normal import SoftClampedNormal, soft_clamped_normal
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.models.latents import GroupLayers, LatentSample, LatentSource, PriorSource

NONE_LEARNED = "this model has no reweighted prior: nvae-prior --workdir=RUN learns one of a run"
# The numbers of a latent up to which a classifier has no convolutions.
_MOST_FOR_PERCEPTRON = 1000
_UNITS, _HIDDEN_LAYERS = 256, 3
_CHANNELS, _BLOCKS, _SMALLEST_MAP = 64, 3, 4
# Of the numbers that are folded into an image's seed for proposals, so that no other draw has them.
_STREAM = 0x5072696F

Context = Sequence[tf.Tensor]


class Perceptron(keras.layers.Layer):
    """The log ratio of small latents: three layers of 256 swish units see the latent and its context, flattened."""

    def __init__(self):
        super().__init__(dtype="float32")
        self.of_latent, *self.hidden = (keras.layers.Dense(_UNITS, dtype="float32") for _ in range(_HIDDEN_LAYERS))
        self.of_context = keras.layers.Dense(_UNITS, use_bias=False, dtype="float32")
        self.logit = keras.layers.Dense(1, dtype="float32")

    def call(self, whitened: tf.Tensor, context: Context) -> tf.Tensor:
        """`[batch, proposals, height, width, channels]` -> nats, `[batch, proposals]`; see `ReweightedPrior`."""
        count, proposals, size = tf.shape(whitened)[0], whitened.shape[1], math.prod(whitened.shape[2:])
        # Matrices alone: Keras multiplies tensors of three axes in batches, which takes longer.
        state = self.of_latent(tf.reshape(whitened, [-1, size]))
        if context:
            parts = [tf.reshape(part, [-1, math.prod(part.shape[1:])]) for part in context]
            # Once for an image, not for each of its proposals.
            of_context = self.of_context(tf.concat(parts, axis=1))[:, tf.newaxis]
            state = tf.reshape(tf.reshape(state, [count, proposals, _UNITS]) + of_context, [-1, _UNITS])
        for layer in self.hidden:
            state = layer(tf.nn.silu(state))
        return tf.reshape(self.logit(tf.nn.silu(state)), [count, proposals])


class ResidualConvolutions(keras.layers.Layer):
    """The log ratio of large latents: residual blocks of 3x3 convolutions, between which large maps are halved."""

    def __init__(self):
        super().__init__(dtype="float32")
        options = dict(padding="same", dtype="float32")
        self.of_latent = keras.layers.Conv2D(_CHANNELS, 3, **options)
        self.of_context = keras.layers.Conv2D(_CHANNELS, 3, use_bias=False, **options)
        self.blocks = [keras.layers.Conv2D(_CHANNELS, 3, **options) for _ in range(2 * _BLOCKS)]
        self.logit = keras.layers.Dense(1, dtype="float32")

    def call(self, whitened: tf.Tensor, context: Context) -> tf.Tensor:
        """`[batch, proposals, height, width, channels]` -> nats, `[batch, proposals]`; see `ReweightedPrior`."""
        count, proposals, shape = tf.shape(whitened)[0], whitened.shape[1], whitened.shape[2:]
        state = self.of_latent(tf.reshape(whitened, [-1, *shape]))
        if context:
            of_context = self.of_context(tf.concat([_enlarged(part, *shape[:2]) for part in context], axis=3))
            maps = tf.reshape(state, [count, proposals, *state.shape[1:]]) + of_context[:, tf.newaxis]
            state = tf.reshape(maps, [-1, *state.shape[1:]])
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            state += second(tf.nn.silu(first(tf.nn.silu(state))))
            if min(state.shape[1:3]) > _SMALLEST_MAP:
                state = tf.nn.avg_pool2d(state, 2, 2, "SAME")
        return tf.reshape(self.logit(tf.reduce_mean(tf.nn.silu(state), axis=(1, 2))), [count, proposals])


def _enlarged(part: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """A map of the same or of a smaller scale as one of `[batch, height, width, channels]`."""
    return tf.repeat(tf.repeat(part, height // part.shape[1], axis=1), width // part.shape[2], axis=2)


class Mixture(keras.layers.Layer):
    """The log ratio of a mixture of Gaussians, of the flattened latent, to the standard normal distribution."""

    def __init__(self, components: int, size: int):
        super().__init__(dtype="float32")
        shapes = {"log_weights": (components,), "means": (components, size), "factors": (components, size, size)}
        self.log_weights, self.means, self.factors = (
            self.add_weight(name=name, shape=shape, trainable=False) for name, shape in shapes.items()
        )

    def call(self, whitened: tf.Tensor, context: Context) -> tf.Tensor:
        """`[batch, proposals, height, width, channels]` -> nats, `[batch, proposals]`."""
        size = self.means.shape[1]
        rows, factors = tf.reshape(whitened, [-1, size]), tf.convert_to_tensor(self.factors)
        # A factor F of a precision, F F' = C^-1, as scikit-learn has it; both densities lack the same constant.
        centers = tf.einsum("cs,cst->ct", self.means, factors)
        of_components = zip(tf.unstack(factors), tf.unstack(centers), strict=True)
        distances = tf.stack([rows @ factor - center for factor, center in of_components])
        log_determinants = tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factors)), axis=1)
        log_densities = -0.5 * tf.reduce_sum(distances**2, axis=2) + (self.log_weights + log_determinants)[:, None]
        log_ratio = tf.reduce_logsumexp(log_densities, axis=0) + 0.5 * tf.reduce_sum(rows**2, axis=1)
        return tf.reshape(log_ratio, [tf.shape(whitened)[0], whitened.shape[1]])


class Resampled(NamedTuple):
    """What a group's source has drawn: z `[batch, height, width, channels]`, and of how many proposals, in effect."""

    z: tf.Tensor
    effective_proposals: tf.Tensor  # `(sum r)^2 / sum r^2`, `[batch]`: from 1 to the number of proposals


@dataclasses.dataclass(frozen=True)
class ReweightedPrior:
    """The ratios of the top groups, top group first; no part of the model's weights.

    A ratio is a layer `(whitened, context) -> log r` in nats, `[batch, proposals]`. It sees proposals whitened by the
    group's prior, `(z - mean) / sigma`, and as context what proposals of an image have in common: the latents of the
    groups above and, below the top group, mean and log-sigma of the prior; of a conditional model the class too.
    """

    ratios: tuple[keras.layers.Layer, ...]
    proposals: int
    num_classes: int = 0
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # how it was learned, see `training.prior`

    def log_ratio(
        self,
        group: int,
        z: tf.Tensor,
        prior: SoftClampedNormal,
        above: Sequence[tf.Tensor],
        labels: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Log r in nats, `[batch, proposals]`, of proposals `[batch, proposals, height, width, channels]` of a group.

        `prior` is the group's at temperature 1, and `above` are the latents of the groups above.
        """
        context = [*above, prior.loc, tf.math.log(prior.scale)] if group else []
        if self.num_classes:
            labels = tf.fill([tf.shape(z)[0]], -1) if labels is None else labels
            # -1, no class, gives zeros.
            context.append(tf.one_hot(labels, self.num_classes)[:, tf.newaxis, tf.newaxis])
        return self.ratios[group]((z - prior.loc[:, tf.newaxis]) / prior.scale[:, tf.newaxis], context)

    def sources(
        self,
        seeds: tf.Tensor,
        temperatures: Sequence[float | tf.Tensor],
        plan: LatentPlan,
        labels: tf.Tensor | None = None,
    ) -> list["ResampledSource"]:
        """The sources of the top groups for one seed an image `[batch, 2]`, on which alone an image's draws depend."""
        shapes = plan.latent_shapes()[: len(self.ratios)]
        sizes = [math.prod(shape) for shape in shapes]

        def draws(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            of_noise, of_choice = (
                tf.random.experimental.stateless_fold_in(seed, _STREAM + number, alg="philox") for number in range(2)
            )
            noise = tf.random.stateless_normal([self.proposals, sum(sizes)], of_noise, alg="philox")
            uniform = tf.random.stateless_uniform([len(sizes), self.proposals], of_choice, alg="philox")
            return noise, uniform

        specs = tf.TensorSpec([self.proposals, sum(sizes)]), tf.TensorSpec([len(sizes), self.proposals])
        noise, uniform = tf.map_fn(draws, seeds, fn_output_signature=specs)
        gumbel = tf.unstack(-tf.math.log(-tf.math.log(uniform)), axis=1)
        noise = [
            tf.reshape(part, [-1, self.proposals, *shape])
            for part, shape in zip(tf.split(noise, sizes, axis=2), shapes, strict=True)
        ]
        drawn: list[Resampled] = []
        draws_of_groups = zip(noise, gumbel, temperatures[: len(sizes)], strict=True)
        return [ResampledSource(self, *of_group, drawn, labels) for of_group in draws_of_groups]


@dataclasses.dataclass(frozen=True)
class ResampledSource:
    """Draws from `r(z) p(z | groups above) / Z`: of proposals from the prior one, chosen by the Gumbel-max trick.

    The sources of a pass share the list `drawn`, to which each adds what it has drawn.
    """

    reweighted: ReweightedPrior
    noise: tf.Tensor  # standard-normal, `[batch, proposals, height, width, channels]`
    gumbel: tf.Tensor  # draws of the Gumbel distribution, `[batch, proposals]`
    temperature: float | tf.Tensor  # multiplies the prior's sigma; the ratio is that at 1
    drawn: list[Resampled]
    labels: tf.Tensor | None = None

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        parameters = layers.prior(state)
        prior = soft_clamped_normal(*parameters, self.temperature)
        proposals = prior.loc[:, tf.newaxis] + prior.scale[:, tf.newaxis] * self.noise
        above, at_one = [drawn.z for drawn in self.drawn], soft_clamped_normal(*parameters)
        log_ratio = self.reweighted.log_ratio(len(above), proposals, at_one, above, self.labels)
        z = tf.gather(proposals, tf.argmax(log_ratio + self.gumbel, axis=1), axis=1, batch_dims=1)
        probabilities = tf.nn.softmax(log_ratio)
        self.drawn.append(Resampled(z, 1.0 / tf.reduce_sum(probabilities**2, axis=1)))
        return LatentSample(z, z, prior)


def made_ratios(kind: str, groups: int, plan: LatentPlan, num_classes: int, components: int = 0) -> tuple:
    """The ratios of the top groups of a model, with their first weights; `components` are those of a mixture."""
    shapes = plan.latent_shapes()[:groups]
    if kind == "mixture":
        return (Mixture(components, math.prod(shapes[0])),)
    ratios = tuple(
        Perceptron() if math.prod(shape) <= _MOST_FOR_PERCEPTRON else ResidualConvolutions() for shape in shapes
    )
    reweighted = ReweightedPrior(ratios, 1, num_classes)
    zeros = [tf.zeros([1, *shape]) for shape in shapes]
    for group, z in enumerate(zeros):
        # Makes the weights.
        reweighted.log_ratio(group, z[:, tf.newaxis], SoftClampedNormal(z, z + 1.0), zeros[:group])
    return ratios


def check_prior(prior: str, model: Any) -> ReweightedPrior | None:
    """The reweighted prior of a model where it is asked for, None where the model's own is.

    ValueError for another word, or where the model has none that belongs to its weights.
    """
    check_choice("prior", prior, PRIORS)
    if prior == "model":
        return None
    check(isinstance(model.reweighted_prior, ReweightedPrior), str(model.reweighted_prior))
    return model.reweighted_prior


def with_reweighted_prior(
    model: Any,
    sources: Sequence[LatentSource],
    seeds: tf.Tensor,
    temperatures: Sequence[float | tf.Tensor],
    labels: tf.Tensor | None,
) -> list[LatentSource]:
    """The sources of all groups, the top ones those of the model's reweighted prior; ValueError as `check_prior`."""
    reweighted = check_prior("reweighted", model)
    is_plain = all(isinstance(source, PriorSource) for source in sources)
    check(is_plain, "the reweighted prior draws the top groups by itself: neither guidance nor latents go with it")
    top = reweighted.sources(seeds, temperatures, model.plan, labels)
    return [*top, *sources[len(top) :]]
