"""Processes, devices and the replicas of a model on them: which there are, and what replicas share.

Outside `tf.distribute.Strategy.run` there is one replica, and means over all replicas change nothing.
"""

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf


class Shard(NamedTuple):
    """The part of every batch that one of several processes takes: number `index` of `count`, from 0."""

    index: int
    count: int


ALL = Shard(0, 1)


def shard_from_environment() -> Shard:
    """This process's place among those that TF_CONFIG names; ValueError where TF_CONFIG can't be used."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return ALL
    try:
        setting = json.loads(text)
        cluster, task = setting["cluster"], setting["task"]
        # A chief, if there is one, stands before the workers.
        workers = [(kind, index) for kind in ("chief", "worker") for index in range(len(cluster.get(kind, ())))]
        place = task["type"], int(task["index"])
        if place not in workers:
            raise ValueError(f"it has no task {place[0]} {place[1]}")
        return Shard(workers.index(place), len(workers))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        example = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
        raise ValueError(f"TF_CONFIG = {text!r} can't be used ({error!r}); it must look like {example}") from error


def gpus() -> list:
    """The GPUs that this process may use."""
    return tf.config.get_visible_devices("GPU")


def select_devices(count: int) -> list[str]:
    """Makes `count` GPUs visible, all for 0; without GPUs, splits the CPU. Returns the names of the devices.

    ValueError: there are fewer GPUs, or TensorFlow has used its devices already.
    """
    visible = gpus()
    if visible and count > len(visible):
        raise ValueError(f"train.replicas = {count}: there are {len(visible)} GPUs; take no more, or 0 for all of them")
    wanted = count or len(visible) or 1
    try:
        if visible and wanted < len(visible):
            tf.config.set_visible_devices(visible[:wanted], "GPU")
        if not visible and wanted > 1:
            (cpu,) = tf.config.list_physical_devices("CPU")
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * wanted)
    except RuntimeError as error:
        wrong = "TensorFlow has already used its devices in this process; train in a process of its own"
        raise ValueError(f"train.replicas can't be applied: {wrong}") from error
    return [f"{'GPU' if visible else 'CPU'}:{index}" for index in range(wanted)]


def replica_count() -> int:
    """The number of replicas that run this code side by side."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica_index() -> int | tf.Tensor:
    """The number of the replica that runs this code, counted from 0."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def replica_means(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The mean of every tensor over all replicas, the same on each; its gradient is the mean over all replicas."""
    if replica_count() == 1:
        return list(tensors)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, list(tensors))


def divided(strategy: tf.distribute.Strategy, rows: Any) -> Any:
    """Tensors in any structure, split evenly along axis 0 over the replicas of this process, for `Strategy.run`."""
    count = _local_count(strategy)

    def divide(tensor: tf.Tensor) -> Any:
        split, give = tf.split(tensor, count), strategy.experimental_distribute_values_from_function
        return give(lambda context: split[context.replica_id_in_sync_group % count])

    return rows if count == 1 else tf.nest.map_structure(divide, rows)


def joined(strategy: tf.distribute.Strategy, rows: Any) -> Any:
    """The results of the replicas of this process, concatenated along axis 0; undoes `divided`."""

    def join(part: Any) -> tf.Tensor:
        return tf.concat(strategy.experimental_local_results(part), axis=0)

    return rows if _local_count(strategy) == 1 else tf.nest.map_structure(join, rows)


def _local_count(strategy: tf.distribute.Strategy) -> int:
    # TensorFlow's default strategy does not know its devices.
    return 1 if strategy.num_replicas_in_sync == 1 else len(strategy.extended.worker_devices)
