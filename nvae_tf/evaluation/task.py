"""What is evaluated, on which devices, and its batches, which several workers share."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataSpec
from nvae_tf.data.pipeline import ALL, Shard, evaluation_batches, iterate
from nvae_tf.data.sources import ImageSource
from nvae_tf.progress import ImageProgress, StatusLine
from nvae_tf.runs.loading import TrainedRun
from nvae_tf.runs.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Workers:
    """The processes that work together, on one machine or several, and which of them this one is."""

    # Not at import: asking for it starts a thread, which a fork of a process that has only imported would lack.
    strategy: tf.distribute.Strategy = dataclasses.field(default_factory=tf.distribute.get_strategy)
    shard: Shard = ALL  # of every batch, for this process

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the files."""
        return self.shard.index == 0

    def local_strategy(self) -> tf.distribute.Strategy:
        """The strategy of this process's devices alone: it has the graphs, and the last bits, of a single process."""
        if self.shard.count == 1:
            return self.strategy
        devices = self.strategy.extended.worker_devices
        return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()

    def gathered(self, array: np.ndarray) -> np.ndarray:
        """An array from every worker, in their order, `[workers, *shape]`; all workers call this at the same time."""
        if self.shard.count == 1:
            return array[np.newaxis]
        rows = _gathered(self.strategy, tf.constant(array)).numpy()
        return rows[:: len(rows) // self.shard.count]  # every replica of a worker gives the same


@tf.function(autograph=False)
def _gathered(strategy: tf.distribute.Strategy, array: tf.Tensor) -> tf.Tensor:
    return strategy.gather(strategy.run(lambda: array[tf.newaxis]), axis=0)


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """A checkpoint of a run and one split of its data set."""

    folder: RunFolder
    trained: TrainedRun
    checkpoint_sha256: str  # of its files, which a training that still runs may delete meanwhile
    spec: DataSpec
    split: str
    source: ImageSource
    data_sha256: str  # `content_digest` of the source
    batch_size: int  # images of a batch, over all replicas of this process
    seed: int  # of the binarization and of all draws
    strategy: tf.distribute.Strategy  # of the devices of this process, which the model is on
    workers: Workers
    status: StatusLine

    def batches(self, source: ImageSource, spec: DataSpec, numbers: Sequence[int] | None = None) -> Iterator[tf.Tensor]:
        """Batches of all images in order, or of the images with these numbers; with labels where the spec has some."""
        return iterate(evaluation_batches(source, spec, self.batch_size, self.seed, numbers), source)

    def check_finite(self, scores: Iterable[np.ndarray]) -> None:
        """ValueError where a score is not finite."""
        if not all(np.isfinite(values).all() for values in scores):
            raise ValueError(f"{self.trained.checkpoint}: the model has diverged, its scores are not finite")

    def shared_batches(self, work: str, total: int, size: int, inputs: Callable, compute: Callable) -> Iterator[dict]:
        """Yields the arrays of every batch in order, on all workers, which compute the batches in turn.

        There are `total` images, `size` in a batch. `inputs` gives the inputs of batches by number, `compute` the
        arrays of one by name, from its input, the number of its first image and a function that takes how many of its
        images are done. ValueError: `work`, which says what is computed, is not the same on all workers.
        """
        work = f"{self.checkpoint_sha256} {self.seed} {work} {total} {size}"
        digest = np.frombuffer(hashlib.sha256(work.encode()).digest(), np.uint8).astype(np.float32)
        if (self.workers.gathered(digest) != digest).any():
            fix = "give all of them the same flags, --workdir, images and GPUs"
            raise ValueError(f"the workers do not evaluate the same: {fix}")
        count, shard = math.ceil(total / size), self.workers.shard
        rounds = range(0, count, shard.count)
        # In the last round a worker without a batch of its own repeats the last one, which nobody uses.
        numbers = [min(start + shard.index, count - 1) for start in rounds]
        progress = ImageProgress(self.status.show_if_due, total)
        for start, number, given in zip(rounds, numbers, inputs(numbers), strict=True):
            images = min(shard.count * size, total - start * size)

            def report(done: int, images: int = images) -> None:
                progress.show(min(done * shard.count, images))

            gathered = {}
            for name, array in compute(given, number * size, report).items():
                padding = [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)]
                gathered[name] = self.workers.gathered(np.pad(array, padding))
            for index in range(math.ceil(images / size)):
                rows = min(size, images - index * size)
                yield {name: batches[index, :rows] for name, batches in gathered.items()}
            progress.add(images)
