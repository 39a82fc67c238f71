"""From a published file to a run folder."""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from export.clients.progress_bar import ProgressBar
from export.torch_checkpoints.imported_settings import imported_settings
from export.torch_checkpoints.less_memory import forget_pages, give_back_freed
from export.torch_checkpoints.mapping_report import (
    rows_of_moments,
    rows_of_own_state,
    rows_of_weights,
    write_report,
)
from export.torch_checkpoints.new_run_folder import CONFIG_NAME, CONFIG_TEXT, new_run_folder
from export.torch_checkpoints.own_state import check_own_state, is_of_training, own_variables
from nvae_tf.checkpoints import RunFolder, model_config_from_published, read_torch_checkpoint
from nvae_tf.checkpoints.published_optimizer import SavedOptimizer, saved_optimizer
from nvae_tf.checkpoints.published_weights import match
from nvae_tf.checkpoints.settings_to_publish import differing_settings
from nvae_tf.checkpoints.stacks import Piece, assign_pieces, pass_over, size_of
from nvae_tf.checkpoints.torch_files import TorchCheckpoint
from nvae_tf.checkpoints.training_state import TrainingState
from nvae_tf.config import ExperimentConfig, config_to_json, experiment_config
from nvae_tf.model_card import write_model_card, write_origin
from nvae_tf.models.for_training import ModelForTraining, model_for_training
from nvae_tf.optimization.averaging import average_of_weights
from nvae_tf.whole_files import write_whole

_MEGABYTE = 1 << 20


class ImportChoices(NamedTuple):
    """What is imported, and how.

    Attributes:
      file: the published file.
      output: the run folder that is made.
      with_optimizer: whether the optimizer's state is taken over, if the file has it.
      data_path: where the images lie; None leaves it to the settings.
      license: that of the weights, for the model card.
      report: where to write the table of all tensors; None for none.
    """

    file: pathlib.Path
    output: pathlib.Path
    with_optimizer: bool = True
    data_path: str | None = None
    license: str = "other"
    report: pathlib.Path | None = None


class Imported(NamedTuple):
    """What has become of a file.

    Attributes:
      config: the settings of the run.
      step: the step of its checkpoint.
      has_optimizer: whether the optimizer's state was taken over.
      images_a_step: with how many images a step it was trained; None where that is not known.
      defaults: settings that the file lacks, which are this project's defaults.
    """

    config: ExperimentConfig
    step: int
    has_optimizer: bool
    images_a_step: int | None
    defaults: tuple[str, ...]


class _Settings(NamedTuple):
    config: ExperimentConfig
    images: str | None
    defaults: tuple[str, ...]


def import_run(choices: ImportChoices) -> Imported:
    """Makes the run folder; nothing of it is there before all is.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: torch is not installed.
      ValueError: the file is damaged or no NVAE checkpoint, its tensors do not fit its settings, or a run folder can't
        be made at `choices.output`.
    """
    total = max(choices.file.stat().st_size // _MEGABYTE, 1) if choices.file.is_file() else 1
    with ProgressBar(total, "MB checked") as bar:
        checkpoint = read_torch_checkpoint(choices.file, lambda done: bar.show(min(done // _MEGABYTE, total)))
    try:
        settings = _settings(checkpoint, choices.data_path)
        total_steps = settings.config.objective.total_steps
        # Which steps have which learning rate is asked when training goes on, with the images at hand.
        made = model_for_training(settings.config, steps_per_epoch=1, total_steps=total_steps)
        saved = _fill(made, checkpoint, choices)
    except ValueError as error:
        raise ValueError(f"{choices.file}: {error}") from error
    step = checkpoint.global_step or 0
    # The file need not stay in memory while the run is written.
    del checkpoint
    with new_run_folder(choices.output) as folder:
        _write(RunFolder(folder), made, settings, step, choices)
    images_a_step = json.loads(settings.images)["a_step"] if settings.images else None
    return Imported(settings.config, step, saved is not None, images_a_step, settings.defaults)


def _settings(checkpoint: TorchCheckpoint, data_path: str | None) -> _Settings:
    """Those of the `args`, or, in a file that this project wrote, those that it was written from."""
    own = checkpoint.own
    if not own:
        found = imported_settings(checkpoint.settings, checkpoint.epoch, checkpoint.global_step, data_path)
        return _Settings(found.config, found.images.text() if found.images else None, found.defaults)
    try:
        settings = json.loads(own["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'nvae_tf' has no settings that can be read ({error}); the file is damaged") from error
    if data_path is not None:
        settings["data"]["path"] = data_path
    config = experiment_config(settings)
    if unlike := differing_settings(config.model, model_config_from_published(checkpoint.settings)):
        raise ValueError(f"'args' and 'nvae_tf' in the file contradict each other; 'nvae_tf' has {', '.join(unlike)}")
    return _Settings(config, own.get("images"), ())


def _fill(made: ModelForTraining, checkpoint: TorchCheckpoint, choices: ImportChoices) -> SavedOptimizer | None:
    """Weights, the optimizer's state and what a file of this project has besides; nothing unless everything fits.

    Returns:
      The optimizer's state, if it was taken over.
    """
    model, state = made.model, checkpoint.state
    matched = match(model, state)
    rows, saved = list(rows_of_weights(model, matched, state)), None
    own = _own_state(checkpoint)
    taken = {name for name in own if choices.with_optimizer or not is_of_training(name)}
    rows += rows_of_own_state(own, taken)
    try:
        matched.check(state)
        if choices.with_optimizer:
            saved = saved_optimizer(model, checkpoint.optimizer)
            rows += rows_of_moments(model, saved) if saved else ()
    finally:
        # Where something does not fit, it is needed most.
        if choices.report is not None:
            write_report(choices.report, rows)
    # Weights first: what is needed to fill them is gone when the slots are made.
    _assign_with_bar(matched.pieces(state), checkpoint.is_mapped, "MB of weights")
    model.data_initialised.assign(1.0)
    give_back_freed()
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(saved.step if saved else checkpoint.global_step or 0)
    # As before a first step; what the file has of them follows.
    averages = average_of_weights(model)
    for weight in model.trainable_variables:
        if id(weight) in averages:
            averages[id(weight)].assign(weight)
    filled = _take_own_state(made, {name: own[name] for name in taken})
    if saved:
        moments = [piece for piece in saved.pieces(model.optimizer) if id(piece.variable) not in filled]
        _assign_with_bar(moments, checkpoint.is_mapped, "MB of the optimizer's state")
    give_back_freed()
    return saved


def _assign_with_bar(pieces: Sequence[Piece], are_mapped: bool, what: str) -> None:
    total = max(size_of(pieces) // _MEGABYTE, 1)
    with ProgressBar(total, what) as bar:
        forget = forget_pages if are_mapped else pass_over
        assign_pieces(pieces, lambda done: bar.show(min(done // _MEGABYTE, total)), forget)


def _own_state(checkpoint: TorchCheckpoint) -> Mapping[str, Any]:
    """What a file of this project has besides; empty for all others."""
    own = checkpoint.own.get("state", {})
    wrong = not isinstance(own, Mapping) or not all(isinstance(value, np.ndarray) for value in own.values())
    if wrong:
        raise ValueError("'nvae_tf' has a 'state' that holds something else than tensors by name; the file is damaged")
    return own


def _take_own_state(made: ModelForTraining, values: Mapping[str, np.ndarray]) -> set[int]:
    """Assigns what a file of this project has besides, and returns the `id` of each variable that got its value."""
    variables = own_variables(made)
    check_own_state(values, variables)
    for name, value in values.items():
        variables[name].assign(value)
    return {id(variables[name]) for name in values}


def _write(
    folder: RunFolder,
    made: ModelForTraining,
    settings: _Settings,
    step: int,
    choices: ImportChoices,
) -> None:
    config = settings.config
    keep = config.train.keep_checkpoints
    TrainingState(folder.checkpoints, made.model, made.model.optimizer, keep, others=made.variables).save(step)
    write_whole(folder.path / CONFIG_NAME, CONFIG_TEXT)
    if settings.images:
        write_whole(folder.images_file, settings.images)
    with choices.file.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    write_origin(folder, choices.file.name, sha256, step, choices.license)
    write_whole(folder.config_file, config_to_json(config))
    write_model_card(folder, sum(math.prod(weight.shape) for weight in made.model.trainable_variables))
