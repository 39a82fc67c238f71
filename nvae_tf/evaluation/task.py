"""What is evaluated, and its batches, kept in files and shared by processes."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataSpec, check
from nvae_tf.data.pipeline import Shard
from nvae_tf.data.sources import ImageSource
from nvae_tf.files import read_arrays, write_arrays
from nvae_tf.progress import ImageProgress, StatusLine
from nvae_tf.runs.loading import TrainedRun
from nvae_tf.runs.run_folder import RunFolder
from nvae_tf.schemas import ANY

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

    def check_finite(self, scores: Iterable[np.ndarray]) -> None:
        """ValueError where a score is not finite."""
        diverged = f"{self.trained.checkpoint}: the model has diverged, its scores are not finite"
        check(all(np.isfinite(values).all() for values in scores), diverged)

    def can_draw(self) -> bool:
        """Whether matplotlib is there, without which a line reports that there are no figures."""
        if importlib.util.find_spec("matplotlib"):
            return True
        self.status.keep('no figures, matplotlib is not installed: pip install "nvae_tf[reports]"')
        return False


class KeptBatches:
    """The finished batches of `size` images, of `total` in all, a file of arrays each.

    The same command continues from them after an interruption. Processes share the work by these files alone: each
    computes its own batches, then those of others from the end. The chief (process 0) makes and removes the folder.
    """

    def __init__(self, folder: pathlib.Path, total: int, size: int = 1):
        self._folder, self.total, self.size, self.count = folder, total, size, math.ceil(total / size)

    def begin(self, shard: Shard) -> bool:
        """Makes the folder, as the chief; others wait for it. False where it does not appear."""
        if shard.index == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _SECONDS_FOR_CHIEF
        while not self._folder.is_dir() and time.monotonic() < deadline:
            time.sleep(0.2)
        return self._folder.is_dir()

    def missing(self, shard: Shard) -> list[int]:
        """The numbers of batches still to be computed, those of this process first; removes damaged files."""
        first, last = (index * self.count // shard.count for index in (shard.index, shard.index + 1))
        missing = []
        for number in [*range(first, last), *reversed([*range(last, self.count), *range(first)])]:
            try:
                self._arrays(number)
            except (FileNotFoundError, ValueError):
                missing.append(number)
        return missing

    def file(self, number: int) -> pathlib.Path:
        """The file of a finished batch."""
        return self._folder / f"batch-{number:06d}.npz"

    def write(self, number: int, arrays: dict[str, np.ndarray]) -> bool:
        """Keeps a batch; False where another process has combined all of them meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            write_arrays(self.file(number), arrays)
            return True
        return False

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of every batch in their order; FileNotFoundError where another process has combined them."""
        return map(self._arrays, range(self.count))

    def remove(self) -> None:
        """Deletes all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        file = self.file(number)
        try:
            return read_arrays(file, ANY)
        except ValueError as error:
            file.unlink(missing_ok=True)
            fix = "the same command computes this batch again"
            raise ValueError(f"{file}: was damaged and is removed ({error}); {fix}") from error


def kept_batches(task: EvaluationTask, what: str, total: int, size: int) -> KeptBatches:
    """Those of the same checkpoint and seed; `what` says all else that they depend on."""
    digest = hashlib.sha256(f"{task.checkpoint_sha256} {task.seed} {size} {what}".encode()).hexdigest()[:12]
    return KeptBatches(task.folder.evaluation / f"unfinished-{digest}", total, size)


def share_work(
    task: EvaluationTask,
    kept: KeptBatches,
    inputs: Callable[[list[int]], Iterable[Any]],
    compute: Callable[[Any, int, Callable[[int], None]], dict[str, np.ndarray]],
    combine: Callable[[Iterator[dict[str, np.ndarray]]], Any],
) -> Any:
    """Computes and keeps the batches that no process has finished.

    `inputs(numbers)` gives what each of these batches is computed of, `compute(input, first, progress)` the arrays of
    the batch whose first image has this number. Returns `combine(all batches)`; None in a process that is not the
    chief, or where another has been faster.
    """
    index, size = task.shard.index, kept.size
    if not kept.begin(task.shard):
        reasons = "has finished, has not begun, or evaluates another checkpoint or with another batch size"
        task.status.keep(f"worker {index}: nothing to do; worker 0 {reasons}")
        return None
    missing = kept.missing(task.shard)
    if len(missing) < kept.count:
        task.status.keep(f"{kept.count - len(missing):,} of {kept.count:,} batches are there already")
    counts = [min(size, kept.total - number * size) for number in missing]
    progress = ImageProgress(task.status.show_if_due, kept.total, kept.total - sum(counts))
    for number, count, given in zip(missing, counts, inputs(missing) if missing else (), strict=True):
        computed_here = not kept.file(number).exists()  # another process may have been here meanwhile
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
        task.status.keep(f"another nvae-evaluate has combined the batches meanwhile; the metrics are in {file}")
        return None
