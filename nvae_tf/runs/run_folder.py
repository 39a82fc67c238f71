"""The folder of a training run: where its files are, who may write into it, its settings and its images."""

import contextlib
import datetime
import itertools
import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from nvae_tf.config import ExperimentConfig, config_to_json, named_settings, read_config
from nvae_tf.files import atomic_write, check_has_config, check_is_no_pattern
from nvae_tf.runs.checkpoint_files import folder_of_best, latest_step
from nvae_tf.schemas import Field, parsed

# The settings that may differ when a run is continued: its length, how often files are written, the devices, where the
# images lie now and what happens to unreadable images and images of another form. No other setting, because the second
# half of a run must belong to the first. `objective.total_steps` follows from the length.
CHANGEABLE_SETTINGS = tuple(
    """
    objective.total_steps data.path data.cache data.on_bad_file data.max_pixels data.convert train.steps train.epochs
    train.batch_size train.accumulate_steps train.strategy train.replicas train.precision train.xla train.scan
    train.recompute train.deterministic train.profile_steps train.keep_best train.checkpoint_every_steps
    train.checkpoint_every_minutes train.keep_checkpoints train.keep_checkpoint_every_hours
    train.evaluate_every_steps train.sample_every_steps train.log_every_steps train.logger
    """.split()
)
_COUNT = Field("whole number", (), 0, 2**63)
_COUNTS = dict.fromkeys(("train", "test"), _COUNT) | {
    "a_step": _COUNT._replace(least=1, optional=True),
    "held_out": Field("truth value", optional=True),
    "class_names": Field("text", (None,), optional=True),
}


class RunFolder:
    """The places in a run folder; making this object touches no file."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.config_file = self.path / "config.json"  # all settings; what makes a folder a run folder
        self.lock_file = self.path / ".lock"
        self.images_file = self.path / "images.json"  # see `ImageCounts`
        self.environment_file = self.path / "environment.json"  # hardware and versions of the latest training
        self.checkpoints = self.path / "checkpoints"
        self.best_checkpoints = folder_of_best(self.checkpoints)
        self.recorded_config_file = self.checkpoints / "config.json"  # a copy, which shows damage to the other
        self.metrics_file = self.path / "metrics.csv"
        self.tensorboard = self.path / "tensorboard"
        self.samples = self.path / "samples"  # `step-N.png` with N in eight digits
        self.evaluation = self.path / "evaluation"  # the figures of `nvae-evaluate`, and its unfinished batches
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
        try:
            scores = json.loads(self.evaluation_file(split).read_text(encoding="utf-8"))
            if scores["checkpoint_sha256"] != checkpoint_sha256:
                return None
        # Not measured, or edited by hand.
        except (KeyError, OSError, TypeError, ValueError, RecursionError):
            return None
        return {name: value for name, value in scores.items() if name != "data"}


def write_run_config(folder: RunFolder, config: ExperimentConfig) -> None:
    """Writes the settings of a run, then their copy beside its weights, which a run may lack."""
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    for file in (folder.config_file, folder.recorded_config_file):
        atomic_write(file, config_to_json(config))


def read_run_config(folder: RunFolder) -> ExperimentConfig:
    """The settings of a run; FileNotFoundError where there is none, ValueError where its `config.json` is damaged.

    Settings that belong to the weights must be those of the copy beside them, which runs of older versions lack.
    """
    check_has_config(folder.path, str(folder.path))
    check_is_no_pattern(folder.path)
    config, copy = read_config(folder.config_file), folder.recorded_config_file
    if copy.is_file() and (differences := _differences(read_config(copy), config)):
        raise ValueError(
            f"{folder.config_file}: not the settings that its weights were made with: {differences}. If it is damaged, "
            f"copy {copy} over it; if the change is meant, delete {copy}"
        )
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
    _check_same_run(folder, before, config)
    return before


def _check_place(folder: RunFolder) -> None:
    check_is_no_pattern(folder.path)
    fix = "give a new or empty folder, or one of the same run"
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"{folder.path}: a file; {fix}")
    # Hidden files are what a file manager or an interrupted first write leaves behind.
    names = sorted(entry.name for entry in folder.path.glob("*") if not entry.name.startswith("."))
    if names and not folder.config_file.exists():
        raise ValueError(
            f"{folder.path}: not empty and not a run folder, it holds {', '.join(names[:5])}"
            f"{' ...' if len(names) > 5 else ''} but no config.json; {fix}"
        )


def _check_same_run(folder: RunFolder, before: ExperimentConfig, now: ExperimentConfig) -> None:
    if differences := _differences(before, now):
        raise ValueError(
            f"{folder.path}: holds a run with other settings: {differences}. "
            "Give the same settings to continue it, or another --workdir"
        )
    step, total = latest_step(folder.checkpoints), now.objective.total_steps
    if step > total:
        raise ValueError(
            f"{folder.path}: this run has {step:,} steps already, more than the {total:,} asked for. "
            "Give more train.steps (or train.epochs), or another --workdir"
        )


def _differences(before: ExperimentConfig, now: ExperimentConfig) -> str:
    """The settings that have changed and may not, in words; empty where there is none."""
    old = named_settings(before)
    differences = [
        f"{name} was {old[name]!r} and is now {value!r}"
        for name, value in named_settings(now).items()
        if old[name] != value and name not in CHANGEABLE_SETTINGS
    ]
    return "; ".join(differences[:5]) + (f" and {len(differences) - 5} more" if len(differences) > 5 else "")


class ImageCounts(NamedTuple):
    """The numbers in `images.json`; None where one is not known, as in runs of older versions."""

    train: int
    test: int
    a_step: int | None = None
    held_out: bool | None = None  # whether the test images were drawn at random
    class_names: tuple[str, ...] | None = None  # the names of the classes in their order, if images have labels

    def text(self) -> str:
        """The contents of the file."""
        return json.dumps({name: value for name, value in self._asdict().items() if value is not None}) + "\n"


def read_image_counts(file: pathlib.Path) -> ImageCounts | None:
    """The contents of a run folder's `images.json`, None where there is none; ValueError where it is damaged."""
    if not file.is_file():
        return None
    try:
        return image_counts_from_text(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}; fix it, or delete it: training then notes the numbers anew") from error


def image_counts_from_text(text: str) -> ImageCounts:
    """The numbers that `ImageCounts.text` has written; a ValueError says which form is needed."""
    counts = parsed(text, _COUNTS, "must be a JSON object of numbers of images: ")
    if "class_names" in counts:
        counts["class_names"] = tuple(counts["class_names"])
    return ImageCounts(**counts)


def check_class_names(file: pathlib.Path, names: Sequence[str], where: str) -> None:
    """Raises a ValueError if the classes of a run's data, `where`, have other names now than its `images.json` has."""
    noted = read_image_counts(file)
    if noted is None or noted.class_names is None:
        return
    pairs = enumerate(itertools.zip_longest(noted.class_names, names))
    changed = [f"class {number} was {before!r} and is now {now!r}" for number, (before, now) in pairs if before != now]
    if changed:
        raise ValueError(
            f"{where}: not the classes that the run was begun with: {'; '.join(changed[:3])}"
            f"{' ...' if len(changed) > 3 else ''}. Give the data of the run, or name the classes as they were"
        )


@contextlib.contextmanager
def lock_for_training(folder: RunFolder, warn: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a run folder, which the operating system releases when this process ends or dies.

    A missing folder is made, and removed if it stays empty. On a file system without locks there is only a warning.
    ValueError: another process holds the lock, or the folder holds something else. OSError: it can't be written to.
    """
    _check_place(folder)
    made, descriptor = [place for place in (folder.path, *folder.path.parents) if not place.exists()], None
    try:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            descriptor = _open_locked(folder, warn)
        except OSError as error:
            where = f"{folder.path}: nothing can be written there ({error.strerror}); give another --workdir"
            raise OSError(where) from error
        yield
    finally:
        if descriptor is not None:
            # While it is locked: a process that opened it before finds it gone, see `_open_locked`.
            with contextlib.suppress(OSError):
                folder.lock_file.unlink()
            os.close(descriptor)
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()


def _open_locked(folder: RunFolder, warn: Callable[[str], None]) -> int:
    """The descriptor of the lock file, locked, with this process's name in it."""
    # Not at the top: commands that only read run folders work on Windows too, which has no such module.
    import fcntl

    while True:
        descriptor = os.open(folder.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.ExitStack() as unless_locked:
            unless_locked.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                holder = os.read(descriptor, 300).decode(errors="replace").strip() or "a process that has just begun"
                raise ValueError(
                    f"{folder.path}: another training writes into this folder: {holder}. Wait until it has ended, or "
                    f"give another --workdir; if its machine is gone, delete {folder.lock_file}"
                ) from None
            except OSError as error:
                no_locks = f"{folder.path}: this file system has no locks ({error.strerror})"
                warn(f"{no_locks}; make sure that no other training writes into this folder.")
            # Its holder may have removed the file after it was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(folder.lock_file), os.fstat(descriptor)):
                    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {now}".encode())
                    unless_locked.pop_all()
                    return descriptor
