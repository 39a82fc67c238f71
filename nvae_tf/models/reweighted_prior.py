"""A reweighted prior: the top groups' priors times a learned ratio, sampled by resampling (Aneja et al. 2021).

The noise-contrastive prior of arXiv 2010.02917 is `r(z) p(z) / Z`, with the ratio r of all images' posteriors to the
prior; log r is the logit of a classifier. A sample is one of some proposals from the prior, chosen with probabilities
proportional to r, group after group. A mixture of Gaussians can be drawn from by itself (Ghosh et al. 2020).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nvae_tf.config import PRIOR_KINDS, PRIORS, check, check_choice, whole_number
from nvae_tf.distributions.soft_clamped_normal import SoftClampedNormal, soft_clamped_normal
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.models.latents import ComposedSource, GroupLayers, LatentSample, PriorSource, groups_of_flat, in_graph

NONE_LEARNED = "this model has no reweighted prior: nvae-prior --workdir=RUN learns one"
CHANCE = 2.0 * math.log(2.0)  # the cross-entropy of a classifier that knows nothing: of a pair of draws, in nats
MOST_FOR_PERCEPTRON = 1000  # the size of a latent up to which a classifier has no convolutions
_UNITS, _CHANNELS = 256, 64
_STREAM = 0x5072696F  # is folded into an image's seed, so that no other draws equal the proposals'


class Perceptron(keras.layers.Layer):
    """The log ratio of small latents: three layers of 256 swish units see the latent and its context, flattened."""

    def __init__(self):
        super().__init__(dtype="float32")
        self.latent_layer, *self.hidden = (keras.layers.Dense(_UNITS, dtype="float32") for _ in range(3))
        self.context_layer = keras.layers.Dense(_UNITS, use_bias=False, dtype="float32")
        self.logit = keras.layers.Dense(1, dtype="float32")
        self.built = True  # its layers are built at their first call

    def call(self, whitened: tf.Tensor, context: Sequence[tf.Tensor]) -> tf.Tensor:
        """The log ratio `[batch, proposals]` in nats, see `ReweightedPrior`."""
        count, proposals, size = tf.shape(whitened)[0], whitened.shape[1], math.prod(whitened.shape[2:])
        # Keras multiplies tensors of three axes in batches, which takes longer than matrices.
        state = self.latent_layer(tf.reshape(whitened, [-1, size]))
        if context:
            parts = [tf.reshape(part, [-1, math.prod(part.shape[1:])]) for part in context]
            context_state = self.context_layer(tf.concat(parts, axis=1))[:, tf.newaxis]
            state = tf.reshape(tf.reshape(state, [count, proposals, _UNITS]) + context_state, [-1, _UNITS])
        for layer in self.hidden:
            state = layer(tf.nn.silu(state))
        return tf.reshape(self.logit(tf.nn.silu(state)), [count, proposals])


class ResidualConvolutions(keras.layers.Layer):
    """The log ratio of large latents: 3 residual blocks of 3x3 convolutions; between them maps above 4x4 are halved."""

    def __init__(self):
        super().__init__(dtype="float32")
        options = dict(padding="same", dtype="float32")
        self.latent_layer = keras.layers.Conv2D(_CHANNELS, 3, **options)
        self.context_layer = keras.layers.Conv2D(_CHANNELS, 3, use_bias=False, **options)
        self.blocks = [keras.layers.Conv2D(_CHANNELS, 3, **options) for _ in range(2 * 3)]
        self.logit = keras.layers.Dense(1, dtype="float32")
        self.built = True

    def call(self, whitened: tf.Tensor, context: Sequence[tf.Tensor]) -> tf.Tensor:
        """As `Perceptron.call`."""
        count, proposals, shape = tf.shape(whitened)[0], whitened.shape[1], whitened.shape[2:]
        state = self.latent_layer(tf.reshape(whitened, [-1, *shape]))
        if context:
            enlarged = [
                tf.repeat(tf.repeat(part, shape[0] // part.shape[1], axis=1), shape[1] // part.shape[2], axis=2)
                for part in context
            ]
            context_state = self.context_layer(tf.concat(enlarged, axis=3))
            maps = tf.reshape(state, [count, proposals, *state.shape[1:]]) + context_state[:, tf.newaxis]
            state = tf.reshape(maps, [-1, *state.shape[1:]])
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            state += second(tf.nn.silu(first(tf.nn.silu(state))))
            if min(state.shape[1:3]) > 4:
                state = tf.nn.avg_pool2d(state, 2, 2, "SAME")
        return tf.reshape(self.logit(tf.reduce_mean(tf.nn.silu(state), axis=(1, 2))), [count, proposals])


class Mixture(keras.layers.Layer):
    """A mixture of Gaussians of the flattened latent, and its log ratio to the standard normal distribution."""

    def __init__(self, components: int, size: int):
        super().__init__(dtype="float32")
        self.log_weights = self.add_weight(name="log_weights", shape=(components,), trainable=False)
        self.means = self.add_weight(name="means", shape=(components, size), trainable=False)
        # Cholesky factors of the covariances.
        self.factors = self.add_weight(name="factors", shape=(components, size, size), trainable=False)
        self.built = True

    def call(self, whitened: tf.Tensor, context: Sequence[tf.Tensor]) -> tf.Tensor:
        """As `Perceptron.call`."""
        rows, factors = tf.reshape(whitened, [-1, self.means.shape[1]]), tf.convert_to_tensor(self.factors)
        centered = rows - self.means[:, tf.newaxis]
        distances = tf.linalg.triangular_solve(factors, tf.linalg.matrix_transpose(centered))
        log_determinants = tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factors)), axis=1)
        # Both densities lack the same constant.
        log_densities = (self.log_weights - log_determinants)[:, tf.newaxis] - 0.5 * tf.reduce_sum(distances**2, axis=1)
        log_ratio = tf.reduce_logsumexp(log_densities, axis=0) + 0.5 * tf.reduce_sum(rows**2, axis=1)
        return tf.reshape(log_ratio, [tf.shape(whitened)[0], whitened.shape[1]])

    def drawn(self, noise: tf.Tensor, gumbel: tf.Tensor) -> tf.Tensor:
        """Draws of the shape of the noise `[batch, height, width, channels]`; `gumbel` is `[batch, components]`."""
        chosen = tf.argmax(self.log_weights + gumbel, axis=1)
        scaled = tf.linalg.matvec(tf.gather(self.factors, chosen), tf.reshape(noise, [-1, self.means.shape[1]]))
        return tf.reshape(tf.gather(self.means, chosen) + scaled, tf.shape(noise))


@dataclasses.dataclass(frozen=True, eq=False)
class ReweightedPrior:
    """The ratios of the top groups, top group first; no part of the model's weights.

    A ratio is a layer `(whitened, context) -> log r` in nats, `[batch, proposals]`. It sees proposals whitened by the
    group's prior, `[batch, proposals, height, width, channels]`, and as context the latents of the groups above, below
    the top group mean and log-sigma of the prior, and the class of a conditional model.
    """

    ratios: tuple[keras.layers.Layer, ...]
    proposals: int  # of the top group's latent, of which one is chosen; see `proposals_of_groups`
    num_classes: int = 0
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # how it was learned, see `training.prior`

    def log_ratio(self, group: int, whitened, prior: SoftClampedNormal, above: Sequence, labels=None) -> tf.Tensor:
        """Log r in nats, `[batch, proposals]`, of proposals of a group, whitened by its `prior` at temperature 1."""
        context = [*above, prior.loc, tf.math.log(prior.scale)] if group else []
        if self.num_classes:
            labels = tf.fill([tf.shape(whitened)[0]], -1) if labels is None else labels
            # -1, no class, gives zeros.
            context.append(tf.one_hot(labels, self.num_classes)[:, tf.newaxis, tf.newaxis])
        return self.ratios[group](whitened, context)

    def sources(self, seeds: tf.Tensor, temperatures: Sequence, plan: LatentPlan, labels=None) -> list:
        """The sources of the top groups for one seed an image `[batch, 2]`, on which alone an image's draws depend."""
        shapes = plan.latent_shapes()[: len(self.ratios)]
        if isinstance(self.ratios[0], Mixture):
            noise, gumbel = _draws(seeds, math.prod(shapes[0]), self.ratios[0].means.shape[0])
            return [MixtureSource(self.ratios[0], tf.reshape(noise, [-1, *shapes[0]]), gumbel, temperatures[0])]
        counts = proposals_of_groups(self.proposals, len(shapes))
        # Each draw has its mirror image beside it, which takes no random number: the prior is symmetric.
        halves = [(-(-count // 2), *shape) for count, shape in zip(counts, shapes, strict=True)]
        noise, gumbel = _draws(seeds, sum(map(math.prod, halves)), sum(counts))
        noises, gumbels = groups_of_flat(noise, halves), tf.split(gumbel, counts, axis=1)
        mirrored = [tf.concat([half, -half], axis=1)[:, :count] for half, count in zip(noises, counts, strict=True)]
        draws, drawn = zip(mirrored, gumbels, temperatures, strict=False), []
        return [ResampledSource(self, *draw, drawn, labels) for draw in draws]


def proposals_of_groups(proposals: int, groups: int) -> list[int]:
    """The number of proposals of each group: below the top group half as many, so that sampling stays quick."""
    return [proposals, *[-(-proposals // 2)] * (groups - 1)]


@in_graph
def _draws(seeds: tf.Tensor, normal: int, gumbel: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws of the normal and of the Gumbel distribution for each image, functions of its seed `[batch, 2]`."""

    def draws_of_image(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        fold_in = tf.random.experimental.stateless_fold_in
        noise_seed, choice_seed = (fold_in(seed, _STREAM + number, alg="philox") for number in range(2))
        noise = tf.random.stateless_normal([normal], noise_seed, alg="philox")
        return noise, tf.random.stateless_uniform([gumbel], choice_seed, alg="philox")

    specs = tf.TensorSpec([normal]), tf.TensorSpec([gumbel])
    noise, uniform = tf.map_fn(draws_of_image, seeds, fn_output_signature=specs)
    return noise, -tf.math.log(-tf.math.log(uniform))


class ResampledSource(NamedTuple):
    """Draws from `r(z) p(z | groups above) / Z`: of proposals from the prior one, chosen by the Gumbel-max trick."""

    reweighted: ReweightedPrior
    noise: tf.Tensor  # standard-normal, `[batch, proposals, height, width, channels]`
    gumbel: tf.Tensor  # draws of the Gumbel distribution, `[batch, proposals]`
    temperature: float | tf.Tensor  # multiplies the prior's sigma; the ratio is that at 1
    # Shared by the sources of a pass, each of which adds its z and of how many proposals it is, in effect: `[batch]`,
    # `(sum r)^2 / sum r^2`, from 1 to the number of proposals.
    drawn: list[tuple[tf.Tensor, tf.Tensor | None]]
    labels: tf.Tensor | None = None

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        parameters, above = layers.prior(state), [z for z, _ in self.drawn]
        whitened = self.noise * tf.reshape(tf.cast(self.temperature, tf.float32), [-1, 1, 1, 1, 1])
        prior_at_1 = soft_clamped_normal(parameters)
        log_ratio = self.reweighted.log_ratio(len(above), whitened, prior_at_1, above, self.labels)
        chosen = tf.argmax(log_ratio + self.gumbel, axis=1)
        prior = soft_clamped_normal(parameters, self.temperature)
        z = prior.loc + prior.scale * tf.gather(self.noise, chosen, axis=1, batch_dims=1)
        self.drawn.append((z, 1.0 / tf.reduce_sum(tf.nn.softmax(log_ratio) ** 2, axis=1)))
        return LatentSample(z, z, prior)


class MixtureSource(NamedTuple):
    """Draws from a mixture of Gaussians of the whitened latent, in place of the group's prior."""

    mixture: Mixture
    noise: tf.Tensor  # standard-normal, `[batch, height, width, channels]`
    gumbel: tf.Tensor  # draws of the Gumbel distribution, `[batch, components]`
    temperature: float | tf.Tensor  # multiplies the components' sigma

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        prior = soft_clamped_normal(layers.prior(state))
        z = prior.loc + prior.scale * self.mixture.drawn(self.temperature * self.noise, self.gumbel)
        return LatentSample(z, z, prior)


class PartlyReweightedSource(NamedTuple):
    """As `composed`; of the rows that are not kept, those that are reweighted come from a reweighted prior."""

    composed: ComposedSource
    reweighted: Callable[[], Sequence]  # makes the draws, and of them the sources of the top groups
    is_reweighted: tf.Tensor  # [batch]
    above: list[tuple]  # as `ResampledSource.drawn`: the sources of a pass draw in turn, once each

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        composed, is_drawn = self.composed.draw(layers, state), self.is_reweighted & ~self.composed.keep

        def reweighted() -> tf.Tensor:
            source = self.reweighted()[len(self.above)]
            if isinstance(source, ResampledSource):
                source = source._replace(drawn=list(self.above))
            return tf.compat.v1.where(is_drawn, source.draw(layers, state).z, composed.z)

        # Proposals take longer than all else of a small model.
        z = tf.cond(tf.reduce_any(is_drawn), reweighted, lambda: composed.z)
        self.above.append((z, None))
        return composed._replace(z=z, z_before_flows=z)


def made_ratios(kind: str, groups: int, plan: LatentPlan, num_classes: int, components: int = 0) -> tuple:
    """The ratios of the top groups of a model, with their first weights; `components` are for a mixture."""
    shapes = plan.latent_shapes()[:groups]
    if kind == "mixture":
        return (Mixture(components, math.prod(shapes[0])),)
    are_small = [math.prod(shape) <= MOST_FOR_PERCEPTRON for shape in shapes]
    ratios = tuple(Perceptron() if is_small else ResidualConvolutions() for is_small in are_small)
    reweighted, zeros = ReweightedPrior(ratios, 1, num_classes), [tf.zeros([1, *shape]) for shape in shapes]
    for group, z in enumerate(zeros):  # makes the weights
        reweighted.log_ratio(group, z[:, tf.newaxis], SoftClampedNormal(z, z + 1.0), zeros[:group])
    return ratios


def check_settings(model: Any, groups: int, kind: str, steps: int, proposals: int) -> None:
    """Raises ValueError for what a reweighted prior of a model can't be."""
    check_choice("kind", kind, PRIOR_KINDS)
    limits = {"groups": (groups, model.plan.num_groups), "steps": (steps, 2**31 - 1), "proposals": (proposals, 10_000)}
    for name, (value, most) in limits.items():
        whole_number(name, value, 1, most)
    config, size = model.config, math.prod(model.plan.latent_shapes()[0])
    fits = groups == 1 and size <= MOST_FOR_PERCEPTRON and not config.num_classes and not config.num_flows
    if kind == "mixture" and not fits:
        limits = f"without classes and flows, and of at most {MOST_FOR_PERCEPTRON:,} numbers (here {size:,})"
        raise ValueError(f"groups = {groups}: a mixture is of the top group alone, {limits}; take kind = classifier")


def check_prior(prior: str, model: Any) -> ReweightedPrior | None:
    """The reweighted prior of a model if `prior` asks for it, else None; ValueError if the model has none to use."""
    check_choice("prior", prior, PRIORS)
    if prior == "model":
        return None
    check(isinstance(model.reweighted_prior, ReweightedPrior), str(model.reweighted_prior))
    return model.reweighted_prior


def with_reweighted_prior(reweighted: ReweightedPrior, sources, seeds, temperatures, plan, labels) -> list:
    """The sources of all groups, for the top ones from `reweighted`; ValueError where they are not priors."""
    is_plain = all(isinstance(source, PriorSource) for source in sources)
    check(is_plain, "prior = reweighted draws the top groups by itself: it takes no guidance and no latents")
    top = reweighted.sources(seeds, temperatures, plan, labels)
    return [*top, *sources[len(top) :]]
