"""The state of a training run in TensorFlow checkpoints: weights, optimizer, step and running means."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

import keras
import tensorflow as tf

from nvae_tf.checkpoints.weight_names import named_weights, nested
from nvae_tf.models import NVAE

_MODEL = "model/"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_NAMED_DIFFERENCES = 5


class TrainingState:
    """All that a run needs to go on as if it had never stopped.

    The optimizer must be built. Random numbers need no place here: they are functions of (seed, step).

    Args:
      folder: where the checkpoints lie; made when the first is written.
      model: the model; its running means (`metrics`) are kept too.
      optimizer: the model's optimizer, built.
      keep: how many checkpoints to keep, the latest ones.
    """

    def __init__(self, folder: pathlib.Path, model: NVAE, optimizer: keras.optimizers.Optimizer, keep: int):
        self._folder = folder
        self._model = model
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self._checkpoint = tf.train.Checkpoint(
            model=nested(named_weights(model)),
            optimizer=list(optimizer.variables),
            metrics={metric.name: list(metric.variables) for metric in model.metrics},
            step=self._step,
        )
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, str(folder), max_to_keep=keep, checkpoint_name="step"
        )

    def save(self, step: int) -> None:
        """Writes the checkpoint of a step; TensorFlow names it as the latest only when it is whole."""
        self._step.assign(step)
        self._manager.save(checkpoint_number=step)

    def restore(self) -> int:
        """Takes over the latest checkpoint and returns its step; 0 where there is none.

        Raises:
          ValueError: the checkpoint is damaged or of another architecture.
        """
        checkpoint = latest_checkpoint(self._folder)
        if checkpoint is None:
            return 0
        check_architecture(self._model, checkpoint)
        with _damage_told(checkpoint):
            _read_through(checkpoint, prefix="")
            self._checkpoint.read(checkpoint).assert_existing_objects_matched().expect_partial()
        return int(self._step.numpy())


def latest_checkpoint(folder: pathlib.Path) -> str | None:
    """The prefix of the latest checkpoint of a folder, or None.

    The list that TensorFlow keeps counts, because it has whole checkpoints only; without a readable list it
    is the checkpoint of the largest step. A checkpoint whose files were deleted is passed over.
    """
    if not folder.is_dir():
        return None
    state = tf.train.get_checkpoint_state(str(folder))
    listed = list(state.all_model_checkpoint_paths) if state else []
    present = [prefix for prefix in listed if pathlib.Path(f"{prefix}.index").is_file()]
    if not present:
        found = (re.fullmatch(r"step-(\d+)\.index", entry.name) for entry in folder.iterdir())
        steps = sorted(int(match[1]) for match in found if match)
        present = [str(folder / f"step-{step}") for step in steps]
    return present[-1] if present else None


def step_of(checkpoint: str) -> int:
    """The step in the prefix of a checkpoint's files."""
    return int(checkpoint.rpartition("-")[2])


def restore_weights(model: NVAE, checkpoint: str) -> None:
    """Fills a model from a checkpoint of its architecture; nothing is assigned if it is of another.

    Raises:
      ValueError: the checkpoint is damaged or of another architecture.
    """
    check_architecture(model, checkpoint)
    with _damage_told(checkpoint):
        _read_through(checkpoint, prefix=_MODEL)
        status = tf.train.Checkpoint(model=nested(named_weights(model))).read(checkpoint)
        status.assert_existing_objects_matched().expect_partial()


def check_architecture(model: NVAE, checkpoint: str) -> None:
    """Compares the names and shapes of a model's weights with those in a checkpoint.

    Raises:
      ValueError: they differ, and the message names the first differences; or the checkpoint is damaged.
    """
    with _damage_told(checkpoint):
        stored = _stored_shapes(checkpoint)
    expected = {name: tuple(weight.shape) for name, weight in named_weights(model).items()}
    differing = [name for name in expected | stored if stored.get(name) != expected.get(name)]
    # What one side lacks says most about the architecture, the vectors that are kept for every kernel say
    # least.
    differing.sort(key=lambda name: (name.startswith("spectral_"), name in stored and name in expected))
    differences = [
        f"{name}: {_shape(stored.get(name))} in the checkpoint, {_shape(expected.get(name))} in the model"
        for name in differing
    ]
    if differences:
        more = len(differences) - _NAMED_DIFFERENCES
        raise ValueError(
            f"{checkpoint}: a checkpoint of another architecture than the settings; {len(differences)} weights differ: "
            + "; ".join(differences[:_NAMED_DIFFERENCES])
            + (f"; and {more} more" if more > 0 else "")
            + ". Use the config.json that was written with the checkpoint"
        )


def _read_through(checkpoint: str, prefix: str) -> None:
    """Reads all values once, which checks their sums: before any is assigned, and without TensorFlow's complaint about
    each variable that a restoration which failed half-way has left.
    """
    reader = tf.train.load_checkpoint(checkpoint)
    for name in reader.get_variable_to_shape_map():
        if name.startswith(prefix):
            reader.get_tensor(name)


def _stored_shapes(checkpoint: str) -> dict[str, tuple[int, ...]]:
    shapes = tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
    return {
        name.removeprefix(_MODEL).removesuffix(_VALUE): tuple(shape)
        for name, shape in sorted(shapes.items())
        if name.startswith(_MODEL) and name.endswith(_VALUE)
    }


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


@contextlib.contextmanager
def _damage_told(checkpoint: str) -> Iterator[None]:
    """Tells that a file is damaged. TensorFlow does so by exceptions of many kinds, IndexError among them."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{checkpoint}: the checkpoint is damaged ({reason}). Restore its files from a copy, or delete "
            f"{checkpoint}.* to go on from the one before"
        ) from error
