"""What the replicas of a model share: means over all of them, their numbers, and batches split over them.

Outside `tf.distribute.Strategy.run` there is one replica, and all of this changes nothing.
"""

from collections.abc import Sequence
from typing import Any

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
    """The mean of every tensor over all replicas, the same on each; its gradient is that of all replicas."""
    if replica_count() == 1:
        return list(tensors)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, list(tensors))


def divided(strategy: tf.distribute.Strategy, rows: Any) -> Any:
    """Tensors in any structure, split evenly along axis 0 over the replicas of this process, for `Strategy.run`."""
    count = _local_count(strategy)
    if count == 1:
        return rows

    def gathered(tensor: tf.Tensor) -> Any:
        split = tf.split(tensor, count)
        return strategy.experimental_distribute_values_from_function(
            lambda context: split[context.replica_id_in_sync_group % count]
        )

    return tf.nest.map_structure(gathered, rows)


def joined(strategy: tf.distribute.Strategy, rows: Any) -> Any:
    """What the replicas of this process have returned, concatenated along axis 0; undoes `divided`."""
    if _local_count(strategy) == 1:
        return rows
    return tf.nest.map_structure(lambda part: tf.concat(strategy.experimental_local_results(part), axis=0), rows)


def _local_count(strategy: tf.distribute.Strategy) -> int:
    # TensorFlow's default strategy does not know its devices.
    return 1 if strategy.num_replicas_in_sync == 1 else len(strategy.extended.worker_devices)
