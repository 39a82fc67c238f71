"""Which devices of which processes train, and what they do together."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator

import tensorflow as tf

from nvae_tf.config import TrainConfig, check
from nvae_tf.data.pipeline import ALL, Shard
from nvae_tf.replicas import divided
from nvae_tf.training.devices import gpus, select_devices
from nvae_tf.training.stopping import STOPPING_SIGNALS
from nvae_tf.training.worker_environments import TF_CONFIG

_SECONDS_TO_LEAVE = 2.0
_ERRORS_OF_LOSS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


class WorkerLost(Exception):
    """Another process of the training has ended, so that this one can't go on."""


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The devices that hold a copy of the model each, in this process and in others.

    Attributes:
      strategy: TensorFlow's own name for it.
      local_count: how many are in this process.
      share: which part of every batch belongs to this process.
    """

    strategy: tf.distribute.Strategy
    local_count: int = 1
    share: Shard = ALL

    @property
    def count(self) -> int:
        """How many there are in all processes."""
        return self.local_count * self.share.count

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that writes the run folder."""
        return self.share.index == 0

    def divided(self, images: tf.Tensor):
        """This process's images, cut into one equal part a replica; as `Strategy.run` takes them."""
        return divided(self.strategy, images)

    def agreed_signal(self, number: int | None) -> int | None:
        """The signal to stop that this or another process was given, if any; all must ask at the same step."""
        if self.share == ALL:
            return number
        given = [float(number == candidate) for candidate in STOPPING_SIGNALS]
        totals = self.sums(given)
        return next((candidate for candidate, total in zip(STOPPING_SIGNALS, totals, strict=True) if total), None)

    def check_same_step(self, step: int, folder: os.PathLike) -> None:
        """Makes sure that all processes go on from the same checkpoint; none writes before all have read theirs.

        Raises:
          ValueError: they do not, or another process sees another folder.
        """
        if self.share == ALL:
            return
        total, squares = self.sums([float(step), float(step) ** 2])
        check(
            squares * self.share.count == total**2,
            f"{folder}: worker {self.share.index} would go on from step {step}, and others from other steps. All "
            "workers must see the same --workdir: put it on a file system that they share",
        )

    @contextlib.contextmanager
    def raising_worker_lost(self) -> Iterator[None]:
        """Tells in one line that another process is gone, which TensorFlow does by errors of many kinds.

        Raises:
          WorkerLost: it is.
        """
        try:
            yield
        except tf.errors.OpError as error:
            if self.share == ALL or not isinstance(error, _ERRORS_OF_LOSS):
                raise
            raise WorkerLost(
                f"worker {self.share.index} of {self.share.count}: another worker has ended or can't be reached. "
                "All workers, started again with the same command, go on from the latest checkpoint"
            ) from error

    def wait_for_all(self) -> None:
        """Returns when all processes have come here."""
        if self.share != ALL:
            self.sums([0.0])

    def leave(self) -> None:
        """At the end: all processes leave together, and the chief last, whose connections the others close."""
        if self.share == ALL:
            return
        self.wait_for_all()
        if self.is_chief:
            time.sleep(_SECONDS_TO_LEAVE)

    def sums(self, values: list[float]) -> list[float]:
        """The sums of numbers over all processes, which all give at the same time."""
        return (_summed(self.strategy, tf.constant(values, tf.float64)) / self.local_count).numpy().tolist()


ONE_DEVICE = Replicas(tf.distribute.get_strategy())


def chosen_replicas(settings: TrainConfig) -> Replicas:
    """The devices that `train.strategy` asks for; waits for the other processes if there are any.

    Raises:
      ValueError: they are not there, or TF_CONFIG is not as TensorFlow documents it.
    """
    workers = Cluster.from_environment()
    kind = settings.strategy
    if kind == "auto":
        several = settings.replicas > 1 or (settings.replicas == 0 and len(gpus()) > 1)
        kind = "multi_worker" if workers.count > 1 else "mirrored" if several else "one_device"
    if kind == "multi_worker":
        return _several_processes(settings, workers)
    check(
        workers.count == 1,
        f"train.strategy = {kind!r}: {TF_CONFIG} names {workers.count} workers; set "
        "train.strategy=multi_worker (or auto), or unset the variable",
    )
    if kind == "one_device":
        check(
            settings.replicas <= 1,
            f"train.replicas = {settings.replicas}: strategy one_device has one; set train.strategy=mirrored (or auto)",
        )
        select_devices(1)
        return ONE_DEVICE
    devices = select_devices(settings.replicas)
    check(
        len(devices) > 1,
        "train.strategy = 'mirrored': there is one device only; set train.strategy=one_device (or auto), or to try "
        "several replicas on a CPU train.replicas=2",
    )
    return Replicas(tf.distribute.MirroredStrategy(devices), len(devices))


def _several_processes(settings: TrainConfig, workers: "Cluster") -> Replicas:
    check(
        workers.count > 1,
        f"train.strategy = 'multi_worker': the environment variable {TF_CONFIG} must name at least two "
        "workers, see docs/clusters.md; python -m train.launch sets it for processes on this machine",
    )
    check(
        bool(gpus()) or settings.replicas <= 1,
        f"train.replicas = {settings.replicas}: without GPUs each of several workers has one replica",
    )
    local_count = len(select_devices(settings.replicas)) if gpus() else 1
    print(f"Worker {workers.index} of {workers.count}: waiting for the others.", flush=True)
    return Replicas(tf.distribute.MultiWorkerMirroredStrategy(), local_count, Shard(workers.index, workers.count))


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that TF_CONFIG names, and which of them this is."""

    index: int
    count: int

    @classmethod
    def from_environment(cls) -> "Cluster":
        """Reads TF_CONFIG; one process where it is not set."""
        text = os.environ.get(TF_CONFIG)
        if not text:
            return cls(0, 1)
        try:
            setting = json.loads(text)
            cluster, task = setting["cluster"], setting["task"]
            kind, index = task["type"], int(task["index"])
            addresses = {name: list(cluster.get(name, ())) for name in ("chief", "worker")}
            check(kind in addresses and 0 <= index < len(addresses[kind]), f"it has no task {kind} {index}")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"the environment variable {TF_CONFIG} = {text!r} can't be used ({error!r}); it must look like "
                '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
            ) from error
        chiefs = len(addresses["chief"])
        return cls(index + (chiefs if kind == "worker" else 0), chiefs + len(addresses["worker"]))


@tf.function(autograph=False)
def _summed(strategy: tf.distribute.Strategy, values: tf.Tensor) -> tf.Tensor:
    return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: values), axis=None)
