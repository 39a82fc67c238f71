"""The devices that train: what their replicas do together, and how XLA compiles the step for them."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.config import TrainConfig
from nvae_tf.models.keras_fit import images_and_labels
from nvae_tf.models.training_step import train_step
from nvae_tf.optimization import joined_weights_later
from nvae_tf.replicas import ALL, Shard, divided, gpus, select_devices, shard_from_environment
from nvae_tf.training.launcher import STOPPING_SIGNALS


def configure_runtime() -> None:
    """Turns off grappler's rewriting of graphs where there is no GPU; call it before the first graph is built."""
    # On a CPU it takes 6 of 16 s of processor time before the first step (MNIST), and the steps are no faster.
    if not gpus():
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def compiles_whole_step(xla: str, replica_count: int) -> bool:
    """Applies `train.xla` and returns whether to give `jit_compile=True`; call it before the first graph is built.

    "auto" compiles the whole step for one GPU, the parts between the exchanges of several GPUs ("cluster"), and nothing
    on CPUs, where XLA's convolutions are 30 to 50 times slower. ValueError: "jit" for several replicas.
    """
    if xla == "auto":
        xla = "off" if not gpus() else "jit" if replica_count == 1 else "cluster"
    if xla == "jit" and replica_count > 1:
        raise ValueError(
            f"train.xla = 'jit': not possible with {replica_count} replicas; set train.xla=cluster (or auto)"
        )
    if xla == "cluster":
        tf.config.optimizer.set_jit(True)
    return xla == "jit"


def scans_steps(scan: str, compiled: bool, replica_count: int) -> bool:
    """Whether the step's program has a loop over equal groups and cells (`train.scan`); "auto": where XLA compiles it.

    ValueError: "on" for several replicas, which can't communicate from within a loop.
    """
    if scan == "on" and replica_count > 1:
        raise ValueError(f"train.scan = 'on': not possible with {replica_count} replicas; set train.scan=off (or auto)")
    return compiled if scan == "auto" else scan == "on"


def step_function(strategy: tf.distribute.Strategy, model: keras.Model, compiled: bool) -> Callable:
    """The training step on all replicas, as a function of their images (`Replicas.divided`).

    If it is `compiled` by XLA, weights that the optimizer has joined are assigned outside the compiled program, see
    `joined_weights_later`.
    """

    def whole_step(images: Any) -> Any:
        # Not `model.train_step`, which checks the values of pixels: a run's data pipeline gives right ones.
        return strategy.run(lambda data: train_step(model, *images_and_labels(model, data)), (images,))

    assignments: list[Callable[[list], None]] = []

    @tf.function(autograph=False, jit_compile=True)
    def compiled_part(images: Any) -> tuple[Any, list]:
        with joined_weights_later() as postponed:
            metrics = whole_step(images)
        assignments[:] = [assign for assign, _ in postponed]
        return metrics, [tensors for _, tensors in postponed]

    def compiled_step(images: Any) -> Any:
        metrics, joined = compiled_part(images)
        for assign, tensors in zip(assignments, joined, strict=True):
            assign(tensors)
        return metrics

    # No autograph: the model is written in TensorFlow's own control flow, and traces faster without.
    return tf.function(compiled_step if compiled else whole_step, autograph=False)


class WorkerLost(ConnectionError):
    """Another process of the training has ended, so that this one can't go on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


# The errors by which TensorFlow reports that another process is gone.
_LOST_CONNECTION = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The devices that hold a copy of the model each."""

    # Not at import: asking for it starts a thread, which a fork of a process that has only imported would lack.
    strategy: tf.distribute.Strategy = dataclasses.field(default_factory=tf.distribute.get_strategy)
    local_count: int = 1  # in this process
    shard: Shard = ALL  # of every batch, for this process

    @property
    def count(self) -> int:
        """The number of replicas in all processes."""
        return self.local_count * self.shard.count

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that writes the run folder."""
        return self.shard.index == 0

    def divided(self, images: tf.Tensor):
        """This process's images, split evenly over its replicas, as `Strategy.run` takes them."""
        return divided(self.strategy, images)

    def agreed_signal(self, number: int | None) -> int | None:
        """The signal to stop that this or another process has received, if any; all call this at the same step."""
        totals = self.sums([float(number == candidate) for candidate in STOPPING_SIGNALS])
        return next((candidate for candidate, total in zip(STOPPING_SIGNALS, totals, strict=True) if total), None)

    def check_same_step(self, step: int, folder: os.PathLike) -> None:
        """Waits until all processes have read their checkpoints; ValueError where these are of different steps."""
        total, squares = self.sums([float(step), float(step) ** 2])
        if squares * self.shard.count != total**2:
            raise ValueError(
                f"{folder}: worker {self.shard.index} would go on from step {step}, and others from other steps. All "
                "workers must see the same --workdir: put it on a file system that they share"
            )

    @contextlib.contextmanager
    def raising_worker_lost(self) -> Iterator[None]:
        """Raises `WorkerLost` for the many errors by which TensorFlow reports that another process is gone."""
        try:
            yield
        except _LOST_CONNECTION as error:
            if self.shard == ALL:
                raise
            raise WorkerLost(
                f"worker {self.shard.index} of {self.shard.count}: another worker has ended or can't be reached. "
                "Start all workers again with the same command; training goes on from the latest checkpoint"
            ) from error

    def wait_for_all(self) -> None:
        """Returns when all processes have come here."""
        self.sums([0.0])

    def leave(self) -> None:
        """At the end: all processes leave together, the chief last, because the others close their connections."""
        self.wait_for_all()
        if self.shard != ALL and self.is_chief:
            time.sleep(2.0)

    def sums(self, values: list[float]) -> list[float]:
        """The sums of numbers over all processes, which all call this at the same time."""
        if self.shard == ALL:
            return values
        return (_sums(self.strategy, tf.constant(values, tf.float64)) / self.local_count).numpy().tolist()


@tf.function(autograph=False)
def _sums(strategy: tf.distribute.Strategy, values: tf.Tensor) -> tf.Tensor:
    return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: values), axis=None)


def chosen_replicas(settings: TrainConfig) -> Replicas:
    """The devices that `train.strategy` and `train.replicas` ask for; waits for the other processes if there are any.

    ValueError: they are not there, or TF_CONFIG is not as TensorFlow documents it.
    """
    shard, kind, count = shard_from_environment(), settings.strategy, settings.replicas
    if kind == "auto":
        several = count > 1 or (count == 0 and len(gpus()) > 1)
        kind = "multi_worker" if shard.count > 1 else "mirrored" if several else "one_device"
    if kind == "multi_worker":
        return _multi_worker_replicas(shard, count)
    if shard.count > 1:
        raise ValueError(
            f"train.strategy = {kind!r}: TF_CONFIG names {shard.count} workers; set train.strategy=multi_worker (or "
            "auto), or unset the variable"
        )
    if kind == "one_device":
        if count > 1:
            raise ValueError(
                f"train.replicas = {count}: strategy one_device has one; set train.strategy=mirrored (or auto)"
            )
        select_devices(1)
        return Replicas()
    devices = select_devices(count)
    if len(devices) == 1:
        raise ValueError(
            "train.strategy = 'mirrored': there is one device only; set train.strategy=one_device (or auto), or to try "
            "several replicas on a CPU train.replicas=2"
        )
    return Replicas(tf.distribute.MirroredStrategy(devices), len(devices))


def _multi_worker_replicas(shard: Shard, count: int) -> Replicas:
    if shard.count == 1:
        raise ValueError(
            "train.strategy = 'multi_worker': the environment variable TF_CONFIG must name at least two workers, see "
            "docs/clusters.md; nvae-launch sets it for processes on this machine"
        )
    if count > 1 and not gpus():
        raise ValueError(f"train.replicas = {count}: without GPUs each worker has one replica")
    local_count = len(select_devices(count)) if gpus() else 1
    print(f"Worker {shard.index} of {shard.count}: waiting for the others.", flush=True)
    return Replicas(tf.distribute.MultiWorkerMirroredStrategy(), local_count, shard)
