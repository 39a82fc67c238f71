"""The checkpoints of a run: their files, what they hold, and how a training or a model is restored from them.

A checkpoint is TensorFlow's files `step-N.index` and `step-N.data-*`. The index is moved into place last: without it
there is no checkpoint, so a killed process leaves none that is half-written. It holds the parts of a `TrainingState`:
weights and statistics, averages, optimizer, loss scale, metrics, step guard, schedule, step; the best also its score.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.errors import first_line
from nvae_tf.files import atomic_write, file_sha256
from nvae_tf.models import NVAE
from nvae_tf.optimization import LoweredRate, average_of_weights, inner_optimizer, start_averages

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
BEST = "best"  # the folder of the best checkpoint, in the folder of all checkpoints
# The end of messages about missing checkpoints.
BEST_INSTEAD = '. --checkpoint=best, or checkpoint="best" in Python, takes the one with the best test score, if any'
_STEP, _SCORE = f"step{VALUE}", f"best_score{VALUE}"
# A checkpoint with NaN or infinity in one of these can't be continued.
_MUST_BE_FINITE = ("model/", "averages/", "optimizer/")
# Weights that only training uses, the vectors of power iterations; a shared checkpoint has none of them.
_ONLY_TRAINING = "spectral_regularizer/"


def steps_of_files(folder: pathlib.Path, kinds: str = "index") -> list[int]:
    """The steps for which a folder has a file of these kinds, "index", "data" or "index|data", in order."""
    matches = (re.fullmatch(rf"step-(\d+)\.({kinds})(-.*)?", entry.name) for entry in folder.glob("step-*"))
    return sorted({int(match[1]) for match in matches if match})


def write_checkpoint(folder: pathlib.Path, step: int, write: Callable[[str], object]) -> None:
    """Writes a step's checkpoint: `write(prefix)` writes the files into a hidden folder, whence they are moved."""
    partial = folder / f".step-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(f"{partial}/step-{step}")
        files = sorted(partial.iterdir(), key=lambda file: file.suffix == ".index")
        for file in files:
            # Some file systems report a full disk only when a file is flushed.
            with file.open("rb") as written:
                os.fsync(written.fileno())
        remove_checkpoint(folder, step)
        for file in files:
            file.replace(folder / file.name)
        # The names too are on disk before older checkpoints are removed.
        descriptor = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # not all file systems can
            os.fsync(descriptor)
        os.close(descriptor)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_checkpoint(folder: pathlib.Path, step: int) -> None:
    """Removes the files of a step, the index first: without it there is no checkpoint."""
    for file in (folder / f"step-{step}.index", *folder.glob(f"step-{step}.data-*")):
        file.unlink(missing_ok=True)


def remove_partial(folder: pathlib.Path) -> set[int]:
    """Removes what killed processes have left half-written, and returns the steps of checkpoints among it."""
    steps = set()
    for entry in folder.glob(".*.partial"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
            steps |= {int(step) for step in re.findall(r"^\.step-(\d+)\.", entry.name)}
        else:
            entry.unlink(missing_ok=True)
    return steps


def listed_steps(folder: pathlib.Path) -> list[int]:
    """The steps in TensorFlow's list of a folder's checkpoints; empty where the list is missing or unreadable."""
    file = folder / "checkpoint"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return [int(step) for step in re.findall(r'^all_model_checkpoint_paths: ".*step-(\d+)"$', text, re.MULTILINE)]


def checkpoint_sha256(prefix: str) -> str:
    """The SHA-256 of a checkpoint's files; FileNotFoundError where they are gone."""
    place = pathlib.Path(prefix)
    digests = [bytes.fromhex(file_sha256(file)) for file in sorted(place.parent.glob(f"{place.name}.*"))]
    if not digests:
        raise FileNotFoundError(f"{prefix}: the checkpoint is gone; a training that runs now has deleted it")
    return hashlib.sha256(b"".join(digests)).hexdigest()


def stored_shapes(prefix: str) -> dict[str, list[int]]:
    """The shapes of a checkpoint's tensors by their names; ValueError where it is damaged or gone."""
    with wrap_checkpoint_errors(prefix):
        return tf.train.load_checkpoint(prefix).get_variable_to_shape_map()


@contextlib.contextmanager
def wrap_checkpoint_errors(prefix: str) -> Iterator[None]:
    """Raises a ValueError for the many kinds of errors that TensorFlow raises where a checkpoint is damaged or gone."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        fault = f"the checkpoint is damaged ({first_line(error)}). Restore its files from a copy, or delete them"
        if not pathlib.Path(f"{prefix}.index").exists():
            fault = "the checkpoint is gone; a training that runs now has replaced it by a later one. Try again"
        raise ValueError(f"{prefix}: {fault}") from error


class ChosenCheckpoint(NamedTuple):
    """The checkpoint of a folder to use, if there is one, and why others can't be used."""

    unusable: dict[int, str]  # step -> why this checkpoint can't be used
    score: float = float("inf")  # the score of a best checkpoint
    step: int = 0
    prefix: str | None = None  # the beginning of its files' names; None where there is no checkpoint

    def passed_over_line(self) -> str:
        """Which checkpoints can't be used, why, and which is used instead."""
        unusable = "; ".join(f"step-{step} ({reason})" for step, reason in self.unusable.items())
        return f"passed over {unusable}; {f'step-{self.step} is used' if self.prefix else 'there is none before'}"


def find_newest(folder: pathlib.Path) -> ChosenCheckpoint:
    """The newest checkpoint that can be read and has finite weights; ValueError where all are damaged."""
    newest = next(_checkpoints(folder))
    # Steps in TensorFlow's list without files, as in a folder that was copied in part.
    gone = {*listed_steps(folder)} - {*steps_of_files(folder, "index|data")}
    newest.unusable.update((step, "its files are gone") for step in gone if step >= newest.step)
    if newest.prefix is None and (steps := steps_of_files(folder)):
        fault = f"the checkpoint is damaged ({newest.unusable[steps[-1]]}), and there is no other that is whole"
        fix = f"Restore its files from a copy, or delete {folder} to start the run anew{BEST_INSTEAD}"
        raise ValueError(f"{folder}/step-{steps[-1]}: {fault}. {fix}")
    return newest


def find_best(folder: pathlib.Path) -> ChosenCheckpoint:
    """The whole checkpoint with the lowest score in a folder of the best; one without a score is the worst."""
    # There may be two, where a process was killed between writing a new best and removing the one before.
    *whole, none = _checkpoints(folder)
    best = min(whole, key=lambda checkpoint: (checkpoint.score, checkpoint.step), default=none)
    return best._replace(unusable=none.unusable)


def _checkpoints(folder: pathlib.Path) -> Iterator[ChosenCheckpoint]:
    """Yields whole checkpoints, newest first, then one without files, whose `unusable` are all damaged ones."""
    unusable: dict[int, str] = {}
    for step in reversed(steps_of_files(folder, "index|data")):
        prefix = f"{folder}/step-{step}"
        try:
            reader = tf.train.load_checkpoint(prefix)
            if reader.has_tensor(_STEP) and (stored := int(reader.get_tensor(_STEP))) != step:
                raise ValueError(f"its files hold the checkpoint of step {stored}")
            for name in reader.get_variable_to_shape_map():
                value = reader.get_tensor(name)
                if name.startswith(_MUST_BE_FINITE) and value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise ValueError(f"{name.partition('/.ATTRIBUTES')[0]} is not finite")
            score = float(reader.get_tensor(_SCORE)) if reader.has_tensor(_SCORE) else float("inf")
            yield ChosenCheckpoint({**unusable}, score, step, prefix)
        except (MemoryError, tf.errors.ResourceExhaustedError):
            raise
        except Exception as error:
            unusable[step] = first_line(error)
    yield ChosenCheckpoint(unusable)


class TrainingState:
    """All that a run needs to continue as if it had never stopped; call `restore` first where there are checkpoints.

    The newest `keep` checkpoints of the folder stay, and the best one. The model, whose optimizer is built, and the
    schedule are as in `model_for_training`. Without a schedule checkpoints hold neither its state nor the step guard's.
    """

    def __init__(self, folder: pathlib.Path, model: NVAE, keep: int, schedule: LoweredRate | None = None):
        self.folder = folder
        self.saved_step: int | None = None  # the step of the newest whole checkpoint
        self._model, self._best_folder, self._keep = model, folder / BEST, keep
        self._lowest_score = float("inf")
        self._unusable: dict[int, str] = {}  # steps whose files are damaged, and why
        start_averages(model)
        weights, by_id, inner = named_weights(model), average_of_weights(model), inner_optimizer(model.optimizer)
        averages = {name: by_id[id(weight)] for name, weight in weights.items() if id(weight) in by_id}
        self._parts = {
            "model": nested(weights),  # all weights and running statistics
            "averages": nested(averages),  # exponential moving averages (EMA) of the weights, if the run keeps them
            "optimizer": list(inner.variables),
            "metrics": {metric.name: list(metric.variables) for metric in model.metrics},
            "others": [*model.step_guard.variables, *schedule.variables] if schedule else [],
        }
        inner_ids = {id(variable) for variable in inner.variables}
        # What a LossScaleOptimizer has besides the inner one.
        self._loss_scale = [variable for variable in model.optimizer.variables if id(variable) not in inner_ids]

    def save(self, step: int) -> None:
        """Writes the checkpoint of a step; OSError, of a full disk for example: nothing half-written is left behind."""
        with self._wrap_write_errors(self.folder, step):
            self._write(self.folder, step)
            self.saved_step = step
            self._unusable.pop(step, None)
            # The weights of step 0, which no step has trained, are not listed, and go when there are others.
            if step > 0:
                self._keep_newest(step)

    def _keep_newest(self, step: int) -> None:
        """Removes this run's older checkpoints and what killed processes have left, and lists those that stay."""
        whole, listed = steps_of_files(self.folder), listed_steps(self.folder)
        # Removable are listed checkpoints, and newer ones that are not listed: their process was killed before it wrote
        # the list. Older ones that are not listed stay: earlier versions kept some on purpose.
        listed_or_newer = [earlier for earlier in whole if earlier in listed or earlier > max(listed, default=0)]
        own = [*(earlier for earlier in listed_or_newer if 0 < earlier < step and earlier not in self._unusable), step]
        # A killed process may have left data files without an index.
        without_index = {other for other in steps_of_files(self.folder, "data") if other < step} - {*whole}
        # Before the list is written: a process that is killed in between would leave files that are not listed.
        for earlier in {0, *own[: -self._keep], *without_index}:
            remove_checkpoint(self.folder, earlier)
        # TensorFlow's list, for `tf.train.latest_checkpoint`.
        lines = [f'all_model_checkpoint_paths: "step-{number}"\n' for number in own[-self._keep :]]
        atomic_write(self.folder / "checkpoint", f'model_checkpoint_path: "step-{step}"\n{"".join(lines)}')

    def save_if_best(self, step: int, score: float) -> None:
        """Writes the best checkpoint if no earlier score was as low; NaN never is."""
        if not score < self._lowest_score:
            return
        with self._wrap_write_errors(self._best_folder, step):
            # Double precision: a score must be equal to itself when it is read back.
            self._write(self._best_folder, step, best_score=tf.Variable(score, dtype=tf.float64, name="best_score"))
            self._lowest_score = score
            for other in {*steps_of_files(self._best_folder, "index|data")} - {step}:
                remove_checkpoint(self._best_folder, other)

    def _write(self, folder: pathlib.Path, step: int, **others: tf.Variable) -> None:
        variable = tf.Variable(step, dtype=tf.int64, name="step")
        checkpoint = tf.train.Checkpoint(**self._parts, loss_scale=self._loss_scale, step=variable, **others)
        write_checkpoint(folder, step, checkpoint.write)

    def restore(self, report: Callable[[str], object] = print, is_chief: bool = True) -> int:
        """Restores the newest whole checkpoint and returns its step; 0, and `saved_step` None, where there is none.

        The chief of several processes also removes half-written files of killed processes, and gives `report` a line
        about checkpoints that can't be used. ValueError: all are damaged, or the newest is of another architecture.
        """
        newest = find_newest(self.folder)
        self.saved_step, self._unusable = None, newest.unusable
        if newest.prefix is not None:
            self.saved_step = newest.step
            self._read(newest.prefix)
        if not is_chief:
            return newest.step
        half_written = {step: "half-written" for step in remove_partial(self.folder) if step > newest.step}
        newest = newest._replace(unusable=half_written | newest.unusable)
        best = find_best(self._best_folder)
        remove_partial(self._best_folder)
        self._lowest_score = best.score
        for place, chosen in ((self.folder, newest), (self._best_folder, best)):
            if chosen.unusable:
                report(f"{place}: {chosen.passed_over_line()}.")
        return newest.step

    def _read(self, prefix: str) -> None:
        check_architecture(self._model, prefix)
        names = stored_shapes(prefix)
        if not any(name.startswith("optimizer/") for name in names):
            fix = f"start another run from its weights: --config.train.initialize_from={self.folder.parent}"
            raise ValueError(f"{prefix}: a shared checkpoint, training can't continue from it; {fix}")
        # A run can continue in another precision.
        scale = {"loss_scale": self._loss_scale} if f"loss_scale/0{VALUE}" in names else {}
        with wrap_checkpoint_errors(prefix):
            status = tf.train.Checkpoint(**self._parts, **scale).read(prefix)
            status.assert_existing_objects_matched().expect_partial()

    @contextlib.contextmanager
    def _wrap_write_errors(self, folder: pathlib.Path, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            # TensorFlow's message is "OPERATION AND FILE; CAUSE [Op:NAME]".
            reason = getattr(error, "strerror", None) or re.search(r"(?:.*; )?(.*?)( \[Op:.*)?$", first_line(error))[1]
            before = "anew" if self.saved_step is None else f"from step {self.saved_step}, whose checkpoint is whole"
            fault = f"the checkpoint of step {step} or the list of all could not be written ({reason})"
            raise OSError(f"{folder}: {fault}. The same command starts {before}") from error


def named_weights(layer: keras.layers.Layer, all_weights: bool = True) -> dict[str, keras.Variable]:
    """Every weight of a layer or model once, by the attributes that lead to it: `top_down/scales/0/priors/kernel`.

    Where several lead to it, those that constructors set first count: their order is part of the form of checkpoints.
    What only training uses is left out unless `all_weights`. RuntimeError: no public attribute leads to a weight.
    """
    names: dict[int, tuple[str, keras.Variable]] = {}
    for name, variable in _walk(layer, ()):
        names.setdefault(id(variable), (name, variable))
    if hidden := [variable.path for variable in layer.weights if id(variable) not in names]:
        raise RuntimeError(f"no public attribute leads to the weights {', '.join(hidden)}")
    return {name: weight for name, weight in names.values() if all_weights or not name.startswith(_ONLY_TRAINING)}


def _walk(holder: Any, path: tuple[str, ...]) -> Iterator[tuple[str, keras.Variable]]:
    inside: Iterable[tuple[str, Any]] = ()
    if isinstance(holder, keras.Variable):
        yield "/".join(path), holder
    elif isinstance(holder, keras.layers.Layer):
        inside = ((name, value) for name, value in vars(holder).items() if not name.startswith("_"))
    elif isinstance(holder, list | tuple):
        inside = ((str(index), value) for index, value in enumerate(holder))
    for name, value in inside:
        yield from _walk(value, (*path, name))


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """The values as a tree of dictionaries, cut at the slashes of their names."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return tree


def restore_weights(model: NVAE, prefix: str, averages: bool = True) -> bool:
    """Restores a model's weights; returns whether they are exponential moving averages (EMA), which a run may keep.

    Without `averages` they are the weights themselves. Raises, before it assigns, what `check_architecture` raises.
    """
    weights = check_architecture(model, prefix)
    with wrap_checkpoint_errors(prefix):
        status = tf.train.Checkpoint(model=nested(weights)).read(prefix)
        status.assert_existing_objects_matched().expect_partial()
        if not averages:
            return False
        learned = nested({name: weight for name, weight in weights.items() if weight.trainable})
        status = tf.train.Checkpoint(averages=learned).read(prefix).expect_partial()
        try:  # a file without averages lacks their names
            status.assert_existing_objects_matched()
        except AssertionError:
            return False
    return True


def write_weights(folder: pathlib.Path, step: int, model: NVAE, are_averages: bool, all_weights: bool = False) -> str:
    """Writes a model's weights as the checkpoint of a step, without the optimizer; returns its prefix.

    What only training uses is left out unless `all_weights`. `restore_weights` then returns `are_averages`.
    """
    weights = named_weights(model, all_weights)
    checkpoint = tf.train.Checkpoint(model=nested(weights), step=tf.Variable(step, dtype=tf.int64))
    if are_averages:
        # `restore_weights` knows averages by the names `averages/...`: second names of the variables, stored once.
        checkpoint.averages = nested({name: weight for name, weight in weights.items() if weight.trainable})
    write_checkpoint(folder, step, checkpoint.write)
    return f"{folder}/step-{step}"


def check_architecture(model: NVAE, prefix: str) -> dict[str, keras.Variable]:
    """The model's weights by the names of a checkpoint; ValueError if it is damaged or of other names or shapes."""
    stored = {
        name.removeprefix("model/").removesuffix(VALUE): list(shape)
        for name, shape in sorted(stored_shapes(prefix).items())
        if name.startswith("model/") and name.endswith(VALUE)
    }
    weights = named_weights(model, any(name.startswith(_ONLY_TRAINING) for name in stored))
    expected = {name: list(weight.shape) for name, weight in weights.items()}
    differing = [name for name in expected | stored if stored.get(name) != expected.get(name)]
    # Names that one side lacks say most about the architecture, the vectors that belong to every kernel say least.
    differing.sort(key=lambda name: (name.startswith("spectral_"), name in stored and name in expected))
    if differing:
        shapes = [(name, stored.get(name, "missing"), expected.get(name, "missing")) for name in differing[:5]]
        first = "; ".join(f"{name}: {one} in the checkpoint, {other} in the model" for name, one, other in shapes)
        fault = f"a checkpoint of another architecture than the settings; {len(differing)} weights differ: {first}"
        raise ValueError(f"{prefix}: {fault}. Use the checkpoint's own config.json")
    return weights
