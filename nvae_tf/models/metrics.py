"""What is measured at a training step: running means for `fit`, and the last steps group by group."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf


class StepMetrics(NamedTuple):
    """What is measured at a step: of the images of one replica, then of all; the first three are means in nats."""

    loss: tf.Tensor  # what is differentiated, scalar
    reconstruction: tf.Tensor  # -log p(x | z), scalar
    kl_per_group: tf.Tensor  # unweighted, `[groups]`, top group first
    spectral_norms: tf.Tensor | None  # largest singular value of every convolution `[layers]`, without unit
    # The norm of all gradients as one vector; on several replicas the root of the mean of its square over the replicas.
    gradient_norm: tf.Tensor | None = None


class _SharedVariables:
    # The values are the same on all replicas: any of them can read and save them without the others.
    def add_variable(self, shape, initializer, dtype=None, aggregation=None, name=None):
        return super().add_variable(shape, initializer, dtype, "only_first_replica", name)


class _Mean(_SharedVariables, keras.metrics.Mean):
    def result(self):  # NaN before the first value
        return tf.where(self.count > 0.0, super().result(), float("nan"))


class _Sum(_SharedVariables, keras.metrics.Sum):
    pass


class RunningMetrics:
    """Means since the last reset: loss, reconstruction, KL (nats per image), norm of gradients; the skipped steps."""

    def __init__(self):
        self.evaluation_metrics = [_Mean(name=name) for name in ("loss", "reconstruction", "kl")]
        self.loss, self.gradient_norm = self.evaluation_metrics[0], _Mean(name="gradient_norm")
        self.skipped_steps = _Sum(name="skipped_steps")
        self.training_metrics = [*self.evaluation_metrics, self.gradient_norm, self.skipped_steps]

    def track_bound(self, loss: tf.Tensor, reconstruction: tf.Tensor, kl: tf.Tensor, batch_size) -> None:
        """Takes in the means of a batch of this size, scalars."""
        for metric, value in zip(self.evaluation_metrics, (loss, reconstruction, kl), strict=True):
            metric.update_state(value, sample_weight=tf.cast(batch_size, tf.float32))

    def track(self, metrics: StepMetrics, batch_size) -> None:
        """Takes in an accepted step on a batch of this size."""
        self.track_bound(metrics.loss, metrics.reconstruction, tf.reduce_sum(metrics.kl_per_group), batch_size)
        self.gradient_norm.update_state(metrics.gradient_norm)


def metric_values(metrics: Sequence[keras.metrics.Metric]) -> dict[str, tf.Tensor]:
    """The values of metrics by name."""
    # Several workers' `fit` joins their metrics along an axis, which scalars lack.
    several = isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)
    return {metric.name: tf.reshape(metric.result(), [1] if several else []) for metric in metrics}


class RecentSteps(NamedTuple):
    """The last steps, oldest first."""

    accepted: np.ndarray  # whether each was taken, `[steps]`
    kl_per_group: np.ndarray  # in nats per image, `[steps, groups]`
    spectral_norms: np.ndarray  # `[steps, layers]`


class RecentMetrics:
    """KL of every group and spectral norm of every layer at the last steps; reading them holds up an accelerator."""

    STEPS = 200

    def __init__(self, num_groups: int, num_layers: int):
        self._num_groups = num_groups
        shared = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self._rows = tf.Variable(tf.zeros([self.STEPS, 1 + num_groups + num_layers]), name="recent_metrics", **shared)
        self._count = tf.Variable(0, dtype=tf.int64, name="recent_steps", **shared)

    def keep(self, metrics: StepMetrics, accepted: tf.Tensor) -> None:
        """Keeps the metrics of a step, in place of the oldest."""
        row = tf.concat([[tf.cast(accepted, tf.float32)], metrics.kl_per_group, metrics.spectral_norms], axis=0)
        place = tf.convert_to_tensor(self._count) % self.STEPS
        self._rows.assign(tf.tensor_scatter_nd_update(self._rows, [[place]], [row]))
        self._count.assign(self._count + 1)

    def forget(self) -> None:
        """Drops all that is kept."""
        self._count.assign(0)

    def read(self) -> RecentSteps:
        """All that is kept."""
        count, rows = int(self._count.numpy()), self._rows.numpy()
        in_order = [step % self.STEPS for step in range(max(count - self.STEPS, 0), count)]
        accepted, kl, norms = np.split(rows[in_order], [1, 1 + self._num_groups], axis=1)
        return RecentSteps(accepted[:, 0] > 0.0, kl, norms)
