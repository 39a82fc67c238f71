"""The checkpoints of a run: what they hold, and how a training or a model is restored from them."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.errors import first_line
from nvae_tf.files import atomic_write
from nvae_tf.models import NVAE
from nvae_tf.optimization import LoweredRate, average_of_weights, start_averages
from nvae_tf.optimization.weight_averages import inner_optimizer
from nvae_tf.runs import checkpoint_files as files
from nvae_tf.runs.checkpoint_files import VALUE, stored_shapes, wrap_checkpoint_errors, write_checkpoint

_LOSS_SCALE = f"loss_scale/0{VALUE}"
# Weights that only training uses, the vectors of power iterations; a shared checkpoint has none of them.
_ONLY_TRAINING = "spectral_regularizer/"


class CheckpointNotWritten(OSError):
    """A checkpoint, or the list of them, could not be written; nothing half-written was left behind."""


class TrainingState:
    """All that a run needs to continue as if it had never stopped; call `restore` first where there are checkpoints.

    The newest `keep` checkpoints of the folder stay, and the best one. The model, whose optimizer is built, and the
    schedule are those of `model_for_training`; without a schedule its state and the step guard's are left out.

    Attributes:
      folder: the folder of the checkpoints.
      saved_step: the step of the newest whole checkpoint; None without one.
    """

    def __init__(self, folder: pathlib.Path, model: NVAE, keep: int, schedule: LoweredRate | None = None):
        self.folder, self.saved_step = folder, None
        self._model, self._best_folder, self._keep = model, folder / files.BEST, keep
        self._lowest_score = float("inf")
        self._unusable: dict[int, str] = {}  # steps whose files are damaged, and why
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        # Double precision: a score must be equal to itself when it is read back.
        self._score = tf.Variable(float("inf"), dtype=tf.float64, trainable=False, name="best_score")
        start_averages(model)
        weights, by_id, inner = named_weights(model), average_of_weights(model), inner_optimizer(model.optimizer)
        averages = {name: by_id[id(weight)] for name, weight in weights.items() if id(weight) in by_id}
        parts = {
            "model": nested(weights),  # all weights and running statistics
            "averages": nested(averages),  # exponential moving averages (EMA) of the weights, if the run keeps them
            "optimizer": list(inner.variables),
            "metrics": {metric.name: list(metric.variables) for metric in model.metrics},
            "others": [*model.step_guard.variables, *schedule.variables] if schedule else [],
            "step": self._step,
        }
        inner_ids = {id(variable) for variable in inner.variables}
        # What a LossScaleOptimizer has besides the inner one.
        scale = [variable for variable in model.optimizer.variables if id(variable) not in inner_ids]
        # With and without the loss scale: a run can continue in another precision.
        self._without_scale = tf.train.Checkpoint(**parts)
        self._checkpoint = tf.train.Checkpoint(**parts, loss_scale=scale)
        self._best_checkpoint = tf.train.Checkpoint(**parts, loss_scale=scale, best_score=self._score)

    def save(self, step: int) -> None:
        """Writes the checkpoint of a step; raises CheckpointNotWritten, of a full disk for example."""
        with self._wrap_write_errors(self.folder, step):
            self._step.assign(step)
            write_checkpoint(self.folder, step, self._checkpoint.write)
            self.saved_step = step
            self._unusable.pop(step, None)
            # The weights of step 0, which no step has trained, are not listed, and go when there are others.
            if step > 0:
                self._keep_newest(step)

    def _keep_newest(self, step: int) -> None:
        """Removes this run's older checkpoints and what killed processes have left, and lists those that stay."""
        whole, listed = files.steps_of_files(self.folder), files.read_list(self.folder)
        earlier_steps = [earlier for earlier in whole if 0 < earlier < step and earlier not in self._unusable]
        if listed:
            # Those that earlier versions kept for good are not in TensorFlow's list. One that is newer than the list
            # was written just before a process was killed.
            earlier_steps = [earlier for earlier in earlier_steps if earlier in listed or earlier > max(listed)]
        own = [*earlier_steps, step]
        # A killed process may have left data files without an index.
        without_index = {other for other in files.steps_of_any_files(self.folder) - {*whole} if other < step}
        # Before the list is written: a process that is killed in between would leave files that are not listed.
        for earlier in {0, *own[: -self._keep], *without_index}:
            files.remove_checkpoint(self.folder, earlier)
        # TensorFlow's list, for `tf.train.latest_checkpoint`.
        lines = [f'all_model_checkpoint_paths: "step-{number}"\n' for number in own[-self._keep :]]
        atomic_write(self.folder / "checkpoint", f'model_checkpoint_path: "step-{step}"\n{"".join(lines)}')

    def save_if_best(self, step: int, score: float) -> None:
        """Writes the best checkpoint if no earlier score was as low; NaN never is."""
        if not score < self._lowest_score:
            return
        with self._wrap_write_errors(self._best_folder, step):
            self._step.assign(step)
            self._score.assign(score)
            write_checkpoint(self._best_folder, step, self._best_checkpoint.write)
            self._lowest_score = score
            for other in files.steps_of_any_files(self._best_folder) - {step}:
                files.remove_checkpoint(self._best_folder, other)

    def restore(self, report: Callable[[str], object] = print, removes_leftovers: bool = True) -> int:
        """Restores the newest whole checkpoint and returns its step; 0, and `saved_step` None, where there is none.

        Of several processes one `removes_leftovers` of killed ones, and its `report` takes a line about checkpoints
        that can't be used. ValueError: all are damaged, or the newest is of another architecture.
        """
        newest = files.newest_whole(self.folder)
        self.saved_step, self._unusable = None, newest.unusable
        if newest.prefix is not None:
            self.saved_step = newest.step
            self._read(newest.prefix)
        if not removes_leftovers:
            return newest.step
        half_written = {step: "half-written" for step in files.remove_partial(self.folder) if step > newest.step}
        newest = newest._replace(unusable=half_written | newest.unusable)
        best = files.find_best(self._best_folder)
        files.remove_partial(self._best_folder)
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
        checkpoint = self._checkpoint if _LOSS_SCALE in names else self._without_scale
        with wrap_checkpoint_errors(prefix):
            checkpoint.read(prefix).assert_existing_objects_matched().expect_partial()

    @contextlib.contextmanager
    def _wrap_write_errors(self, folder: pathlib.Path, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            with contextlib.suppress(OSError):
                files.remove_partial(folder)
            # TensorFlow's message is "OPERATION AND FILE; CAUSE [Op:NAME]".
            reason = getattr(error, "strerror", None) or re.search(r"(?:.*; )?(.*?)( \[Op:.*)?$", first_line(error))[1]
            before = "anew" if self.saved_step is None else f"from step {self.saved_step}, whose checkpoint is whole"
            raise CheckpointNotWritten(
                f"{folder}: the checkpoint of step {step} or the list of all could not be written ({reason}). "
                f"The same command starts {before}"
            ) from error


def named_weights(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Every weight of a layer or model once, by the attributes that lead to it: `top_down/scales/0/priors/kernel`.

    RuntimeError where no public attribute leads to a weight.
    """
    names: dict[int, tuple[str, keras.Variable]] = {}
    for name, variable in _walk(layer, ()):
        names.setdefault(id(variable), (name, variable))
    if hidden := [variable.path for variable in layer.weights if id(variable) not in names]:
        raise RuntimeError(f"no public attribute leads to the weights {', '.join(hidden)}")
    return dict(names.values())


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

    Without `averages` they are the weights themselves. Raises what `check_architecture` raises, before anything is
    assigned.
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

    What only training uses is left out unless `all_weights`. `restore_weights` of this checkpoint then returns
    `are_averages`.
    """
    weights = named_weights(model)
    if not all_weights:
        weights = {name: weight for name, weight in weights.items() if not name.startswith(_ONLY_TRAINING)}
    checkpoint = tf.train.Checkpoint(model=nested(weights), step=tf.Variable(step, dtype=tf.int64))
    if are_averages:
        # For `restore_weights`, a mark: the same variables once more. TensorFlow stores each under its first name.
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
    weights = named_weights(model)
    if not any(name.startswith(_ONLY_TRAINING) for name in stored):
        weights = {name: weight for name, weight in weights.items() if not name.startswith(_ONLY_TRAINING)}
    expected = {name: list(weight.shape) for name, weight in weights.items()}
    differing = [name for name in expected | stored if stored.get(name) != expected.get(name)]
    # Names that one side lacks say most about the architecture, the vectors that belong to every kernel say least.
    differing.sort(key=lambda name: (name.startswith("spectral_"), name in stored and name in expected))
    if differing:
        first = "; ".join(
            f"{name}: {stored.get(name, 'missing')} in the checkpoint, {expected.get(name, 'missing')} in the model"
            for name in differing[:5]
        )
        fault = f"a checkpoint of another architecture than the settings; {len(differing)} weights differ: {first}"
        raise ValueError(f"{prefix}: {fault}. Use the checkpoint's own config.json")
    return weights
