"""The state of a training run in TensorFlow checkpoints: weights, optimizer, step and running means."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from nvae_tf.errors import first_line
from nvae_tf.models import NVAE
from nvae_tf.optimization.adamax import start_averages
from nvae_tf.published.names import named_weights, nested
from nvae_tf.training.best_checkpoint import BestCheckpoint, find_best
from nvae_tf.training.checkpoint_files import remove_partial, write_checkpoint
from nvae_tf.training.kept_checkpoints import KeptCheckpoints
from nvae_tf.training.newest_checkpoint import FoundCheckpoint, newest_whole
from nvae_tf.training.training_parts import VALUE, loss_scale, training_parts

_MODEL = "model/"
_SCALE = f"loss_scale/0{VALUE}"
_NAMED_DIFFERENCES = 5


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; nothing of it was left behind."""


class TrainingState:
    """All that a run needs to go on as if it had never stopped.

    The optimizer must be built. Random numbers need no place here: they are functions of (seed, step).

    Args:
      folder: where the checkpoints lie; made when the first is written.
      model: the model; its running means (`metrics`) are kept too.
      optimizer: the model's optimizer, built.
      keep: how many checkpoints to keep, the latest ones.
      keep_every_hours: of the others one is kept for good when this time has passed since the one before; 0: none.
      others: what else decides how the run goes on.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        model: NVAE,
        optimizer: keras.optimizers.Optimizer,
        keep: int,
        keep_every_hours: float = 0.0,
        others: Sequence[tf.Variable] = (),
    ):
        self._folder = folder
        self._model = model
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        start_averages(model)
        parts = training_parts(model, optimizer, others) | {"step": self._step}
        # Apart, so that a run can go on in another precision, which may have no such scale.
        scale = {"loss_scale": loss_scale(optimizer)}
        self._without_scale = tf.train.Checkpoint(**parts)
        self._checkpoint = tf.train.Checkpoint(**parts, **scale)
        self._best = BestCheckpoint(folder, parts | scale)
        self._kept = KeptCheckpoints(folder, keep, keep_every_hours)
        self._whole_step: int | None = None

    @property
    def folder(self) -> pathlib.Path:
        """Where the checkpoints lie."""
        return self._folder

    @property
    def whole_step(self) -> int | None:
        """The step of the newest checkpoint that this has written or taken over; None where there is none."""
        return self._whole_step

    def save(self, step: int) -> None:
        """Writes the checkpoint of a step, which comes into its place only when it is whole.

        Raises:
          CheckpointNotWritten: the disk is full, or the folder can't be written to.
        """
        with self._failure_told(self._folder, step):
            self._step.assign(step)
            write_checkpoint(self._folder, step, self._checkpoint.write)
            self._whole_step = step
            self._kept.add(step)

    def save_if_best(self, step: int, score: float) -> None:
        """Writes the checkpoint of a step into the folder of the best if no step before had as low a score.

        It is a whole checkpoint, one that a run can go on from.

        Raises:
          CheckpointNotWritten: the disk is full, or the folder can't be written to; the best one before is kept.
        """
        if not self._best.is_beaten_by(score):
            return
        with self._failure_told(self._best.folder, step):
            self._step.assign(step)
            self._best.write(step, score)

    @contextlib.contextmanager
    def _failure_told(self, folder: pathlib.Path, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            before = "There is none before, the same command starts anew"
            if self._whole_step is not None:
                before = f"That of step {self._whole_step} is whole, the same command goes on from there"
            raise CheckpointNotWritten(
                f"{folder}: the checkpoint of step {step} could not be written ({_cause(error)}). {before}"
            ) from error

    def restore(self, tell: Callable[[str], None] = print, tidies: bool = True) -> int:
        """Takes over the newest whole checkpoint and returns its step; 0 where there is none.

        Args:
          tidies: whether to clear away what killed processes have left, which one of several processes does.
          tell: is given a line about newer checkpoints that were passed over, if there are, and one about the best one
            if it is damaged.

        Raises:
          ValueError: there are checkpoints, and all are damaged; or the newest is of another architecture.
        """
        found = self._newest_whole()
        if found.path is not None:
            check_architecture(self._model, found.path)
            with wrap_read_errors(found.path):
                has_scale = _SCALE in tf.train.load_checkpoint(found.path).get_variable_to_shape_map()
                checkpoint = self._checkpoint if has_scale else self._without_scale
                checkpoint.read(found.path).assert_existing_objects_matched().expect_partial()
        self._whole_step = None if found.path is None else found.step
        if not tidies:
            return found.step
        half_written = {step: "half-written" for step in remove_partial(self._folder) if step > found.step}
        if half_written or found.passed_over:
            found = FoundCheckpoint(found.path, half_written | found.passed_over)
            tell(f"{self._folder}: {found.passed_over_line()}.")
        self._kept.take_over(found.step, found.passed_over)
        if unusable := self._best.take_over():
            tell(f"{unusable}.")
        return found.step

    def _newest_whole(self) -> FoundCheckpoint:
        try:
            return newest_whole(self._folder)
        except ValueError as error:
            best = find_best(self._best.folder).path
            if best is None:
                raise
            raise ValueError(
                f"{error}. Or copy {best}.* into {self._folder}: the best one is whole, and the run goes on from there"
            ) from error


def restore_weights(model: NVAE, checkpoint: str) -> bool:
    """Fills a model from a checkpoint of its architecture; nothing is assigned if it is of another.

    Where running means of the weights were kept (`optimizer.ema_momentum`), they are taken.

    Args:
      model: the model.
      checkpoint: a whole checkpoint, see `newest_whole`.

    Returns:
      Whether they are running means.

    Raises:
      ValueError: the checkpoint is damaged or of another architecture.
    """
    check_architecture(model, checkpoint)
    with wrap_read_errors(checkpoint):
        weights = named_weights(model)
        status = tf.train.Checkpoint(model=nested(weights)).read(checkpoint)
        status.assert_existing_objects_matched().expect_partial()
        learned = nested({name: weight for name, weight in weights.items() if weight.trainable})
        status = tf.train.Checkpoint(averages=learned).read(checkpoint).expect_partial()
        # They are the optimizer's variables too, so a file may have them by that name alone.
        try:
            status.assert_existing_objects_matched()
        except AssertionError:
            return False
    return True


def check_architecture(model: NVAE, checkpoint: str) -> None:
    """Compares the names and shapes of a model's weights with those in a checkpoint.

    Raises:
      ValueError: they differ, and the message names the first differences; or the checkpoint is damaged.
    """
    with wrap_read_errors(checkpoint):
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


def _stored_shapes(checkpoint: str) -> dict[str, tuple[int, ...]]:
    shapes = tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
    return {
        name.removeprefix(_MODEL).removesuffix(VALUE): tuple(shape)
        for name, shape in sorted(shapes.items())
        if name.startswith(_MODEL) and name.endswith(VALUE)
    }


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _cause(error: OSError | tf.errors.OpError) -> str:
    """Why a file could not be written, without TensorFlow's names of operations and temporary files."""
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    told = re.search(r"; ([^;]+?)( \[Op:.*)?$", first_line(error))
    return told[1] if told else first_line(error)


@contextlib.contextmanager
def wrap_read_errors(checkpoint: str) -> Iterator[None]:
    """Around reading a checkpoint: tells that it is damaged, or gone.

    Raises:
      ValueError: for an error of any kind but a lack of memory: TensorFlow tells damage by many, IndexError among them.
    """
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        if not pathlib.Path(f"{checkpoint}.index").exists():
            raise ValueError(
                f"{checkpoint}: the checkpoint was there a moment ago and is gone; a training that runs beside this "
                "has replaced it by a later one. Try again"
            ) from error
        raise ValueError(
            f"{checkpoint}: the checkpoint is damaged ({first_line(error)}). Restore its files from a copy, or delete "
            f"{checkpoint}.* to go on from the one before"
        ) from error
