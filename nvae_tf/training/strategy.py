"""The devices that train: what their replicas do together, and how XLA compiles the step for them."""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.config import TrainConfig
from nvae_tf.evaluation.task import Workers
from nvae_tf.models.training_step import train_step
from nvae_tf.optimization.joined_weights import postponed_assignments
from nvae_tf.replicas import ALL, divided, gpus, select_devices, shard_from_environment
from nvae_tf.training.launcher import STOPPING_SIGNALS


def configure_runtime(settings: TrainConfig, replica_count: int) -> tuple[bool, bool]:
    """Prepares TensorFlow for training; call it before the first graph is built.

    Returns whether XLA compiles the whole step (`train.xla`; "auto": for one GPU it does, for several the parts between
    their exchanges, on CPUs only swish), and whether the step has loops over equal groups and cells (`train.scan`).
    ValueError: "jit" for several replicas, or loops, which replicas can't communicate from.
    """
    # On a CPU grappler's rewriting of graphs takes 6 of 16 s of processor time before the first step (MNIST), and the
    # steps are no faster.
    if not gpus():
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    xla, scan = settings.xla, settings.scan
    if xla == "auto":
        xla = "off" if not gpus() else "jit" if replica_count == 1 else "cluster"
    if xla == "jit" and replica_count > 1:
        raise ValueError(f"train.xla = 'jit': not possible with {replica_count} replicas; set train.xla=cluster")
    if scan == "on" and replica_count > 1:
        raise ValueError(f"train.scan = 'on': not possible with {replica_count} replicas; set train.scan=off")
    if xla == "cluster":
        tf.config.optimizer.set_jit(True)
    return xla == "jit", scan == "on" or (scan == "auto" and xla == "jit")


def step_function(strategy: tf.distribute.Strategy, model: keras.Model, is_jit: bool) -> Callable:
    """The graph of a training step on all replicas, a function of a batch that `Replicas.divided` has split."""
    # Not `model.train_step`, which checks pixels and labels: a run's data pipeline gives right ones.
    step = functools.partial(train_step, model)

    def step_on_replicas(batch: Any) -> Any:
        return strategy.run(step, batch if isinstance(batch, tuple) else (batch,))

    # No autograph: the model is written in TensorFlow's own control flow, and traces faster without.
    return tf.function(_compiled(step_on_replicas) if is_jit else step_on_replicas, autograph=False)


def _compiled(step: Callable) -> Callable:
    """A step that XLA compiles; joined weights are assigned outside of its program, see `postponed_assignments`."""
    assignments: list[Callable[[list], None]] = []

    @tf.function(autograph=False, jit_compile=True)
    def compiled_part(batch: Any) -> tuple[Any, list]:
        with postponed_assignments() as postponed:
            metrics = step(batch)
        assignments[:] = [assign for assign, _ in postponed]
        return metrics, [tensors for _, tensors in postponed]

    def compiled_step(batch: Any) -> Any:
        metrics, joined = compiled_part(batch)
        for assign, tensors in zip(assignments, joined, strict=True):
            assign(tensors)
        return metrics

    return compiled_step


class WorkerLost(ConnectionError):
    """Another process of the training has ended, so that this one can't go on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class Replicas(Workers):
    """The devices that hold a copy of the model each, in all processes."""

    @property
    def count(self) -> int:
        """The number of replicas in all processes."""
        return self.strategy.num_replicas_in_sync

    def divided(self, batch: Any) -> Any:
        """This process's images, or (images, labels), split evenly over its replicas, as `Strategy.run` takes them."""
        return divided(self.strategy, batch)

    def agreed_signal(self, number: int | None) -> int | None:
        """The signal to stop that this or another process has received, if any; all call this at the same step."""
        numbers = self.gathered(np.array(number or 0))
        return next((candidate for candidate in STOPPING_SIGNALS if candidate in numbers), None)

    def check_same_step(self, step: int, folder: os.PathLike) -> None:
        """Waits until all processes have read their checkpoints; ValueError where these are of different steps."""
        steps = self.gathered(np.array(step)).tolist()
        if set(steps) != {step}:
            fix = "put it on a file system that they share"
            raise ValueError(f"{folder}: workers would go on from steps {steps}; {fix}")

    @contextlib.contextmanager
    def raising_worker_lost(self) -> Iterator[None]:
        """Raises `WorkerLost` for the many errors by which TensorFlow reports that another process is gone."""
        lost = "Unavailable", "Aborted", "Cancelled", "DeadlineExceeded", "Internal"
        try:
            yield
        except tuple(getattr(tf.errors, f"{name}Error") for name in lost) as error:
            if self.shard == ALL:
                raise
            raise WorkerLost(
                f"worker {self.shard.index} of {self.shard.count}: another worker has ended or can't be reached. "
                "Start all workers again with the same command; training goes on from the latest checkpoint"
            ) from error

    def wait_for_all(self) -> None:
        """Returns when all processes have come here."""
        self.gathered(np.array(0))

    def leave(self) -> None:
        """At the end: all processes leave together, the chief last, because the others close their connections."""
        self.wait_for_all()
        if self.shard != ALL and self.is_chief:
            time.sleep(2.0)


def chosen_replicas(settings: TrainConfig) -> Replicas:
    """The devices that `train.strategy` and `train.replicas` ask for; waits for the other processes if there are any.

    ValueError: they are not there, or TF_CONFIG is not as TensorFlow documents it.
    """
    shard, kind, count = shard_from_environment(), settings.strategy, settings.replicas
    if kind == "auto":
        several = count > 1 or (count == 0 and len(gpus()) > 1)
        kind = "multi_worker" if shard.count > 1 else "mirrored" if several else "one_device"
    if (kind == "multi_worker") != (shard.count > 1):
        several = "multi_worker is for several workers, which TF_CONFIG must name (docs/clusters.md)"
        raise ValueError(f"train.strategy = {kind!r}: {several}; it names {shard.count}")
    if count > 1 and (kind == "one_device" or (kind == "multi_worker" and not gpus())):
        fix = "set train.replicas=1" + (" or train.strategy=mirrored" if kind == "one_device" else "")
        raise ValueError(f"train.replicas = {count}: strategy {kind} has one here; {fix}")
    devices = select_devices(1 if kind == "one_device" else count)
    if kind == "one_device":
        return Replicas()
    if kind == "multi_worker":
        print(f"Worker {shard.index} of {shard.count}: waiting for the others.", flush=True)
        return Replicas(tf.distribute.MultiWorkerMirroredStrategy(), shard)
    if len(devices) == 1:
        raise ValueError("train.strategy = 'mirrored': there is one device; set train.strategy=auto, or train.replicas")
    return Replicas(tf.distribute.MirroredStrategy(devices))
