"""The likelihoods p(x | z) of whole images, by name, behind one interface."""

import dataclasses
import difflib
from typing import Protocol

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.distributions.discretized_logistic_mixture import DiscretizedLogisticMixture
from nvae_tf.distributions.mixture_layout import channels_of_width, num_mixture_parameters
from nvae_tf.distributions.pixel_normal import PixelNormal

tfd = tfp.distributions


class ImageLikelihood(Protocol):
    """What a decoder's last layer and its users need to know of a likelihood."""

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

        Raises:
          ValueError: if the last axis fits no number of channels, or the temperature is not above 0.
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
    """Images of 1 to 4 channels on `2^num_bits` levels: a `DiscretizedLogisticMixture` a pixel.

    Attributes:
      num_mixtures: components a pixel.
      num_bits: bits a channel, 1 to 8.
      exact_edges: False for published scores, True for a mass that sums to 1.
    """

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
    """A soft-clamped Normal a value, a density on `2x - 1`: see `PixelNormal`.

    The parameters of a pixel are C means, then C log standard deviations. Temperature multiplies the
    standard deviation.
    """

    def num_parameters(self, channels: int) -> int:
        return 2 * channels

    def distribution(self, parameters: tf.Tensor, temperature: float | tf.Tensor = 1.0) -> tfd.Distribution:
        _check_temperature(temperature)
        if parameters.shape[-1] % 2:
            raise ValueError(
                f"The normal likelihood needs C means and C log-scales in the last axis, got shape {parameters.shape}."
            )
        mean, log_scale = tf.split(parameters, 2, axis=-1)
        return tfd.Independent(PixelNormal(mean, log_scale, temperature), 3)


IMAGE_LIKELIHOODS: dict[str, type[ImageLikelihood]] = {
    "bernoulli": BernoulliLikelihood,
    "logistic_mixture": LogisticMixtureLikelihood,
    "normal": NormalLikelihood,
}


def image_likelihood(
    name: str, num_mixtures: int = 10, num_bits: int = 8, exact_edges: bool = False
) -> ImageLikelihood:
    """The likelihood called `name`, one of `IMAGE_LIKELIHOODS`; it takes those settings which it has.

    Raises:
      ValueError: if there is no likelihood of that name.
    """
    if name not in IMAGE_LIKELIHOODS:
        nearest = difflib.get_close_matches(name, IMAGE_LIKELIHOODS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"Unknown image likelihood {name!r}; did you mean {nearest!r}? There are {', '.join(IMAGE_LIKELIHOODS)}."
        )
    settings = {"num_mixtures": num_mixtures, "num_bits": num_bits, "exact_edges": exact_edges}
    likelihood = IMAGE_LIKELIHOODS[name]
    taken = {field.name for field in dataclasses.fields(likelihood)}
    return likelihood(**{key: value for key, value in settings.items() if key in taken})


def _check_temperature(temperature: float | tf.Tensor) -> None:
    """Refuses a plain number that is not above 0; a tensor's value is the caller's to check."""
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"The temperature of an image likelihood must be above 0, got {temperature}.")
