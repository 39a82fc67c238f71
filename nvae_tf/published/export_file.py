"""From a run folder to a file of the published form."""

import argparse
import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig, config_to_json
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_file
from nvae_tf.models.for_training import ModelForTraining, model_for_training
from nvae_tf.optimization import average_of_weights, inner_optimizer
from nvae_tf.published.checkpoint_reader import CheckpointReader
from nvae_tf.published.names import COUNTER, PublishedTensor, published_tensors
from nvae_tf.published.optimizer import MOMENTUM, NORM, STEP, published_norm, trained_tensors
from nvae_tf.published.own_state import own_variables
from nvae_tf.published.settings_to_publish import cell_tables, published_settings
from nvae_tf.published.torch_file import OWN_KEY
from nvae_tf.published.weights import published_array
from nvae_tf.reports.run_facts import Origin, origin_of_run
from nvae_tf.serving.progress_bar import ProgressBar
from nvae_tf.training.image_counts import ImageCounts, read_image_counts
from nvae_tf.training.kept_checkpoints import step_of
from nvae_tf.training.loading import find_run
from nvae_tf.training.run_folder import RunFolder
from nvae_tf.training.training_state import check_architecture, wrap_read_errors

_MEGABYTE = 1 << 20


class ExportChoices(NamedTuple):
    """What is exported, and how.

    Attributes:
      workdir: the run folder.
      output: the file that is made.
      checkpoint: "latest" or "best".
      with_optimizer: whether the optimizer's state goes along, and all else that training goes on with.
      running_means: whether the running means of the weights are written in place of the weights; without the
        optimizer's state then, which is that of the weights.
    """

    workdir: pathlib.Path
    output: pathlib.Path
    checkpoint: str = "latest"
    with_optimizer: bool = True
    running_means: bool = False


class Exported(NamedTuple):
    """What has been written.

    Attributes:
      config: the run's settings.
      step: the step of its checkpoint.
      data_set: the published name of the data set that the file says.
      leaves_means: whether the run keeps running means, and the file's weights are not those.
    """

    config: ExperimentConfig
    step: int
    data_set: str
    leaves_means: bool


class _Run(NamedTuple):
    """What a run folder says of its run, and the step of the checkpoint that is exported."""

    config: ExperimentConfig
    images: ImageCounts | None
    origin: Origin | None
    step: int

    @property
    def epoch(self) -> int:
        """How many epochs are finished at the step."""
        if self.images is not None and self.images.a_step is not None:
            return self.step // max(self.images.train // self.images.a_step, 1)
        # Of these together: an epoch may have no whole number of steps.
        return self.step * self.config.train.epochs // self.config.objective.total_steps


def export_file(choices: ExportChoices) -> Exported:
    """Writes the file; it is there when it is whole.

    Raises:
      FileNotFoundError: there is no such run, or it has no checkpoint.
      ImportError: torch is not installed.
      OSError: the file can't be written.
      ValueError: the published form can't say the run's settings; or the checkpoint is damaged, or gone by now; or
        `images.json` or `origin.json` is damaged.
    """
    import torch

    config, prefix = find_run(choices.workdir, choices.checkpoint)
    if choices.running_means and not config.optimizer.ema_momentum:
        raise ValueError(
            f"{choices.workdir}: keeps no running means (optimizer.ema_momentum = 0); leave --running_means out"
        )
    try:
        args = published_settings(config)
    except ValueError as error:
        raise ValueError(f"{choices.workdir}: {error}") from error
    folder = RunFolder(choices.workdir)
    origin = origin_of_run(folder, config.train.initialise_from)
    run = _Run(config, read_image_counts(folder.images_file), origin, step_of(prefix))
    # A model in a graph: names and shapes, but no numbers.
    with tf.Graph().as_default():
        made = model_for_training(config, steps_per_epoch=1, total_steps=config.objective.total_steps)
        made.model.optimizer.build(made.model.trainable_variables)
    check_architecture(made.model, prefix)
    with wrap_read_errors(prefix):
        total = max(sum(file.stat().st_size for file in _files(prefix)) // _MEGABYTE, 1)
    with ProgressBar(total, "MB read") as bar:
        checkpoint = CheckpointReader(prefix, made, lambda done: bar.show(min(done // _MEGABYTE, total)))
        content = _content(run, args, made, checkpoint, choices)
    with _failure_told(choices.output), atomic_file(choices.output) as partial, partial.open("wb") as file:
        torch.save(content, file)
    leaves_means = bool(config.optimizer.ema_momentum) and not choices.running_means
    return Exported(config, run.step, args["dataset"], leaves_means)


@contextlib.contextmanager
def _failure_told(path: pathlib.Path) -> Iterator[None]:
    """Tells that a file could not be written; torch does so by a RuntimeError, with a place in its own source."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        free = shutil.disk_usage(path.absolute().parent).free // _MEGABYTE
        raise OSError(
            f"{path}: could not be written, {free:,} MB were left on its disk ({reason}). Make room there, "
            "or give a name on another disk"
        ) from error


def _content(
    run: _Run, args: Mapping[str, Any], made: ModelForTraining, checkpoint: CheckpointReader, choices: ExportChoices
) -> dict[str, Any]:
    goes_on = choices.with_optimizer and not choices.running_means
    if choices.running_means:
        checkpoint.check_has(average_of_weights(made.model).values(), "leave --running_means out")
    if goes_on:
        checkpoint.check_has(_optimizer_variables(made), "give --without_optimizer")
    own = own_variables(made, with_training=goes_on)
    if choices.running_means:
        own = {name: variable for name, variable in own.items() if not name.startswith("averages/")}
    state = {name: _tensor(checkpoint.read(variable)) for name, variable in own.items() if checkpoint.has(variable)}
    return {
        "epoch": run.epoch,
        "state_dict": _weights(made, checkpoint, run.step, choices.running_means),
        "optimizer": _optimizer(run.config, made, checkpoint) if goes_on else {},
        "global_step": run.step,
        "args": argparse.Namespace(**args),
        "arch_instance": cell_tables(run.config.model.cell_set),
        "scheduler": {},
        "grad_scalar": {},
        OWN_KEY: {
            "config": config_to_json(run.config),
            "images": run.images and run.images.text(),
            "origin": run.origin and run.origin.text(),
            "state": state,
        },
    }


def _weights(made: ModelForTraining, checkpoint: CheckpointReader, step: int, running_means: bool) -> dict[str, Any]:
    import torch

    averages = average_of_weights(made.model) if running_means else {}
    tensors = list(published_tensors(made.model))
    arrays = _by_tensor(tensors, lambda variable: checkpoint.read(averages.get(id(variable), variable)))
    state = {}
    for tensor, array in zip(tensors, arrays, strict=True):
        state[tensor.names[0]] = array
        if tensor.companion:
            # A copy is the same storage: in the file once.
            state[tensor.companion] = torch.tensor(step) if tensor.companion.endswith(COUNTER) else array
    return state


def _optimizer(config: ExperimentConfig, made: ModelForTraining, checkpoint: CheckpointReader) -> dict[str, Any]:
    inner, tensors = inner_optimizer(made.model.optimizer), trained_tensors(made.model)
    step = int(checkpoint.read(inner.iterations))
    momenta = _by_tensor(tensors, lambda variable: checkpoint.read(inner.slots_of(variable).momentum))
    norms = _by_tensor(tensors, lambda variable: published_norm(checkpoint.read(inner.slots_of(variable).norm), inner))
    group = {
        "lr": config.optimizer.learning_rate,
        "betas": (inner.beta_1, inner.beta_2),
        "eps": inner.epsilon,
        "weight_decay": inner.l2,
        "params": list(range(len(tensors))),
    }
    moments = zip(momenta, norms, strict=True)
    state = {number: {STEP: step, MOMENTUM: m, NORM: u} for number, (m, u) in enumerate(moments)}
    return {"state": state, "param_groups": [group]}


def _optimizer_variables(made: ModelForTraining) -> list[Any]:
    inner = inner_optimizer(made.model.optimizer)
    slots = map(inner.slots_of, made.model.trainable_variables)
    return [inner.iterations, *(variable for pair in slots for variable in pair)]


def _by_tensor(tensors: Iterable[PublishedTensor], read: Callable[[Any], np.ndarray]) -> list[Any]:
    """Every tensor in the published layout, in order; each variable is read once."""
    numbered = list(enumerate(tensors))
    of_variable: dict[int, list[tuple[int, PublishedTensor]]] = {}
    for number, tensor in numbered:
        of_variable.setdefault(id(tensor.variable), []).append((number, tensor))
    found: list[Any] = [None] * len(numbered)
    for group in of_variable.values():
        value = read(group[0][1].variable)
        for number, tensor in group:
            found[number] = _tensor(published_array(tensor, value))
    return found


def _tensor(array: np.ndarray) -> Any:
    import torch

    # Of its own: a view would bring the whole stack into the file. (`ascontiguousarray` makes vectors of scalars.)
    return torch.from_numpy(np.array(array, order="C"))


def _files(prefix: str) -> list[pathlib.Path]:
    place = pathlib.Path(prefix)
    return list(place.parent.glob(f"{place.name}.*"))
