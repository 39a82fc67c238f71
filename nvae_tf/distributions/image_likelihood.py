"""The likelihood p(x | z) of whole images, by name."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.config import LIKELIHOODS, NOISY_SIGNAL, REGISTERED, ModelConfig, check, register
from nvae_tf.distributions import discretized_logistic_mixture as mixture
from nvae_tf.distributions.soft_clamped_normal import soft_clamped_normal

tfd = tfp.distributions


def register_likelihood(name: str) -> Callable[[type], type]:
    """Registers a likelihood as `model.likelihood = name`, as a decorator of its class.

    `kind(config)`, of a `ModelConfig`, has `num_parameters`, the count of numbers a pixel, and
    `distribution(parameters)`: a TFP distribution of images in [0, 1] for float32 `[..., height, width,
    num_parameters]`, whose event is a value, a pixel or an image. With `exact_masses = True` it gives masses of the
    levels, so that scores in bits per value mean something. ValueError: the name is taken.
    """
    check(isinstance(name, str), 'register_likelihood takes a name: @nvae_tf.register_likelihood("laplace")')
    return functools.partial(register, "likelihood", name, (*LIKELIHOODS, NOISY_SIGNAL))


@dataclasses.dataclass(frozen=True)
class ImageLikelihood:
    """Distributions of images with C channels in [0, 1], from a decoder's output.

    `bernoulli` is a Bernoulli for each value, from logits; `logistic_mixture` a `DiscretizedLogisticMixture` for each
    pixel, with the last three settings; `normal` a `PixelNormal` for each value, from C means, then C log-scales.
    """

    name: str
    channels: int
    num_mixtures: int = 10
    num_bits: int = 8
    exact_edges: bool = False
    own: Any = None  # a `NoisySignal`, or an object of a registered class, in place of all these

    @classmethod
    def for_model(cls, config: ModelConfig) -> "ImageLikelihood":
        """The likelihood that the settings of a model name."""
        kinds = {NOISY_SIGNAL: NoisySignal} | REGISTERED["likelihood"]
        kind = kinds.get(config.likelihood.rpartition(":")[2])
        own = kind and kind(config)
        if lacking := [part for part in ("num_parameters", "distribution") if kind and not hasattr(own, part)]:
            raise ValueError(f"likelihood {config.likelihood}: its class has no {lacking[0]}")
        mixture_settings = config.num_mixtures, config.num_bits, config.exact_edges
        return cls(config.likelihood, config.image_channels, *mixture_settings, own=own)

    @property
    def num_parameters(self) -> int:
        """The count of numbers that the decoder must give for each pixel."""
        if self.own is not None:
            return self.own.num_parameters
        if self.name == "logistic_mixture":
            return mixture.num_mixture_parameters(self.channels, self.num_mixtures)
        return self.channels if self.name == "bernoulli" else 2 * self.channels

    def distribution(self, parameters: tf.Tensor) -> tfd.Distribution:
        """The distribution of float32 images `[H, W, C]` in [0, 1] for parameters `[..., H, W, num_parameters]`."""
        if self.own is not None:
            values = self.own.distribution(tf.cast(parameters, tf.float32))
            image_shape = [*parameters.shape[-3:-1], self.channels]
            fault = f"likelihood {self.name}: distribution() must be a TFP distribution of images {image_shape}"
            check(isinstance(values, tfd.Distribution), f"{fault}, not a {type(values).__name__}")
            shape = values.batch_shape + values.event_shape
            check(shape[-3:] == image_shape, f"{fault}; its values are {shape}")
            return tfd.Independent(values, 3 - values.event_shape.rank)
        if self.name == "bernoulli":
            return tfd.Independent(tfd.Bernoulli(logits=tf.cast(parameters, tf.float32), dtype=tf.float32), 3)
        if self.name == "normal":
            return tfd.Independent(PixelNormal(*tf.split(parameters, 2, axis=-1)), 3)
        split = mixture.split_mixture_parameters(parameters, self.channels, self.num_mixtures, self.num_bits)
        return tfd.Independent(mixture.DiscretizedLogisticMixture(*split, self.num_bits, self.exact_edges), 2)

    def sample(self, parameters: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Images `[batch, H, W, C]` drawn from p(x | z), on its levels, each by its own seed `[batch, 2]` alone."""

        def draw(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            # The folded number sets the draw apart from all others of the seed.
            seed = tf.random.experimental.stateless_fold_in(row[1], 0x50697865, alg="philox")
            return self.distribution(row[0]).sample(seed=seed)

        images, highest = tf.map_fn(draw, (parameters, seeds), fn_output_signature=tf.float32), 2**self.num_bits - 1
        images = images if self.own is None or self.name == NOISY_SIGNAL else tf.clip_by_value(images, 0.0, 1.0)
        return tf.round(images * highest) / highest if self.name == "logistic_mixture" else images


class PixelNormal(tfd.Distribution):
    """Values x in [0, 1] with the density of a `soft_clamped_normal` on `2x - 1`: on the published scale."""

    # Samples and the mean are mapped to [0, 1] and clipped; the variance is that before clipping.

    def __init__(self, loc: tf.Tensor, log_scale: tf.Tensor):
        parameters = dict(locals())
        self._normal = soft_clamped_normal(tf.concat([loc, log_scale], axis=-1))
        super().__init__(tf.float32, tfd.NOT_REPARAMETERIZED, False, True, parameters=parameters, name="PixelNormal")

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        return {name: tfp.util.ParameterProperties() for name in ("loc", "log_scale")}

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _log_prob(self, value: tf.Tensor) -> tf.Tensor:
        return self._normal.log_prob(2.0 * tf.cast(value, tf.float32) - 1.0)

    def _sample_n(self, n: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value((self._normal.sample(n, seed=seed) + 1.0) / 2.0, 0.0, 1.0)

    def _mean(self) -> tf.Tensor:
        return tf.clip_by_value((self._normal.mean() + 1.0) / 2.0, 0.0, 1.0)

    def _variance(self) -> tf.Tensor:
        return self._normal.variance() / 4.0


class NoisySignal:
    """Normals around the signal s, which the network gives: `x = s + sqrt(a s + b) noise`, each value by itself.

    `mean` is the signal, which nothing keeps in [0, 1], and `variance` is of the noise alone; below 0 it is b.
    Prakash et al. 2021, "Fully unsupervised diversity denoising with convolutional variational autoencoders".
    """

    def __init__(self, config: ModelConfig):
        self.num_parameters, (self._slope, self._constant) = config.image_channels, config.noise_variance

    def distribution(self, parameters: tf.Tensor) -> tfd.Normal:
        """The distribution of float32 values for parameters `[..., channels]`, which are 2 s - 1."""
        signal = (parameters + 1.0) / 2.0
        variance = self._slope * tf.maximum(signal, 0.0) + self._constant if self._slope else self._constant
        return tfd.Normal(signal, tf.sqrt(variance))
