"""The diagonal Normal of every prior and posterior, with softly bounded mean and log standard deviation."""

import math

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.layers.cpu_kernels import expm1

tfd = tfp.distributions


class SoftClampedNormal(tfd.Normal):
    """TFP's Normal, but log-probability and KL use no parameter more than twice (why: see `cpu_kernels.fan_out`)."""

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        return -0.5 * tf.square((x - self.loc) / self.scale) - tf.math.log(self.scale) - 0.5 * math.log(2.0 * math.pi)


@tfd.RegisterKL(SoftClampedNormal, SoftClampedNormal)
def _kl_divergence(a: SoftClampedNormal, b: SoftClampedNormal, name: str | None = None) -> tf.Tensor:
    """KL(a || b) in nats, an element; with flows, and the sum over a group: `objective/elbo.py`."""
    log_ratio = tf.math.log(a.scale) - tf.math.log(b.scale)
    return 0.5 * tf.square((a.loc - b.loc) / b.scale) + 0.5 * expm1(2.0 * log_ratio) - log_ratio


def soft_clamped_normal(parameters: tf.Tensor, temperature: float | tf.Tensor = 1.0) -> SoftClampedNormal:
    """The Normal with mean `clamp(mean)` and scale `(exp(clamp(log_scale)) + 0.01) * temperature`, in float32.

    `parameters` `[..., 2 * channels]` are means, then log-scales; `clamp(x)` is `5 tanh(x / 5)`. Bounding both keeps
    the KL of a deep hierarchy finite early in training (Vahdat & Kautz 2020, section 3). Where a residual is added to a
    prior, add it before calling this. At temperature 0 samples are the mean.
    """
    clamped = 5.0 * tf.math.tanh(tf.cast(parameters, tf.float32) / 5.0)
    location, log_scale = tf.split(clamped, 2, axis=-1)
    scale = tf.math.exp(log_scale) + 0.01
    # A training graph holds up to sixty of these: neither multiply by one nor ask TFP for assertions.
    if not (isinstance(temperature, (int, float)) and temperature == 1):
        scale *= tf.cast(temperature, tf.float32)
    return SoftClampedNormal(location, scale, validate_args=False)
