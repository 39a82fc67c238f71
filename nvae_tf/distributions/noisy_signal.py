"""The likelihood of measured pixels, given the signal of which they are noisy measurements (`data.noise`)."""

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.config import ModelConfig


class NoisySignal:
    """Normals around the signal s, which the network gives: `x = s + sqrt(a s + b) noise`, each value by itself.

    `mean` is the signal, which nothing keeps in [0, 1], and `variance` that of the noise alone; below 0 it is b.
    Prakash et al. 2021, "Fully unsupervised diversity denoising with convolutional variational autoencoders".
    """

    def __init__(self, config: ModelConfig):
        self.num_parameters, (self._slope, self._constant) = config.image_channels, config.noise_variance

    def distribution(self, parameters: tf.Tensor) -> tfp.distributions.Normal:
        """The distribution of float32 values for parameters `[..., channels]`, which are 2 s - 1."""
        signal = (parameters + 1.0) / 2.0
        variance = self._slope * tf.maximum(signal, 0.0) + self._constant if self._slope else self._constant
        return tfp.distributions.Normal(signal, tf.sqrt(variance))
