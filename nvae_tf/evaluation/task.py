"""What is evaluated, on which devices; and its batches, kept in files and shared by processes."""

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataSpec
from nvae_tf.data.pipeline import Shard, content_digest
from nvae_tf.data.sources import ImageSource, load_split
from nvae_tf.data.spec import check_model_fits
from nvae_tf.files import read_arrays, write_arrays
from nvae_tf.progress import StatusLine, duration
from nvae_tf.training.checkpoints import checkpoint_sha256
from nvae_tf.training.loading import TrainedRun, load_run, spec_to_read
from nvae_tf.training.run_folder import RunFolder
from nvae_tf.training.strategy import select_devices, shard_from_environment

_SECONDS_FOR_CHIEF = 300.0


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
    strategy: tf.distribute.Strategy
    shard: Shard  # which of several processes this is
    status: StatusLine


def open_task(
    workdir: str | os.PathLike,
    checkpoint: str,
    split: str,
    batch_size: int | None,
    seed: int,
    data_path: str | None,
    replicas: int,
) -> EvaluationTask:
    """Loads the model and finds the images; the arguments are those of `nvae_tf.evaluation.evaluate.evaluate_run`."""
    shard = shard_from_environment()
    devices = select_devices(replicas)
    strategy = tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        trained = load_run(workdir, checkpoint)
    sha256 = checkpoint_sha256(trained.checkpoint)
    spec = spec_to_read(trained.config, data_path)
    check_model_fits(trained.config.model, spec)
    status = StatusLine()
    source = load_split(spec, split, status.report())
    of_replica = min(batch_size or trained.config.train.batch_size, math.ceil(source.count / len(devices)))
    folder, digest, size = RunFolder(pathlib.Path(workdir)), content_digest(source, spec), of_replica * len(devices)
    return EvaluationTask(folder, trained, sha256, spec, split, source, digest, size, seed, strategy, shard, status)


class KeptBatches:
    """The finished batches of an evaluation, a file of arrays each.

    The same command continues from them after an interruption, and several processes share the work without talking
    to each other: each computes its own batches and then helps the others from their ends, so that at worst the
    batches in progress when they meet are computed twice, with the same result. The chief (process 0) makes the
    folder, and removes it when it has combined all `count` batches.
    """

    def __init__(self, folder: pathlib.Path, count: int):
        self._folder, self.count = folder, count

    def begin(self, shard: Shard) -> bool:
        """Makes the folder, as the chief; others wait for it. False where it does not appear."""
        if shard.index == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _SECONDS_FOR_CHIEF
        while not self._folder.is_dir() and time.monotonic() < deadline:
            time.sleep(0.2)
        return self._folder.is_dir()

    def missing(self, shard: Shard) -> list[int]:
        """The numbers of batches that are still to be computed, those of this process first; removes damaged files."""
        first, last = (index * self.count // shard.count for index in (shard.index, shard.index + 1))
        missing = []
        for number in [*range(first, last), *reversed([*range(last, self.count), *range(first)])]:
            try:
                self._arrays(number)
            except (FileNotFoundError, ValueError):
                missing.append(number)
        return missing

    def has(self, number: int) -> bool:
        """Whether a batch is finished."""
        return self._file(number).exists()

    def write(self, number: int, arrays: dict[str, np.ndarray]) -> bool:
        """Keeps a batch; False where another process has combined all of them meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            write_arrays(self._file(number), arrays)
            return True
        return False

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of every batch in their order; FileNotFoundError where another process has combined them."""
        return map(self._arrays, range(self.count))

    def remove(self) -> None:
        """Deletes all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        file = self._file(number)
        try:
            return read_arrays(file)
        except ValueError as error:
            file.unlink(missing_ok=True)
            raise ValueError(
                f"{file}: was damaged and is removed ({error}); the same command computes this batch again"
            ) from error

    def _file(self, number: int) -> pathlib.Path:
        return self._folder / f"batch-{number:06d}.npz"


def share_work(
    task: EvaluationTask,
    kept: KeptBatches,
    total: int,
    size: int,
    inputs: Callable[[list[int]], Iterable[Any]],
    compute: Callable[[Any, int, Callable[[int], None]], dict[str, np.ndarray]],
    combine: Callable[[Iterator[dict[str, np.ndarray]]], Any],
) -> Any:
    """Computes and keeps the batches of `size` images, `total` in all, that no process has finished.

    `inputs(numbers)` gives what each of these batches is computed of, and `compute(input, first, progress)` the arrays
    of the batch whose first image has this number. Returns what `combine` makes of all batches in the chief; None in
    other processes, or where another has been faster.
    """
    index = task.shard.index
    if not kept.begin(task.shard):
        task.status.keep(
            f"worker {index}: nothing to do; worker 0 has finished, has not begun, or evaluates another "
            "checkpoint or with another batch size"
        )
        return None
    missing = kept.missing(task.shard)
    if len(missing) < kept.count:
        task.status.keep(f"{kept.count - len(missing):,} of {kept.count:,} batches are there already")
    counts = [min(size, total - number * size) for number in missing]
    progress = ImageProgress(task.status, total, total - sum(counts))
    for number, count, given in zip(missing, counts, inputs(missing) if missing else (), strict=True):
        # Another process may have been here meanwhile.
        computed_here = not kept.has(number)
        if computed_here and not kept.write(number, compute(given, number * size, progress.show)):
            break
        progress.add(count, computed_here)
        progress.show(0)
    if index:
        task.status.keep(f"worker {index}: done; worker 0 combines the batches")
        return None
    try:
        return combine(kept.read())
    except FileNotFoundError:
        file = task.folder.evaluation_file(task.split)
        task.status.keep(f"another train.evaluate has combined the batches meanwhile; the metrics are in {file}")
        return None


class ImageProgress:
    """Images done, images per second and the time left, of `total` images, of which `done` were done before."""

    def __init__(self, status: StatusLine, total: int, done: int = 0):
        self._status, self._total = status, total
        self._before = self._done = done
        self._started = time.monotonic()

    def show(self, of_batch: int) -> None:
        """Shows, if it is time, that so many images of the current batch are done."""
        fraction = (self._done + of_batch) / self._total
        self._status.show_if_due(self.line(time.monotonic() - self._started, of_batch), fraction)

    def add(self, images: int, computed_here: bool = True) -> None:
        """Counts the images of a finished batch."""
        self._done += images
        self._before += 0 if computed_here else images

    def line(self, seconds: float, of_batch: int = 0) -> str:
        """What is shown after so many seconds."""
        done = self._done + of_batch
        here, text = done - self._before, f"{done:,} of {self._total:,} images"
        if here and seconds > 1.0:
            text += f", {here / seconds:,.3g} images/s, {duration((self._total - done) * seconds / here)} left"
        return text
