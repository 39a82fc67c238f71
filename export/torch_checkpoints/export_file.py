"""From a run folder to a file of the published form."""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from export.clients.progress_bar import ProgressBar
from export.torch_checkpoints.own_state import checkpoint_names, own_variables
from nvae_tf.checkpoints.kept_checkpoints import step_of
from nvae_tf.checkpoints.loading import find_run
from nvae_tf.checkpoints.published_names import COUNTER, PublishedTensor, published_tensors
from nvae_tf.checkpoints.published_optimizer import MOMENTUM, NORM, STEP, trained_tensors
from nvae_tf.checkpoints.published_weights import published_array
from nvae_tf.checkpoints.run_folder import RunFolder
from nvae_tf.checkpoints.settings_to_publish import cell_tables, published_settings
from nvae_tf.checkpoints.torch_files import OWN_KEY
from nvae_tf.checkpoints.training_parts import VALUE
from nvae_tf.checkpoints.training_state import check_architecture
from nvae_tf.config import ExperimentConfig, config_to_json
from nvae_tf.models.for_training import ModelForTraining, model_for_training
from nvae_tf.optimization import average_of_weights
from nvae_tf.whole_files import whole_file

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


class _Checkpoint:
    """The numbers of a checkpoint, read variable by variable; the model has none."""

    def __init__(self, prefix: str, made: ModelForTraining, report: Callable[[int], None]):
        self._reader = tf.train.load_checkpoint(prefix)
        self._prefix, self._report, self._done = prefix, report, 0
        stored = self._reader.get_variable_to_shape_map()
        self._keys: dict[int, str] = {}
        for name, variable in checkpoint_names(made):
            if name + VALUE in stored:
                self._keys.setdefault(id(variable), name + VALUE)

    def has(self, variable: Any) -> bool:
        """Whether the checkpoint has a variable."""
        return id(variable) in self._keys

    def read(self, variable: Any) -> np.ndarray:
        """The value of a variable.

        Raises:
          ValueError: the checkpoint lacks it.
        """
        if not self.has(variable):
            raise ValueError(
                f"{self._prefix}: lacks {variable.name}, so it was not written by train.main; give --without_optimizer"
            )
        value = self._reader.get_tensor(self._keys[id(variable)])
        self._done += value.nbytes
        self._report(self._done)
        return value


def export_file(choices: ExportChoices) -> Exported:
    """Writes the file; it is there when it is whole.

    Raises:
      FileNotFoundError: there is no such run, or it has no checkpoint.
      ImportError: torch is not installed.
      ValueError: the published form can't say the run's settings, or the checkpoint is damaged.
    """
    import torch

    config, prefix = find_run(choices.workdir, choices.checkpoint)
    if choices.running_means and not config.optimizer.ema_momentum:
        raise ValueError(f"{choices.workdir}: keeps no running means (optimizer.ema_momentum = 0); leave them out")
    try:
        args = published_settings(config)
    except ValueError as error:
        raise ValueError(f"{choices.workdir}: {error}") from error
    # A model in a graph: names and shapes, but no numbers.
    with tf.Graph().as_default():
        made = model_for_training(config, steps_per_epoch=1, total_steps=config.objective.total_steps)
        made.model.optimizer.build(made.model.trainable_variables)
    check_architecture(made.model, prefix)
    total = max(sum(file.stat().st_size for file in _files(prefix)) // _MEGABYTE, 1)
    with ProgressBar(total, "MB read") as bar:
        checkpoint = _Checkpoint(prefix, made, lambda done: bar.show(min(done // _MEGABYTE, total)))
        content = _content(config, args, step_of(prefix), made, checkpoint, choices)
    with whole_file(choices.output) as partial:
        torch.save(content, partial)
    leaves_means = bool(config.optimizer.ema_momentum) and not choices.running_means
    return Exported(config, step_of(prefix), args["dataset"], leaves_means)


def _content(
    config: ExperimentConfig,
    args: Mapping[str, Any],
    step: int,
    made: ModelForTraining,
    checkpoint: _Checkpoint,
    choices: ExportChoices,
) -> dict[str, Any]:
    images = RunFolder(choices.workdir).images_file
    images_text = images.read_text() if images.is_file() else None
    goes_on = choices.with_optimizer and not choices.running_means
    own = own_variables(made, with_training=goes_on)
    if choices.running_means:
        own = {name: variable for name, variable in own.items() if not name.startswith("averages/")}
    state = {name: _tensor(checkpoint.read(variable)) for name, variable in own.items() if checkpoint.has(variable)}
    return {
        "epoch": step // _steps_per_epoch(config, images_text),
        "state_dict": _weights(made, checkpoint, step, choices.running_means),
        "optimizer": _optimizer(config, made, checkpoint) if goes_on else {},
        "global_step": step,
        "args": argparse.Namespace(**args),
        "arch_instance": cell_tables(config.model.cell_set),
        "scheduler": {},
        "grad_scalar": {},
        OWN_KEY: {"config": config_to_json(config), "images": images_text, "state": state},
    }


def _weights(made: ModelForTraining, checkpoint: _Checkpoint, step: int, running_means: bool) -> dict[str, Any]:
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


def _optimizer(config: ExperimentConfig, made: ModelForTraining, checkpoint: _Checkpoint) -> dict[str, Any]:
    inner = getattr(made.model.optimizer, "inner_optimizer", made.model.optimizer)
    epsilon = np.float64(np.float32(inner.epsilon))
    step = int(checkpoint.read(inner.iterations))
    tensors = trained_tensors(made.model)
    momenta = _by_tensor(tensors, lambda variable: checkpoint.read(inner.slots_of(variable).momentum))
    norms = _by_tensor(
        tensors,
        lambda variable: np.float32(checkpoint.read(inner.slots_of(variable).norm).astype(np.float64) + epsilon),
    )
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


def _steps_per_epoch(config: ExperimentConfig, images: str | None) -> int:
    if images is not None:
        counts = json.loads(images)
        if counts.get("a_step"):
            return max(counts["train"] // counts["a_step"], 1)
    return max(config.objective.total_steps // config.train.epochs, 1)


def _files(prefix: str) -> list[pathlib.Path]:
    place = pathlib.Path(prefix)
    return list(place.parent.glob(f"{place.name}.*"))
