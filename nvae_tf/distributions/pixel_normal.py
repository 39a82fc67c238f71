"""A soft-clamped Normal over pixel values: a density, for data that need no exact bits per dimension."""

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.distributions.soft_clamped_normal import soft_clamped_normal

tfd = tfp.distributions


class PixelNormal(tfd.Distribution):
    """Values x in [0, 1] with a soft-clamped Normal density on `2x - 1`.

    `log_prob` is the density *on the [-1, 1] scale*, as published: without the log 2 a value that the change
    of scale would add, so it is neither a density over [0, 1] nor a mass. Samples and the mean are mapped to
    [0, 1] and clipped.
    """

    def __init__(
        self,
        loc: tf.Tensor,
        log_scale: tf.Tensor,
        temperature: float | tf.Tensor = 1.0,
        name: str = "PixelNormal",
    ):
        """Takes mean `loc` and log standard deviation before clamping, alike in shape, on the [-1, 1] scale.

        `temperature` multiplies the standard deviation. The batch shape is that of `loc`; events are scalars.
        """
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
        return {
            "loc": tfp.util.ParameterProperties(),
            "log_scale": tfp.util.ParameterProperties(),
            "temperature": tfp.util.ParameterProperties(),
        }

    def _batch_shape(self) -> tf.TensorShape:
        return self._normal.batch_shape

    def _batch_shape_tensor(self) -> tf.Tensor:
        return self._normal.batch_shape_tensor()

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
