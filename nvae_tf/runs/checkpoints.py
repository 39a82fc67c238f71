"""The checkpoints of a run: what they hold, and how a training or a model is restored from them.

How their files are named, written and chosen is in `checkpoint_files`.
"""

import contextlib
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.errors import first_line
from nvae_tf.latent_plan import fewest_weights
from nvae_tf.models import NVAE
from nvae_tf.optimization import average_of_weights, inner_optimizer
from nvae_tf.optimization.adamax import start_averages
from nvae_tf.runs.checkpoint_files import (
    VALUE,
    ChosenCheckpoint,
    find_best,
    folder_of_best,
    newest_whole,
    prefix_of,
    read_list,
    remove_all_but,
    remove_checkpoint,
    remove_partial,
    steps_of_files,
    stored_shapes,
    wrap_checkpoint_errors,
    write_checkpoint,
    write_list,
)

_LOSS_SCALE = f"loss_scale/0{VALUE}"
# Weights that only training uses, the vectors of power iterations; a shared checkpoint has none of them.
_ONLY_TRAINING = "spectral_regularizer/"
_NAMED_DIFFERENCES = 5


class CheckpointNotWritten(OSError):
    """A checkpoint, or the list of them, could not be written; nothing half-written was left behind."""


class TrainingState:
    """All that a run needs to continue as if it had never stopped; call `restore` first where there are checkpoints.

    The newest `keep` checkpoints of the folder stay, and the best one. The optimizer is built; `others` are variables
    besides those of model and optimizer that decide how the run continues.

    Attributes:
      folder: the folder of the checkpoints.
      whole_step: the step of the newest whole checkpoint; None without one.
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
        self._lowest_score = float("inf")
        start_averages(model)
        weights, averages, inner = named_weights(model), average_of_weights(model), inner_optimizer(optimizer)
        averages = {name: averages[id(weight)] for name, weight in weights.items() if id(weight) in averages}
        parts = {
            "model": nested(weights),  # all weights and running statistics
            "averages": nested(averages),  # exponential moving averages (EMA) of the weights, if the run keeps them
            "optimizer": list(inner.variables),
            "metrics": {metric.name: list(metric.variables) for metric in model.metrics},
            "others": list(others),
            "step": self._step,
        }
        # A run can continue in another precision, which may have no loss scale.
        self._without_scale = tf.train.Checkpoint(**parts)
        inner_ids = {id(variable) for variable in inner.variables}
        parts["loss_scale"] = [variable for variable in optimizer.variables if id(variable) not in inner_ids]
        self._checkpoint = tf.train.Checkpoint(**parts)
        self._best_checkpoint = tf.train.Checkpoint(**parts, best_score=self._score)
        self._keep, self._kept = keep, []

    def save(self, step: int) -> None:
        """Writes the checkpoint of a step; raises CheckpointNotWritten, of a full disk for example."""
        with self._raising_not_written(self.folder, step):
            write_checkpoint(self.folder, step, self._checkpoint.write)
            self.whole_step = step
            # The weights of step 0, which no step has trained, are not listed, and go when there are others.
            if step > 0:
                steps = [*(earlier for earlier in self._kept if earlier != step), step]
                self._kept = steps[-self._keep :]
                write_list(self.folder, self._kept)
                for earlier in {0, *steps} - {*self._kept}:
                    remove_checkpoint(self.folder, earlier)

    def save_if_best(self, step: int, score: float) -> None:
        """Writes the best checkpoint if no earlier score was as low; NaN never is."""
        if not score < self._lowest_score:
            return
        with self._raising_not_written(self._best_folder, step):
            self._score.assign(score)
            write_checkpoint(self._best_folder, step, self._best_checkpoint.write)
            self._lowest_score = score
            remove_all_but(self._best_folder, {step})

    def restore(self, report: Callable[[str], object] = print, tidies: bool = True) -> int:
        """Restores the newest whole checkpoint and returns its step; 0, and `whole_step` None, where there is none.

        Of several processes one `tidies`: it removes what killed ones have left, and `report` takes a line about
        checkpoints that can't be used. ValueError: all are damaged, or the newest is of another architecture.
        """
        newest = newest_whole(self.folder)
        self.whole_step = None if newest.prefix is None else newest.step
        if newest.prefix is not None:
            self._read(newest.prefix)
        present, listed = steps_of_files(self.folder, "index"), read_list(self.folder)
        usable = [step for step in present if step > 0 and step not in newest.unusable]
        if listed:
            # Earlier versions took steps off the list to keep them for good.
            self._kept = [step for step in usable if step in listed or step > max(listed)]
        else:
            self._kept = usable[-self._keep :]
        if tidies:
            self._tidy(newest, report)
        return newest.step

    def _read(self, prefix: str) -> None:
        check_architecture(self._model, prefix)
        names = stored_shapes(prefix)
        if not any(name.startswith("optimizer/") for name in names):
            raise ValueError(
                f"{prefix}: a shared checkpoint, without the optimizer's state; training can't continue from it. "
                f"Start a new run from its weights: --config.train.initialize_from={self.folder.parent} and another "
                "--workdir"
            )
        checkpoint = self._checkpoint if _LOSS_SCALE in names else self._without_scale
        with wrap_checkpoint_errors(prefix):
            checkpoint.read(prefix).assert_existing_objects_matched().expect_partial()

    def _tidy(self, newest: ChosenCheckpoint, report: Callable[[str], object]) -> None:
        """Removes what killed processes have left; reports the checkpoints that can't be used."""
        half_written = {step: "half-written" for step in remove_partial(self.folder) if step > newest.step}
        if unusable := half_written | newest.unusable:
            report(f"{self.folder}: {newest._replace(unusable=unusable).passed_over_line()}.")
        for step in {*steps_of_files(self.folder, "data")} - {*steps_of_files(self.folder, "index")}:
            if step < newest.step:
                # Its deletion was cut short.
                remove_checkpoint(self.folder, step)
        remove_partial(self._best_folder)
        best = find_best(self._best_folder)
        self._lowest_score = best.score
        if best.prefix is not None:
            remove_all_but(self._best_folder, {best.step, *best.unusable})
        elif best.unusable:
            words = f"{self._best_folder}: {best.unusable_words()} can't be used"
            report(f"{words}; the next step that is evaluated counts as best.")

    @contextlib.contextmanager
    def _raising_not_written(self, folder: pathlib.Path, step: int) -> Iterator[None]:
        self._step.assign(step)
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            with contextlib.suppress(OSError):
                remove_partial(folder)
            what = "list of checkpoints" if folder == self.folder and self.whole_step == step else "checkpoint"
            before = f"That of step {self.whole_step} is whole, the same command continues from there"
            if self.whole_step is None:
                before = "There is none before, the same command starts anew"
            # TensorFlow names operations and temporary files before the cause.
            cause = re.search(r"(?:.*; )?(.*?)( \[Op:.*)?$", first_line(error))[1]
            raise CheckpointNotWritten(
                f"{folder}: the {what} of step {step} could not be written "
                f"({getattr(error, 'strerror', None) or cause}). {before}"
            ) from error


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


def restore_weights(model: NVAE, prefix: str, averages: bool = True) -> bool:
    """Restores a model's weights; returns whether they are exponential moving averages (EMA), which a run may keep.

    Without `averages` they are the weights themselves. ValueError, before anything is assigned: the checkpoint is
    damaged or of another architecture.
    """
    weights = check_architecture(model, prefix)
    with wrap_checkpoint_errors(prefix):
        status = tf.train.Checkpoint(model=nested(weights)).read(prefix)
        status.assert_existing_objects_matched().expect_partial()
        if not averages:
            return False
        learned = nested({name: weight for name, weight in weights.items() if weight.trainable})
        status = tf.train.Checkpoint(averages=learned).read(prefix).expect_partial()
        # The averages are the optimizer's variables too, so a file may have them by that name alone.
        try:
            status.assert_existing_objects_matched()
        except AssertionError:
            return False
    return True


def write_weights(folder: pathlib.Path, step: int, model: NVAE, are_averages: bool) -> str:
    """Writes a model's weights as the checkpoint of a step, without all that only training uses; returns its prefix.

    Where they `are_averages` (EMA) of a run, `restore_weights` says so of this checkpoint too.
    """
    weights = {name: weight for name, weight in named_weights(model).items() if not name.startswith(_ONLY_TRAINING)}
    checkpoint = tf.train.Checkpoint(model=nested(weights), step=tf.Variable(step, dtype=tf.int64))
    if are_averages:
        # The same variables once more; a file has a variable by the first of its names.
        checkpoint.averages = nested({name: weight for name, weight in weights.items() if weight.trainable})
    write_checkpoint(folder, step, checkpoint.write)
    return prefix_of(folder, step)


def check_size(config: ModelConfig, prefix: str) -> None:
    """ValueError where settings ask for more weights than a checkpoint has: such a model is never built."""
    stored = sum(math.prod(shape) for name, shape in stored_shapes(prefix).items() if name.startswith("model/"))
    asked = fewest_weights(config)
    if asked > stored:
        raise ValueError(
            f"{prefix}: a checkpoint of another architecture than the settings: it has {stored:,} numbers, and they "
            f"ask for at least {asked:,}"
        )


def check_architecture(model: NVAE, prefix: str) -> dict[str, keras.Variable]:
    """ValueError if a model's weights differ from those in a checkpoint in names or shapes, or it is damaged.

    Returns the weights by name, without those that only training uses where the checkpoint has none of them.
    """
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
    if not differing:
        return weights
    # Names that one side lacks say most about the architecture, the vectors that belong to every kernel say least.
    differing.sort(key=lambda name: (name.startswith("spectral_"), name in stored and name in expected))
    differences = [
        f"{name}: {stored.get(name, 'missing')} in the checkpoint, {expected.get(name, 'missing')} in the model"
        for name in differing[:_NAMED_DIFFERENCES]
    ]
    if more := len(differing[_NAMED_DIFFERENCES:]):
        differences.append(f"and {more} more")
    raise ValueError(
        f"{prefix}: a checkpoint of another architecture than the settings; {len(differing)} weights differ: "
        f"{'; '.join(differences)}. Use the config.json that was written with the checkpoint"
    )
