"""What a training step tells of itself: running means for `fit`, and the latest figures group by group."""

from typing import NamedTuple

import keras
import tensorflow as tf


class StepFigures(NamedTuple):
    """Means over the images of all replicas, in nats per image.

    Attributes:
      loss: what is differentiated, scalar.
      reconstruction: -log p(x | z), scalar.
      kl_per_group: unweighted KL `[groups]`, top group first.
      spectral_norms: largest singular value of every convolution `[layers]`, in the order of
        `SpectralRegularizer.layer_names`; without unit.
      gradient_norm: of all gradients as one vector; on several replicas the root of the mean of its square over the
        replicas, each for its own images. Not finite if one gradient is not.
    """

    loss: tf.Tensor
    reconstruction: tf.Tensor
    kl_per_group: tf.Tensor
    spectral_norms: tf.Tensor
    gradient_norm: tf.Tensor


class _SharedVariables:
    """Metrics whose values are the same on all replicas: to be read and saved anywhere, without asking the others."""

    def add_variable(self, shape, initializer, dtype=None, aggregation=None, name=None):
        """As `keras.metrics.Metric.add_variable`; what it says of aggregation is not followed."""
        return super().add_variable(shape, initializer, dtype, "only_first_replica", name)


class SharedMean(_SharedVariables, keras.metrics.Mean):
    """A running mean of what all replicas agree on; NaN where there is nothing to take it of."""

    def result(self):
        """The mean since the last reset."""
        return tf.where(self.count > 0.0, super().result(), float("nan"))


class SharedSum(_SharedVariables, keras.metrics.Sum):
    """A running sum of what all replicas agree on."""


class RunningFigures:
    """Running means of the figures of accepted steps, and how many steps were refused since they were reset."""

    def __init__(self):
        self.loss, self.reconstruction, self.kl, self.gradient_norm = (
            SharedMean(name=name) for name in ("loss", "reconstruction", "kl", "gradient_norm")
        )
        self.skipped_steps = SharedSum(name="skipped_steps")

    @property
    def of_training(self) -> list[keras.metrics.Metric]:
        """All of them."""
        return [self.loss, self.reconstruction, self.kl, self.gradient_norm, self.skipped_steps]

    @property
    def of_evaluation(self) -> list[keras.metrics.Metric]:
        """Those that there are without a step."""
        return [self.loss, self.reconstruction, self.kl]

    def track_bound(self, loss: tf.Tensor, reconstruction: tf.Tensor, kl: tf.Tensor, batch_size) -> None:
        """Takes in the means of a batch of so many images; scalars."""
        for metric, value in zip(self.of_evaluation, (loss, reconstruction, kl), strict=True):
            metric.update_state(value, sample_weight=tf.cast(batch_size, tf.float32))

    def track(self, figures: StepFigures, batch_size) -> None:
        """Takes in an accepted step on so many images."""
        self.track_bound(figures.loss, figures.reconstruction, tf.reduce_sum(figures.kl_per_group), batch_size)
        self.gradient_norm.update_state(figures.gradient_norm)


class LatestFigures:
    """KL of every group and spectral norm of every layer at the latest step, also where it was refused."""

    def __init__(self, num_groups: int, num_layers: int):
        self.kl_per_group, self.spectral_norms = (
            tf.Variable(
                tf.zeros([size]),
                trainable=False,
                name=name,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for name, size in (("latest_kl_per_group", num_groups), ("latest_spectral_norms", num_layers))
        )

    def keep(self, figures: StepFigures) -> None:
        """Keeps those of a step."""
        self.kl_per_group.assign(figures.kl_per_group)
        self.spectral_norms.assign(figures.spectral_norms)
