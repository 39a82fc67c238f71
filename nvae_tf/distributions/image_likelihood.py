"""The likelihoods p(x | z) of whole images, by name, behind one interface."""

import dataclasses
import difflib
from typing import Protocol

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.distributions.discretized_logistic_mixture import (
    DiscretizedLogisticMixture,
    channels_of_width,
    num_mixture_parameters,
)
from nvae_tf.distributions.soft_clamped_normal import soft_clamped_normal

tfd = tfp.distributions


class ImageLikelihood(Protocol):
    """What a decoder's last layer and its users need of a likelihood."""

    def num_parameters(self, channels: int) -> int:
        """How many numbers a pixel the decoder must give for images of that many channels."""

    def distribution(self, parameters: tf.Tensor, temperature: float | tf.Tensor = 1.0) -> tfd.Distribution:
        """The distribution over images `[H, W, C]` in [0, 1].

        Args:
          parameters: `[..., H, W, num_parameters(C)]`, any floating type; computed in float32.
          temperature: above 0; below 1 narrows the distribution.

        Returns:
          A distribution with event shape `[H, W, C]`: `log_prob(images)` is in nats an image, `mean()` and
          `sample(seed=...)` are images in [0, 1].
        """


@dataclasses.dataclass(frozen=True)
class BernoulliLikelihood(ImageLikelihood):
    """Binary images: an independent Bernoulli a value, from logits. Temperature divides the logits."""

    def num_parameters(self, channels: int) -> int:
        return channels

    def distribution(self, parameters: tf.Tensor, temperature: float | tf.Tensor = 1.0) -> tfd.Distribution:
        _check_temperature(temperature)
        logits = tf.cast(parameters, tf.float32) / tf.cast(temperature, tf.float32)
        return tfd.Independent(tfd.Bernoulli(logits=logits, dtype=tf.float32), 3)


@dataclasses.dataclass(frozen=True)
class LogisticMixtureLikelihood(ImageLikelihood):
    """Images of 1 to 4 channels on `2^num_bits` levels: a `DiscretizedLogisticMixture` a pixel."""

    num_mixtures: int = 10
    num_bits: int = 8
    exact_edges: bool = False

    def num_parameters(self, channels: int) -> int:
        return num_mixture_parameters(channels, self.num_mixtures)

    def distribution(self, parameters: tf.Tensor, temperature: float | tf.Tensor = 1.0) -> tfd.Distribution:
        _check_temperature(temperature)
        pixels = DiscretizedLogisticMixture.from_parameters(
            parameters,
            channels=channels_of_width(parameters.shape[-1], self.num_mixtures),
            temperature=temperature,
            **dataclasses.asdict(self),
        )
        return tfd.Independent(pixels, 2)


@dataclasses.dataclass(frozen=True)
class NormalLikelihood(ImageLikelihood):
    """A soft-clamped Normal a value: a `PixelNormal`, a density, for data that need no exact bits per dimension.

    The parameters of a pixel are C means, then C log standard deviations. Temperature multiplies the standard
    deviation.
    """

    def num_parameters(self, channels: int) -> int:
        return 2 * channels

    def distribution(self, parameters: tf.Tensor, temperature: float | tf.Tensor = 1.0) -> tfd.Distribution:
        _check_temperature(temperature)
        if parameters.shape[-1] % 2:
            raise ValueError(
                f"The normal likelihood needs C means and C log-scales in the last axis, got shape {parameters.shape}."
            )
        return tfd.Independent(PixelNormal(*tf.split(parameters, 2, axis=-1), temperature), 3)


IMAGE_LIKELIHOODS: dict[str, type[ImageLikelihood]] = {
    "bernoulli": BernoulliLikelihood,
    "logistic_mixture": LogisticMixtureLikelihood,
    "normal": NormalLikelihood,
}


def image_likelihood(
    name: str, num_mixtures: int = 10, num_bits: int = 8, exact_edges: bool = False
) -> ImageLikelihood:
    """The likelihood called `name`, one of `IMAGE_LIKELIHOODS`, with those of the settings that it has."""
    if name not in IMAGE_LIKELIHOODS:
        nearest = difflib.get_close_matches(name, IMAGE_LIKELIHOODS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"Unknown image likelihood {name!r}; did you mean {nearest!r}? There are {', '.join(IMAGE_LIKELIHOODS)}."
        )
    if name == "logistic_mixture":
        return LogisticMixtureLikelihood(num_mixtures, num_bits, exact_edges)
    return IMAGE_LIKELIHOODS[name]()


class PixelNormal(tfd.Distribution):
    """Values x in [0, 1] with a soft-clamped Normal density on `2x - 1`.

    `log_prob` is the density *on the [-1, 1] scale*, as published: without the log 2 a value that the change
    of scale would add, so it is neither a density over [0, 1] nor a mass. Samples and the mean are mapped to
    [0, 1] and clipped. `loc` and `log_scale` are mean and log standard deviation before clamping, on the [-1, 1] scale.
    """

    def __init__(
        self,
        loc: tf.Tensor,
        log_scale: tf.Tensor,
        temperature: float | tf.Tensor = 1.0,
        name: str = "PixelNormal",
    ):
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            self._normal = soft_clamped_normal(loc, log_scale, temperature)
        super().__init__(
            dtype=tf.float32,
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        del dtype, num_classes
        return {name: tfp.util.ParameterProperties() for name in ("loc", "log_scale", "temperature")}

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([], tf.int32)

    def _log_prob(self, value: tf.Tensor) -> tf.Tensor:
        return self._normal.log_prob(2.0 * tf.cast(value, tf.float32) - 1.0)

    def _sample_n(self, n: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return _to_unit_range(self._normal.sample(n, seed=seed))

    def _mean(self) -> tf.Tensor:
        return _to_unit_range(self._normal.mean())


def _to_unit_range(value: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value((value + 1.0) / 2.0, 0.0, 1.0)


def _check_temperature(temperature: float | tf.Tensor) -> None:
    """Refuses a plain number that is not above 0; a tensor's value is the caller's to check."""
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"The temperature of an image likelihood must be above 0, got {temperature}.")
