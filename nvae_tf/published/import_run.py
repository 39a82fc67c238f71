"""From a published file to a run folder."""

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.config import ExperimentConfig, ModelConfig, config_to_json
from nvae_tf.files import atomic_write
from nvae_tf.models import NVAE
from nvae_tf.models.for_training import ModelForTraining, model_for_training
from nvae_tf.optimization.adamax import average_of_weights
from nvae_tf.published.implied_size import check_implied_size
from nvae_tf.published.imported_settings import RunSettings
from nvae_tf.published.less_memory import forget_pages, give_back_freed
from nvae_tf.published.mapping_report import (
    Row,
    rows_of_moments,
    rows_of_moments_left_out,
    rows_of_own_state,
    rows_of_weights,
    rows_without_model,
    write_report,
)
from nvae_tf.published.new_run_folder import CONFIG_NAME, CONFIG_TEXT, new_run_folder
from nvae_tf.published.optimizer import LEAVE_OUT, SavedOptimizer, saved_optimizer
from nvae_tf.published.own_state import check_own_state, is_of_training, own_variables
from nvae_tf.published.run_settings import settings_of_run
from nvae_tf.published.stacks import Piece, assign_pieces, pass_over, size_of
from nvae_tf.published.torch_file import TorchCheckpoint, read_torch_checkpoint
from nvae_tf.published.weights import BROKEN_WEIGHTS, match
from nvae_tf.reports.model_card import write_model_card
from nvae_tf.reports.run_facts import Origin, write_origin
from nvae_tf.serving.progress_bar import ProgressBar
from nvae_tf.training.finite_numbers import check_finite
from nvae_tf.training.run_folder import RunFolder
from nvae_tf.training.training_state import TrainingState

_MEGABYTE = 1 << 20
# Of what this project has added to a file; figures and what watches over the loss may hold NaN for a while.
_FINITE = ("model/", "averages/", "optimizer/")


class ImportChoices(NamedTuple):
    """What is imported, and how.

    Attributes:
      file: the published file.
      output: the run folder that is made.
      with_optimizer: whether the optimizer's state is taken over, if the file has it.
      data_path: where the images lie (`data.path`); None leaves it to the settings.
      data_source: what kind of source that is (`data.source`); None leaves it to the settings.
      license: that of the weights, for the model card; None leaves it to the file, where this project wrote it.
      report: where to write the table of all tensors; None for none.
    """

    file: pathlib.Path
    output: pathlib.Path
    with_optimizer: bool = True
    data_path: str | None = None
    data_source: str | None = None
    license: str | None = None
    report: pathlib.Path | None = None


class Imported(NamedTuple):
    """What has become of a file.

    Attributes:
      config: the settings of the run.
      step: the step of its checkpoint.
      has_optimizer: whether the optimizer's state was taken over.
      images_a_step: with how many images a step it was trained; None where that is not known.
      defaults: settings that the file lacks, which are this project's defaults.
      assumed: a sentence about what was assumed of the run's length; None where it follows from the file.
    """

    config: ExperimentConfig
    step: int
    has_optimizer: bool
    images_a_step: int | None
    defaults: tuple[str, ...]
    assumed: str | None


def import_run(choices: ImportChoices) -> Imported:
    """Makes the run folder; nothing of it is there before all is.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: torch is not installed.
      OSError: the run folder can't be written.
      ValueError: the file is damaged or no NVAE checkpoint, its tensors do not fit its settings or hold NaN, or a run
        folder can't be made at `choices.output`.
    """
    total = max(choices.file.stat().st_size // _MEGABYTE, 1) if choices.file.is_file() else 1
    with ProgressBar(total, "MB checked") as bar:
        checkpoint = read_torch_checkpoint(choices.file, lambda done: bar.show(min(done // _MEGABYTE, total)))
    try:
        settings = settings_of_run(checkpoint, choices.data_path, choices.data_source)
        _check_size(settings.config.model, checkpoint.state, choices)
        total_steps = settings.config.objective.total_steps
        # Which steps have which learning rate is asked when training goes on, with the images at hand.
        made = model_for_training(settings.config, steps_per_epoch=1, total_steps=total_steps)
        saved = _fill(made, checkpoint, settings.step, choices)
    except ValueError as error:
        raise ValueError(f"{choices.file}: {error}") from error
    settings = settings._replace(origin=_origin(settings.origin, settings.step, choices))
    # The file need not stay in memory while the run is written.
    del checkpoint
    with new_run_folder(choices.output) as folder:
        _write(RunFolder(folder), made, settings)
    images_a_step = settings.images.a_step if settings.images else None
    return Imported(
        settings.config, settings.step, saved is not None, images_a_step, settings.defaults, settings.assumed
    )


def _check_size(config: ModelConfig, state: Mapping[str, np.ndarray], choices: ImportChoices) -> None:
    """Raises ValueError where the settings ask for far more than the file has, before a model of that size is made."""
    try:
        check_implied_size(config, state)
    except ValueError:
        if choices.report is not None:
            write_report(
                choices.report, rows_without_model(state, "not looked at: the settings ask for a larger model")
            )
        raise


def _fill(
    made: ModelForTraining, checkpoint: TorchCheckpoint, step: int, choices: ImportChoices
) -> SavedOptimizer | None:
    """Weights, the optimizer's state and what a file of this project has besides.

    Returns:
      The optimizer's state, if it was taken over.

    Raises:
      ValueError: something does not fit, which for weights and moments is told before a number is read; or numbers are
        not finite. The model is then of no use.
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
            in_order = {name: matched.found[name] for name in state if name in matched.found}
            saved = saved_optimizer(in_order, model.optimizer, checkpoint.optimizer)
    finally:
        # Where something does not fit, it is needed most.
        if choices.report is not None:
            write_report(choices.report, [*rows, *_rows_of_optimizer(model, checkpoint, saved, taken, choices)])
    # Weights first: what is needed to fill them is gone when the slots are made.
    _assign_with_bar(matched.pieces(state), checkpoint.is_mapped, "MB of weights")
    model.data_initialised.assign(1.0)
    give_back_freed()
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(saved.step if saved else step)
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


def _rows_of_optimizer(
    model: NVAE, checkpoint: TorchCheckpoint, saved: SavedOptimizer | None, own: Set[str], choices: ImportChoices
) -> Iterator[Row]:
    if saved is None:
        why = "nothing was imported" if choices.with_optimizer else "--without_optimizer"
        return rows_of_moments_left_out(checkpoint.optimizer, f"ignored: {why}")
    return rows_of_moments(model, saved, any(name.startswith("optimizer/") for name in own))


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
        if name.startswith(_FINITE):
            check_finite(value, f"'nvae_tf' {name}", LEAVE_OUT if is_of_training(name) else BROKEN_WEIGHTS)
        variables[name].assign(value)
    return {id(variables[name]) for name in values}


def _write(folder: RunFolder, made: ModelForTraining, settings: RunSettings) -> None:
    config = settings.config
    keep = config.train.keep_checkpoints
    TrainingState(folder.checkpoints, made.model, made.model.optimizer, keep, others=made.variables).save(settings.step)
    atomic_write(folder.path / CONFIG_NAME, CONFIG_TEXT)
    if settings.images:
        atomic_write(folder.images_file, settings.images.text())
    write_origin(folder, settings.origin)
    atomic_write(folder.config_file, config_to_json(config))
    write_model_card(folder, sum(math.prod(weight.shape) for weight in made.model.trainable_variables))


def _origin(known: Origin, step: int, choices: ImportChoices) -> Origin:
    """Where the weights came from first, if the file says so, else the file itself."""
    if choices.license is not None:
        known = dataclasses.replace(known, license=choices.license)
    if known.source_file is not None:
        return known
    with choices.file.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return dataclasses.replace(known, source_file=choices.file.name, sha256=sha256, step=step)
