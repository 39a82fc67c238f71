"""The folder of a training run: its files, who may write into it, its settings, metrics, images and origin."""

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from nvae_tf.config import ExperimentConfig, config_to_json, named_settings, read_config
from nvae_tf.files import atomic_write, check_has_config, check_is_no_pattern
from nvae_tf.runs.checkpoints import BEST, steps_of_files
from nvae_tf.schemas import IMAGE_COUNTS, ORIGIN, Record

# The settings that may differ when a run is continued: its length, how often files are written, the devices, where the
# images lie now and what happens to unreadable images and images of another form. No other setting, because the second
# half of a run must belong to the first. `objective.total_steps` follows from the length.
CHANGEABLE_SETTINGS = """
    objective.total_steps data.path data.cache data.on_bad_file data.max_pixels data.convert train.steps train.epochs
    train.batch_size train.accumulate_steps train.strategy train.replicas train.precision train.xla train.scan
    train.recompute train.deterministic train.profile_steps train.keep_best train.checkpoint_every_steps
    train.checkpoint_every_minutes train.keep_checkpoints train.keep_checkpoint_every_hours
    train.evaluate_every_steps train.sample_every_steps train.log_every_steps train.logger
    """.split()
# The columns of `metrics.csv`, and the one that every line has, besides its step.
METRICS_COLUMNS = (
    *("step", "epoch", "learning_rate", "kl_weight"),
    *("train_loss", "train_nelbo_nats", "train_reconstruction_nats", "train_kl_nats"),
    *("test_nelbo_nats", "test_reconstruction_nats", "test_kl_nats", "test_bits_per_dim"),
    *("images_per_second", "active_units"),
)
TEST_SCORE = "test_nelbo_nats"


class RunFolder:
    """The places in a run folder; making this object touches no file."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.config_file = self.path / "config.json"  # all settings; what makes a folder a run folder
        self.lock_file = self.path / ".lock"
        self.images_file = self.path / "images.json"  # see `ImageCounts`
        self.environment_file = self.path / "environment.json"  # hardware and versions of the latest training
        self.checkpoints = self.path / "checkpoints"
        self.best_checkpoints = self.checkpoints / BEST
        self.recorded_config_file = self.checkpoints / "config.json"  # a copy, which shows damage to the other
        self.metrics_file = self.path / "metrics.csv"
        self.tensorboard = self.path / "tensorboard"
        self.samples = self.path / "samples"  # `step-N.png` with N in eight digits
        self.evaluation = self.path / "evaluation"  # the figures of `nvae-evaluate`
        self.outliers_file = self.path / "outliers.npz"  # of `nvae-calibrate`, for outlier scores
        self.card_file = self.path / "README.md"  # the model card
        self.prior_file = self.path / "prior.npz"  # the reweighted prior of one checkpoint, if one was learned
        # Where imported weights came from and under which license; most runs have none.
        self.origin_file = self.path / "origin.json"

    def evaluation_file(self, split: str = "test") -> pathlib.Path:
        """The file of the metrics that `nvae-evaluate` measured on a part of the data."""
        return self.path / ("evaluation.json" if split == "test" else f"evaluation-{split}.json")

    def scores(self, checkpoint_sha256: str, split: str = "test") -> dict[str, Any] | None:
        """The metrics of this very checkpoint, less the place of the data; None where there are none."""
        # Not measured, or edited by hand.
        with contextlib.suppress(KeyError, OSError, TypeError, ValueError, RecursionError):
            scores = json.loads(self.evaluation_file(split).read_text(encoding="utf-8"))
            if scores["checkpoint_sha256"] == checkpoint_sha256:
                return {name: value for name, value in scores.items() if name != "data"}
        return None


def write_run_config(folder: RunFolder, config: ExperimentConfig) -> None:
    """Writes the settings of a run, then their copy beside its weights, which a run may lack."""
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    for file in (folder.config_file, folder.recorded_config_file):
        atomic_write(file, config_to_json(config))


def read_run_config(folder: RunFolder) -> ExperimentConfig:
    """The settings of a run; FileNotFoundError where there is none, ValueError where its `config.json` is damaged.

    Settings that belong to the weights must equal the copy beside them, which runs of older versions lack.
    """
    check_has_config(folder.path, str(folder.path))
    check_is_no_pattern(folder.path)
    config, copy = read_config(folder.config_file), folder.recorded_config_file
    if copy.is_file() and (differences := _differences(read_config(copy), config)):
        fault = f"not the settings that its weights were made with: {differences}"
        fix = f"If it is damaged, copy {copy} over it; if the change is meant, delete {copy}"
        raise ValueError(f"{folder.config_file}: {fault}. {fix}")
    return config


def open_for_training(path: str | os.PathLike, config: ExperimentConfig) -> RunFolder:
    """Makes a run folder, or opens one to continue its run; of the settings only `CHANGEABLE_SETTINGS` may differ.

    ValueError: the folder holds something else, or a run with other settings; nothing is written then.
    """
    folder = RunFolder(path)
    if check_continues(folder, config) != config or not folder.recorded_config_file.is_file():
        write_run_config(folder, config)
    return folder


def check_continues(folder: RunFolder, config: ExperimentConfig) -> ExperimentConfig | None:
    """The settings of the run that a folder holds, None for a new one; ValueError as for `open_for_training`."""
    _check_place(folder)
    if not folder.config_file.exists():
        return None
    before = read_run_config(folder)
    if differences := _differences(before, config):
        fix = "Give the same settings to continue it, or another --workdir"
        raise ValueError(f"{folder.path}: holds a run with other settings: {differences}. {fix}")
    # Damaged ones count, too.
    step, total = max(steps_of_files(folder.checkpoints), default=0), config.objective.total_steps
    if step > total:
        fix = "Give more train.steps (or train.epochs), or another --workdir"
        raise ValueError(f"{folder.path}: has {step:,} steps already, more than the {total:,} asked for. {fix}")
    return before


def _check_place(folder: RunFolder) -> None:
    check_is_no_pattern(folder.path)
    if not folder.path.exists() or folder.config_file.exists():
        return
    # Hidden files are what a file manager or an interrupted first write leaves behind.
    names = sorted(entry.name for entry in folder.path.glob("[!.]*"))
    if names or folder.path.is_file():
        fault = f"not empty and not a run folder, it holds {', '.join(names[:5])}" if names else "a file"
        raise ValueError(f"{folder.path}: {fault}; give a new or empty folder, or one of the same run")


def _differences(before: ExperimentConfig, now: ExperimentConfig) -> str:
    """The settings that have changed and may not, in words; empty where there is none."""
    old = named_settings(before)
    new = {name: value for name, value in named_settings(now).items() if name not in CHANGEABLE_SETTINGS}
    differences = [f"{name} was {old[name]!r} and is now {new[name]!r}" for name in new if old[name] != new[name]]
    return "; ".join(differences[:5]) + (" ..." if len(differences) > 5 else "")


class MetricsFile:
    """`metrics.csv`: one line an evaluation, in the order of steps; new columns are added to an older version's file.

    `train_*` are means over the steps since the last multiple of `train.log_every_steps`. `rows` are the lines by step,
    each with the texts of its columns by name.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the intact lines of the file, if it is there."""
        self._path, self._columns, self.rows, self.damaged = path, [], {}, 0
        with contextlib.suppress(FileNotFoundError, csv.Error), path.open(errors="replace", newline="") as file:
            # Without quotes, so that a damaged line can't swallow those after it.
            lines = csv.DictReader(file, quoting=csv.QUOTE_NONE)
            for row in lines:
                self.damaged += 1
                with contextlib.suppress(KeyError, ValueError):
                    # A line may be older than a column, and has no value there.
                    numbers = [float(row[name] or 0.0) for name in METRICS_COLUMNS if name in row]
                    if numbers and row[TEST_SCORE] and None not in (*row, *row.values()):
                        self.damaged -= int(row["step"]) not in self.rows
                        self._columns, self.rows[int(row["step"])] = [*lines.fieldnames], row

    def drop_after(self, step: int) -> None:
        """Drops the lines after a step, and damaged and repeated lines."""
        self.rows = {number: row for number, row in sorted(self.rows.items()) if number <= step}
        self._write()

    def append(self, row: Mapping[str, float]) -> None:
        """Adds the line of a later step; numbers are written with six digits."""
        written = {name: str(value) if isinstance(value, int) else f"{value:.6g}" for name, value in row.items()}
        self.rows[row["step"]] = written
        self._columns += [name for name in METRICS_COLUMNS if name not in self._columns]
        self._write()

    def _write(self) -> None:
        lines = [self._columns, *([row.get(name, "") for name in self._columns] for row in self.rows.values())]
        text = "".join(f"{','.join(line)}\n" for line in lines if line)
        if text != (self._path.read_text(errors="replace") if self._path.exists() else ""):
            atomic_write(self._path, text)


@dataclasses.dataclass(frozen=True)
class ImageCounts(Record):
    """The numbers in `images.json`; None where one is not known, as in runs of older versions."""

    schema = IMAGE_COUNTS
    train: int
    test: int
    a_step: int | None = None
    held_out: bool | None = None  # whether the test images were drawn at random
    class_names: tuple[str, ...] | None = None  # the names of the classes in their order, if images have labels


def check_class_names(file: pathlib.Path, names: Sequence[str], where: str) -> None:
    """Raises a ValueError if the classes of a run's data, `where`, have other names now than its `images.json` has.

    Data without names, whose classes are all called by their numbers, may be for a run whose classes have names.
    """
    noted = ImageCounts.read(file)
    before = noted.class_names if noted and noted.class_names else ()
    if list(names) == [str(index) for index in range(len(before))] and not any(map(str.isdecimal, before)):
        return
    for index, (old, new) in enumerate(itertools.zip_longest(before, names) if before else ()):
        if old != new:
            change = f"class {index} was {old!r} and is now {new!r}"
            raise ValueError(f"{where}: not the classes that the run was begun with: {change}. Give the run's own data")


@dataclasses.dataclass(frozen=True)
class Origin(Record):
    """The file or the run that weights came from; a person may write `{"license": "mit"}` for weights trained here."""

    schema = ORIGIN
    source_file: str | None = None  # the name of the imported file, or of the run that a run started from
    sha256: str | None = None  # the SHA-256 of that file, in hexadecimal digits
    license: str | None = None  # an identifier of the Hugging Face Hub (`mit`), another name, or an address
    step: int | None = None  # the step of the imported checkpoint; None where the run started from other weights


def origin_of_run(folder: RunFolder, initialize_from: str | None) -> Origin | None:
    """The origin of a run's weights: from its own file, or from the file of the run that it was fine-tuned from."""
    origin = Origin.read(folder.origin_file)
    if origin is not None or not initialize_from:
        return origin
    from nvae_tf.runs.sharing import find_run_folder  # not at the top: most commands need no Hub

    source = None
    with contextlib.suppress(OSError):  # a shared run may not be there to fetch now
        source = Origin.read(RunFolder(find_run_folder(initialize_from)).origin_file)
    return source and dataclasses.replace(source, source_file=source.source_file or initialize_from, step=None)


@contextlib.contextmanager
def lock_for_training(folder: RunFolder, warn: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a run folder, which the operating system releases when this process ends or dies.

    A missing folder is made, and removed if no run begins. On a file system without locks there is only a warning.
    ValueError: another process holds the lock, or the folder holds something else. OSError: it can't be written to.
    """
    _check_place(folder)
    missing = [place for place in (folder.path, *folder.path.parents) if not place.exists()]
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = folder.lock_file.open("a+", errors="replace")
    except OSError as error:
        fault = f"nothing can be written there ({error.strerror}); give another --workdir"
        raise OSError(f"{folder.path}: {fault}") from error
    with lock:
        _take_lock(folder, lock, warn)
        lock.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}")
        lock.flush()
        try:
            yield
        finally:
            # Another user, who continues the run, might not write into the file.
            with contextlib.suppress(OSError):
                folder.lock_file.unlink()
                for place in missing:
                    place.rmdir()


def _take_lock(folder: RunFolder, lock: TextIO, warn: Callable[[str], None]) -> None:
    # Not at the top: commands that only read run folders work on Windows too, which has no such module.
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its holder may have removed the file after it was opened here.
        if not os.path.samefile(folder.lock_file, lock.fileno()):
            raise BlockingIOError
    # Some network file systems say PermissionError.
    except (BlockingIOError, PermissionError, FileNotFoundError):
        lock.seek(0)
        fix = f"Wait until it has ended, or give another --workdir; if its machine is gone, delete {folder.lock_file}"
        fault = f"another training writes into this folder: {lock.read(300)}"
        raise ValueError(f"{folder.path}: {fault}. {fix}") from None
    except OSError as error:
        no_locks = f"{folder.path}: this file system has no locks ({error.strerror})"
        warn(f"{no_locks}; make sure that no other training writes into this folder.")
