"""The checkpoints of a run: what they hold, how they are written and found, and which of them are kept.

A checkpoint is TensorFlow's files `step-N.index` and `step-N.data-*`. The index is moved into place last: without it
there is no checkpoint, so a killed process leaves none that is half-written. `checkpoint` is TensorFlow's list of them,
and the folder `best` holds the checkpoint with the best test score.
"""

import contextlib
import hashlib
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig, check
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_write
from nvae_tf.latent_plan import fewest_weights
from nvae_tf.models import NVAE
from nvae_tf.optimization import average_of_weights, inner_optimizer
from nvae_tf.optimization.adamax import start_averages

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_STEP, _SCORE, _LOSS_SCALE = f"step{VALUE}", f"best_score{VALUE}", f"loss_scale/0{VALUE}"
# A checkpoint with NaN or infinity in one of these can't be continued.
_FINITE = ("model/", "averages/", "optimizer/")
# Weights that only training uses, the vectors of power iterations; a shared checkpoint has none of them.
_OF_TRAINING = "spectral_regularizer/"
_NAMED_DIFFERENCES = 5


class CheckpointNotWritten(OSError):
    """A checkpoint, or the list of them, could not be written; nothing half-written was left behind."""


class TrainingState:
    """All that a run needs to continue as if it had never stopped; call `restore` first where there are checkpoints.

    The newest `keep` checkpoints of the folder stay, and the best one. `others` are variables besides the model's that
    decide how the run continues.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        model: NVAE,
        optimizer: keras.optimizers.Optimizer,
        keep: int,
        others: Sequence[tf.Variable] = (),
    ):
        self.folder, self.whole_step = folder, None
        self._model, self._best_folder = model, folder_of_best(folder)
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        # Double precision: a score must be equal to itself when it is read back.
        self._score = tf.Variable(float("inf"), dtype=tf.float64, trainable=False, name="best_score")
        self._lowest = float("inf")
        start_averages(model)
        variables = training_parts(model, optimizer, others) | {"step": self._step}
        # A run can continue in another precision, which may have no loss scale.
        self._without_scale = tf.train.Checkpoint(**variables)
        variables["loss_scale"] = loss_scale(optimizer)
        self._checkpoint = tf.train.Checkpoint(**variables)
        self._best_checkpoint = tf.train.Checkpoint(**variables, best_score=self._score)
        self._keep, self._listed = keep, []

    def save(self, step: int) -> None:
        """Writes the checkpoint of a step; raises CheckpointNotWritten, of a full disk for example."""
        with self._raising_not_written(self.folder, step):
            write_checkpoint(self.folder, step, self._checkpoint.write)
            self.whole_step = step
            # The weights of step 0, which no step has trained, are not listed, and go when there are others.
            if step > 0:
                steps = [*(earlier for earlier in self._listed if earlier != step), step]
                self._listed = steps[-self._keep :]
                write_list(self.folder, self._listed)
                for earlier in {0, *steps} - {*self._listed}:
                    _remove_checkpoint(self.folder, earlier)

    def save_if_best(self, step: int, score: float) -> None:
        """Does the same in the folder of the best if no earlier score was as low; NaN never is."""
        if not score < self._lowest:
            return
        with self._raising_not_written(self._best_folder, step):
            self._score.assign(score)
            write_checkpoint(self._best_folder, step, self._best_checkpoint.write)
            self._lowest = score
            _remove_all_but(self._best_folder, {step})

    def restore(self, report: Callable[[str], object] = print, tidies: bool = True) -> int:
        """Restores the newest whole checkpoint and returns its step; 0, and `whole_step` None, where there is none.

        Of several processes one `tidies`: it removes what killed ones have left, and `report` takes a line about
        checkpoints that can't be used. ValueError: all are damaged, or the newest is of another architecture.
        """
        found = newest_whole(self.folder)
        if found.path is not None:
            check_architecture(self._model, found.path)
            with wrap_checkpoint_errors(found.path):
                names = tf.train.load_checkpoint(found.path).get_variable_to_shape_map()
            check(
                any(name.startswith("optimizer/") for name in names),
                f"{found.path}: a shared checkpoint, without the optimizer's state; training can't continue from it. "
                f"Start a new run from its weights: --config.train.initialise_from={self.folder.parent} and another "
                "--workdir",
            )
            with wrap_checkpoint_errors(found.path):
                checkpoint = self._checkpoint if _LOSS_SCALE in names else self._without_scale
                checkpoint.read(found.path).assert_existing_objects_matched().expect_partial()
        self.whole_step = None if found.path is None else found.step
        present, listed = steps_of_files(self.folder, "index"), read_list(self.folder)
        usable = [step for step in present if step > 0 and step not in found.unusable]
        # Older ones that are not in the list were kept for good by an earlier version, and stay.
        from_list = [step for step in usable if step in listed or step > max(listed)] if listed else None
        self._listed = usable[-self._keep :] if from_list is None else from_list
        if tidies:
            half_written = {step: "half-written" for step in _remove_partial(self.folder) if step > found.step}
            if unusable := half_written | found.unusable:
                report(f"{self.folder}: {found._replace(unusable=unusable).passed_over_line()}.")
            for step in {*steps_of_files(self.folder, "data")} - {*present}:
                if step < found.step:
                    # The deletion was cut short.
                    _remove_checkpoint(self.folder, step)
            _remove_partial(self._best_folder)
            best = find_best(self._best_folder)
            self._lowest = best.score
            if best.path is not None:
                _remove_all_but(self._best_folder, {best.step, *best.unusable})
            elif best.unusable:
                words = f"{self._best_folder}: {best.unusable_words()} can't be used"
                report(f"{words}; the next step that is evaluated counts as best.")
        return found.step

    @contextlib.contextmanager
    def _raising_not_written(self, folder: pathlib.Path, step: int) -> Iterator[None]:
        self._step.assign(step)
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            with contextlib.suppress(OSError):
                _remove_partial(folder)
            what = "list of checkpoints" if folder == self.folder and self.whole_step == step else "checkpoint"
            before = f"That of step {self.whole_step} is whole, the same command continues from there"
            if self.whole_step is None:
                before = "There is none before, the same command starts anew"
            # Before the cause TensorFlow names operations and temporary files.
            cause = re.search(r"(?:.*; )?(.*?)( \[Op:.*)?$", first_line(error))[1]
            raise CheckpointNotWritten(
                f"{folder}: the {what} of step {step} could not be written "
                f"({getattr(error, 'strerror', None) or cause}). {before}"
            ) from error


def training_parts(
    model: NVAE, optimizer: keras.optimizers.Optimizer, others: Sequence[tf.Variable] = ()
) -> dict[str, Any]:
    """What a training checkpoint holds, by name; the optimizer is built."""
    weights, averages = named_weights(model), average_of_weights(model)
    return dict(
        model=nested(weights),
        averages=nested({name: averages[id(weight)] for name, weight in weights.items() if id(weight) in averages}),
        optimizer=list(inner_optimizer(optimizer).variables),
        metrics={metric.name: list(metric.variables) for metric in model.metrics},
        others=list(others),
    )


def loss_scale(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables of an optimizer's loss scaling; none where it does not scale."""
    of_inner = {id(variable) for variable in inner_optimizer(optimizer).variables}
    return [variable for variable in optimizer.variables if id(variable) not in of_inner]


def restore_weights(model: NVAE, checkpoint: str, averages: bool = True) -> bool:
    """Restores a model's weights; returns whether they are exponential moving averages (EMA), which a run may keep.

    Without `averages` they are the weights themselves. ValueError, before anything is assigned: the checkpoint is
    damaged or of another architecture.
    """
    weights = check_architecture(model, checkpoint)
    with wrap_checkpoint_errors(checkpoint):
        status = tf.train.Checkpoint(model=nested(weights)).read(checkpoint)
        status.assert_existing_objects_matched().expect_partial()
        if not averages:
            return False
        learned = nested({name: weight for name, weight in weights.items() if weight.trainable})
        status = tf.train.Checkpoint(averages=learned).read(checkpoint).expect_partial()
        # They are the optimizer's variables too, so a file may have them by that name alone.
        try:
            status.assert_existing_objects_matched()
        except AssertionError:
            return False
    return True


def write_weights(folder: pathlib.Path, step: int, model: NVAE, are_averages: bool) -> str:
    """Writes a model's weights as the checkpoint of a step, without all that only training uses; returns its prefix.

    Where they `are_averages` (EMA) of a run, `restore_weights` says so of this checkpoint too.
    """
    weights = {name: weight for name, weight in named_weights(model).items() if not name.startswith(_OF_TRAINING)}
    checkpoint = tf.train.Checkpoint(model=nested(weights), step=tf.Variable(step, dtype=tf.int64))
    if are_averages:
        # The same variables once more; a file has a variable by the first of its names.
        checkpoint.averages = nested({name: weight for name, weight in weights.items() if weight.trainable})
    write_checkpoint(folder, step, checkpoint.write)
    return _prefix(folder, step)


def check_size(config: ModelConfig, checkpoint: str) -> None:
    """ValueError where settings ask for more weights than a checkpoint has: such a model is never built."""
    with wrap_checkpoint_errors(checkpoint):
        shapes = tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
    stored = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("model/"))
    if (asked := fewest_weights(config)) > stored:
        sizes = f"it has {stored:,} numbers, and they ask for at least {asked:,}"
        raise ValueError(f"{checkpoint}: a checkpoint of another architecture than the settings: {sizes}")


def check_architecture(model: NVAE, checkpoint: str) -> dict[str, keras.Variable]:
    """ValueError if a model's weights differ from those in a checkpoint in names or shapes, or it is damaged.

    Returns the weights by name, without those that only training uses where the checkpoint has none of them.
    """
    with wrap_checkpoint_errors(checkpoint):
        shapes = tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
    found = {
        name.removeprefix("model/").removesuffix(VALUE): list(shape)
        for name, shape in sorted(shapes.items())
        if name.startswith("model/") and name.endswith(VALUE)
    }
    weights = named_weights(model)
    if not any(name.startswith(_OF_TRAINING) for name in found):
        weights = {name: weight for name, weight in weights.items() if not name.startswith(_OF_TRAINING)}
    expected = {name: list(weight.shape) for name, weight in weights.items()}
    differing = [name for name in expected | found if found.get(name) != expected.get(name)]
    # What one side lacks says most about the architecture, the vectors that belong to every kernel say least.
    differing.sort(key=lambda name: (name.startswith("spectral_"), name in found and name in expected))
    differences = [
        f"{name}: {found.get(name, 'missing')} in the checkpoint, {expected.get(name, 'missing')} in the model"
        for name in differing[:_NAMED_DIFFERENCES]
    ]
    if more := len(differing[_NAMED_DIFFERENCES:]):
        differences.append(f"and {more} more")
    check(
        not differing,
        f"{checkpoint}: a checkpoint of another architecture than the settings; {len(differing)} weights differ: "
        f"{'; '.join(differences)}. Use the config.json that was written with the checkpoint",
    )
    return weights


@contextlib.contextmanager
def wrap_checkpoint_errors(checkpoint: str) -> Iterator[None]:
    """Raises a ValueError, the checkpoint is damaged or gone, for TensorFlow's errors of many kinds in its block."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        fault = (
            f"is damaged ({first_line(error)}). Restore its files from a copy, or delete {checkpoint}.* to continue "
            "from the one before"
        )
        if not pathlib.Path(f"{checkpoint}.index").exists():
            replaced = "a training that runs at the same time has replaced it by a later one"
            fault = f"was there a moment ago and is gone; {replaced}. Try again"
        raise ValueError(f"{checkpoint}: the checkpoint {fault}") from error


class FoundCheckpoint(NamedTuple):
    """A checkpoint that can be used, or None, and why others can't."""

    path: str | None  # the prefix of its files
    unusable: dict[int, str]  # step -> reason
    score: float = float("inf")  # that a best checkpoint was saved for

    @property
    def step(self) -> int:
        """The checkpoint's step; 0 where there is none."""
        return 0 if self.path is None else step_of(self.path)

    def unusable_words(self) -> str:
        """Which checkpoints can't be used, and why."""
        return "; ".join(f"step-{step} ({reason})" for step, reason in self.unusable.items())

    def passed_over_line(self) -> str:
        """The same, and which is used instead."""
        used = "there is none before" if self.path is None else f"step-{self.step} is used"
        return f"passed over {self.unusable_words()}; {used}"


def newest_whole(folder: pathlib.Path) -> FoundCheckpoint:
    """Finds the newest checkpoint, listed or not, whose numbers can all be read; ValueError where all are damaged."""
    unusable = {}
    # The list names what was deleted, too.
    for step in sorted(_steps_of_any(folder) | {*read_list(folder)}, reverse=True):
        fault = _fault_of(folder, step)
        if fault is None:
            return FoundCheckpoint(_prefix(folder, step), unusable)
        unusable[step] = fault
    if newest := latest_checkpoint(folder):
        raise ValueError(
            f"{newest}: the checkpoint is damaged ({unusable[step_of(newest)]}), and there is no other that is "
            f"whole. Restore its files from a copy, or delete {folder} to start the run anew{best_instead(folder)}"
        )
    return FoundCheckpoint(None, unusable)


def folder_of_best(checkpoints: pathlib.Path) -> pathlib.Path:
    """The folder of the best checkpoint, for that of all checkpoints."""
    return checkpoints / "best"


def best_instead(checkpoints: pathlib.Path) -> str:
    """What to do where no latest checkpoint can be used, as the end of a message; empty where there is no best one."""
    best = find_best(folder_of_best(checkpoints))
    if best.path is None:
        return ""
    return (
        f". The best one, of step {best.step}, is whole: --checkpoint=best of the commands that use a run, or "
        f'checkpoint="best" in Python. Or copy {best.path}.* into {checkpoints}, and training continues from there'
    )


def find_best(folder: pathlib.Path) -> FoundCheckpoint:
    """Finds the whole checkpoint with the lowest score in a folder of the best; one without a score is the worst."""
    # A killed process may have left the one before.
    unusable, found = {}, []
    for step in sorted(_steps_of_any(folder)):
        if fault := _fault_of(folder, step):
            unusable[step] = fault
            continue
        reader = tf.train.load_checkpoint(_prefix(folder, step))
        try:
            score = float(reader.get_tensor(_SCORE)) if reader.has_tensor(_SCORE) else float("inf")
            found.append(FoundCheckpoint(_prefix(folder, step), unusable, score))
        except (TypeError, ValueError):
            unusable[step] = "its score is not a number"
    return min(found, key=lambda each: each.score, default=FoundCheckpoint(None, unusable))


def _fault_of(folder: pathlib.Path, step: int) -> str | None:
    """Why the checkpoint of a step can't be used; None if it can."""
    if missing := [kind for kind in ("index", "data") if step not in steps_of_files(folder, kind)]:
        return "its files are gone" if len(missing) == 2 else f"its {missing[0]} file is missing"
    try:
        reader = tf.train.load_checkpoint(_prefix(folder, step))
        if reader.has_tensor(_STEP) and (stored := int(reader.get_tensor(_STEP))) != step:
            return f"its files hold the checkpoint of step {stored}"
        for name in reader.get_variable_to_shape_map():
            value = reader.get_tensor(name)
            if name.startswith(_FINITE) and value.dtype.kind == "f" and not np.isfinite(value).all():
                return f"{name.partition('/.ATTRIBUTES')[0]} is not finite"
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        return first_line(error)
    return None


def steps_of_files(folder: pathlib.Path, kind: str) -> list[int]:
    """The steps of which a folder has an `index` or a `data` file, in order."""
    found = (re.fullmatch(rf"step-(\d+)\.{kind}(-.*)?", entry.name) for entry in folder.glob("step-*"))
    return sorted({int(match[1]) for match in found if match})


def _steps_of_any(folder: pathlib.Path) -> set[int]:
    return {*steps_of_files(folder, "index"), *steps_of_files(folder, "data")}


def latest_checkpoint(folder: pathlib.Path) -> str | None:
    """The prefix of the latest checkpoint of a folder, damaged or not, or None."""
    steps = steps_of_files(folder, "index")
    return _prefix(folder, steps[-1]) if steps else None


def step_of(checkpoint: str) -> int:
    """The step in the prefix of a checkpoint's files."""
    return int(checkpoint.rpartition("-")[2])


def _prefix(folder: pathlib.Path, step: int) -> str:
    return str(folder / f"step-{step}")


def checkpoint_sha256(prefix: str) -> str:
    """The SHA-256 of a checkpoint's files; FileNotFoundError where they are gone."""
    digest, place = hashlib.sha256(), pathlib.Path(prefix)
    files = sorted(place.parent.glob(f"{place.name}.*"))
    if not files:
        raise FileNotFoundError(f"{prefix}: the checkpoint is gone; a training that runs now has deleted it")
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def write_checkpoint(folder: pathlib.Path, step: int, write: Callable[[str], object]) -> None:
    """Writes a step's checkpoint, by `write` at a prefix, beside its place and moves it there when it is on the disk.

    Replaces what is there of the step; nothing half-written is left.
    """
    partial = folder / f".step-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(_prefix(partial, step))
        files = sorted(partial.iterdir(), key=lambda file: file.suffix == ".index")
        for file in files:
            # Some file systems report a full disk only now.
            _flush(file)
        _remove_checkpoint(folder, step)
        try:
            for file in files:
                file.replace(folder / file.name)
            _flush(folder)
        except BaseException:
            _remove_checkpoint(folder, step)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_checkpoint(folder: pathlib.Path, step: int) -> None:
    # The index first: without it there is no checkpoint.
    for file in (folder / f"step-{step}.index", *folder.glob(f"step-{step}.data-*")):
        file.unlink(missing_ok=True)


def _remove_all_but(folder: pathlib.Path, kept: set[int]) -> None:
    for step in _steps_of_any(folder) - kept:
        _remove_checkpoint(folder, step)


def _remove_partial(folder: pathlib.Path) -> set[int]:
    """Removes what killed processes have left half-written, and returns the steps of checkpoints among it."""
    steps = set()
    # TensorFlow's list is written beside its place too.
    for entry in [*folder.glob(".*.partial"), *folder.glob("checkpoint.tmp*")]:
        if match := re.fullmatch(r"\.step-(\d+)\.partial", entry.name):
            steps.add(int(match[1]))
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return steps


def read_list(folder: pathlib.Path) -> list[int]:
    """The steps in TensorFlow's list of a folder's checkpoints; empty where the list is missing or unreadable."""
    try:
        state = tf.train.get_checkpoint_state(str(folder))
        return [step_of(prefix) for prefix in state.all_model_checkpoint_paths] if state else []
    except ValueError:
        return []


def write_list(folder: pathlib.Path, steps: Sequence[int]) -> None:
    """Writes TensorFlow's list of a folder's checkpoints, the latest last, for `tf.train.latest_checkpoint`."""
    names = [f"step-{step}" for step in steps]
    state = tf.compat.v1.train.generate_checkpoint_state_proto(str(folder.absolute()), names[-1], names)
    atomic_write(folder / "checkpoint", str(state))


def named_weights(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Every weight of a layer or model once, by the attributes that lead to it: `top_down/scales/0/priors/kernel`.

    Keras' own names are numbered in the order of construction. RuntimeError where no public attribute leads to one.
    """
    names: dict[int, tuple[str, keras.Variable]] = {}
    for name, variable in _walk(layer, ()):
        names.setdefault(id(variable), (name, variable))
    if hidden := [variable.path for variable in layer.weights if id(variable) not in names]:
        raise RuntimeError(f"no public attribute leads to the weights {', '.join(hidden)}")
    return dict(names.values())


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
