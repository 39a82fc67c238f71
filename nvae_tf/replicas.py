"""What replicas of a model on several devices must agree on: means over all of them, and who draws which numbers.

Outside `tf.distribute.Strategy.run` there is one replica, and all of this changes nothing.
"""

from collections.abc import Sequence

import tensorflow as tf


def replica_count() -> int:
    """How many replicas run this code side by side."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica_index() -> int | tf.Tensor:
    """Which of them this is, counted from 0."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def replica_means(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The mean of every tensor over all replicas, the same on each; without gradient."""
    if replica_count() == 1:
        return list(tensors)
    tensors = [tf.stop_gradient(tensor) for tensor in tensors]
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, tensors)
