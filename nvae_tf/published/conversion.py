"""From a published file to a run folder, and back."""

import argparse
import csv
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.config import ExperimentConfig, config_from_dict, config_to_dict, config_to_json, resolve_lengths
from nvae_tf.errors import first_line, require, wrap_read_errors
from nvae_tf.files import atomic_file, atomic_folder, atomic_write, check_new_folder, file_sha256
from nvae_tf.models import NVAE
from nvae_tf.optimization import LoweredRate, start_averages
from nvae_tf.published import settings as published
from nvae_tf.published import tensor_names
from nvae_tf.published.torch_file import OWN_KEY, TorchCheckpoint, read_torch_checkpoint
from nvae_tf.runs.checkpoints import TrainingState, named_weights, restore_weights
from nvae_tf.runs.loading import TrainedRun, model_for_training
from nvae_tf.runs.run_folder import ImageCounts, Origin, RunFolder, origin_of_run, write_run_config

# Of the report: a tensor in the file; the variable that it fills, and its index there; and why it was not taken.
_COLUMNS = ("source", "shape", "dtype", "target", "index", "target_shape", "note")


class RunSettings(NamedTuple):
    """What is known of the run that a file becomes."""

    config: ExperimentConfig  # with the length as `train.steps` where the number of GPUs does not follow
    step: int
    images: ImageCounts | None
    origin: Origin = Origin()
    defaults: tuple[str, ...] = ()  # settings that the file lacks, which are this project's defaults
    assumed: str | None = None  # a sentence where the run's length had to be assumed
    parameters: int = 0  # trained numbers of the model


def import_run(
    file: pathlib.Path,
    output: pathlib.Path,
    *,
    data_path: str | None = None,
    data_source: str | None = None,
    license: str | None = None,
    report: pathlib.Path | None = None,
) -> RunSettings:
    """Makes a run folder of a published file; the folder is written atomically.

    `data_path` and `data_source` replace the settings `data.path` and `data.source`, `license` the license in files
    that this project wrote. `report` gets a table of all tensors, CSV; also where they do not fit. Raises OSError
    where a file is missing or can't be written, ValueError for a damaged or unfit file, another place, and no torch.
    """
    checkpoint = read_torch_checkpoint(file)
    try:
        if checkpoint.own:
            settings = _own_settings(checkpoint)
        else:
            settings = imported_settings(checkpoint.settings, checkpoint.epoch, checkpoint.global_step)
        data = settings.config.data
        data = dataclasses.replace(data, path=data_path or data.path, source=data_source or data.source)
        config = dataclasses.replace(settings.config, data=data)
        tensor_names.check_implied_size(config.model, checkpoint.state)
        # No step is taken, so the learning rates do not matter.
        made = model_for_training(config, steps_per_epoch=1, total_steps=config.objective.total_steps)
        if report is not None:
            _write_report(report, made.model, checkpoint.state)
        tensor_names.load_published_weights(made.model, checkpoint.state)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    origin = dataclasses.replace(settings.origin, license=license or settings.origin.license)
    if origin.source_file is None:  # the file that the weights first came from
        origin = dataclasses.replace(origin, source_file=file.name, sha256=file_sha256(file), step=settings.step)
    parameters = sum(math.prod(weight.shape) for weight in made.model.trainable_variables)
    run = settings._replace(config=config, origin=origin, parameters=parameters)
    checkpoint.state.clear()  # frees the memory of the file's tensors before the optimizer's slots are made
    _write_run(output, *made, run)
    return run


def _write_run(output: pathlib.Path, model: NVAE, schedule: LoweredRate, run: RunSettings) -> None:
    model.optimizer.build(model.trainable_variables)
    start_averages(model)
    model.optimizer.iterations.assign(run.step)
    try:
        with atomic_folder(output.resolve(), lambda: check_new_folder(output, f"--output={output}")) as place:
            place.mkdir()
            folder, keep = RunFolder(place), run.config.train.keep_checkpoints
            TrainingState(folder.checkpoints, model, keep, schedule).save(run.step)
            if run.images:
                atomic_write(folder.images_file, run.images.text())
            atomic_write(folder.origin_file, run.origin.text())
            write_run_config(folder, run.config)
    except OSError as error:
        # Messages name the hidden folder in which the run is made.
        reason = error.strerror or first_line(error).rpartition(f"/{output.resolve().name}/")[2]
        raise OSError(f"--output={output}: could not be written ({reason}). Make room, or name another disk") from error


def _own_settings(checkpoint: TorchCheckpoint) -> RunSettings:
    """The settings of a file that this project wrote, from the entry that only such files have."""
    own, why = checkpoint.own, "the file is damaged, or of another version of this project"
    with wrap_read_errors(f"its entry '{OWN_KEY}' can't be read (", f"); {why}"):
        config = config_from_dict(ExperimentConfig, json.loads(own["config"]))
        images = ImageCounts.parse(own["images"]) if own.get("images") else None
        origin = Origin.parse(own["origin"]) if own.get("origin") else Origin()
    in_args = published.model_config_from_published(checkpoint.settings)
    if unlike := published.differing_settings(config.model, in_args):
        raise ValueError(f"'args' and 'nvae_tf' contradict each other; 'nvae_tf' has {', '.join(unlike)}")
    return RunSettings(config, checkpoint.global_step or 0, images, origin)


def imported_settings(args: Mapping[str, Any], epoch: int | None, global_step: int | None) -> RunSettings:
    """The run of a published file, from its `args` and its epoch and step, if it has them."""
    model, objective = published.model_config_from_published(args), published.objective_config_from_published(args)
    settings = config_to_dict(ExperimentConfig(model=model, objective=objective))
    spec, counts = published.PUBLISHED_DATA[args["dataset"]]
    settings["data"] = config_to_dict(spec) | {"num_bits": model.num_bits, "likelihood": model.likelihood}
    defaults = []
    for group, names in (("optimizer", published.OPTIMIZER_SETTINGS), ("train", published.TRAIN_SETTINGS)):
        settings[group] |= {name: args[name] for name in names if name in args}
        defaults += [f"{group}.{name}" for name in names if name not in args]
    # The types of all settings are checked before they are calculated with.
    config = config_from_dict(ExperimentConfig, settings)
    train, assumed = config.train, None
    num_images = counts[0] if counts else 0
    replicas = _replicas(epoch, global_step, train.batch_size, num_images)
    epoch_steps = max(num_images // (train.batch_size * (replicas or 1)), 1)
    step = (epoch or 0) * epoch_steps if global_step is None else global_step
    # Whatever is missing, the learning rate and KL weight must fit the part of the run that is over.
    total_steps = train.epochs * epoch_steps
    if replicas is None and global_step:
        total_steps = step if epoch is None else round(train.epochs * step / max(epoch, 1))
    total_steps = max(total_steps, step)
    if replicas is None and step > 0:
        config = dataclasses.replace(config, train=dataclasses.replace(train, steps=total_steps))
    if replicas is None and (step > 0 or epoch is global_step is None):
        where = f"it is taken to be at step {step:,} of train.steps = {total_steps:,}"
        assumed = f"The length of its run does not follow from the file: {where}."
    config = resolve_lengths(config, max(total_steps // train.epochs, 1), total_steps)
    images = ImageCounts(*counts, replicas * train.batch_size) if counts and replicas else None
    return RunSettings(config, step, images, defaults=tuple(defaults), assumed=assumed)


def _replicas(epoch: int | None, step: int | None, batch_size: int, num_images: int) -> int | None:
    """The GPUs that explain both the steps and the epochs of a file, of which an early stop may have cut the last."""
    if epoch is None or not step or not num_images:
        return None
    epoch_steps = [step // finished for finished in (epoch, epoch + 1) if finished and step % finished == 0]
    numbers = range(1, 257)  # up to more GPUs than any published run had
    fitting = (number for steps in epoch_steps for number in numbers if num_images // (batch_size * number) == steps)
    return next(fitting, None)


def _write_report(path: pathlib.Path, model: NVAE, state: Mapping[str, np.ndarray]) -> None:
    """Writes a row for each tensor of the file, and for each weight that the file lacks."""
    matched = tensor_names.match(model, state)
    names = {id(weight): name for name, weight in named_weights(model).items()}
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name, value in state.items():
            row = {"source": name, "shape": _text(value.shape), "dtype": str(value.dtype)}
            if tensor := matched.fitting.get(name):
                target, shape = names[id(tensor.variable)], _text(tensor.variable.shape)
                row |= {"target": target, "target_shape": shape, "index": tensor.index}
            elif name in matched.misshapen:
                row["note"] = f"of another shape: this architecture needs {_text(matched.misshapen[name])}"
            else:
                row["note"] = "ignored: carries no information" if name in matched.ignored else "unknown"
            writer.writerow(row)
        writer.writerows({"source": name, "note": "missing"} for name in matched.missing)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def export_file(
    workdir: pathlib.Path, output: pathlib.Path, *, checkpoint: str = "latest", running_means: bool = False
) -> str:
    """Writes the weights of a run's checkpoint, "latest" or "best", as a file of the published form, atomically.

    Returns a text about it. `running_means` writes the moving averages of the weights in place of the weights. Raises
    what `load` raises; OSError: the file can't be written; ValueError: no torch, or settings that this form can't say.
    """
    torch, run = require("torch", "torch"), TrainedRun(workdir, checkpoint)
    config, prefix, step = run.config, run.checkpoint, run.step
    try:
        args = published.published_settings(config)
    except ValueError as error:
        raise ValueError(f"{workdir}: {error}") from error
    folder = RunFolder(workdir)
    images, origin = ImageCounts.read(folder.images_file), origin_of_run(folder, config.train.initialize_from)
    model = NVAE(config.model, config.objective)
    if running_means != restore_weights(model, prefix, averages=running_means):
        raise ValueError(f"{prefix}: has no moving averages of the weights; leave --running_means out")
    # An epoch may be no whole number of steps: where its length is not known, all epochs together have the run's.
    epoch = step * config.train.epochs // config.objective.total_steps
    if images is not None and images.a_step is not None:
        epoch = step // max(images.train // images.a_step, 1)
    state = tensor_names.published_state(model, step)
    content = {"epoch": epoch, "state_dict": state, "optimizer": {}, "global_step": step}
    content |= {"args": argparse.Namespace(**args), "arch_instance": published.cell_tables(config.model.cell_set)}
    own = {"config": config_to_json(config), "images": images and images.text(), "origin": origin and origin.text()}
    content |= {"scheduler": {}, "grad_scalar": {}, OWN_KEY: own}
    try:
        with atomic_file(output) as partial, partial.open("wb") as file:
            torch.save(content, file)
    # Torch reports a full disk by a RuntimeError, with a place in its own source.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise OSError(f"{output}: could not be written ({reason}). Make room, or name another disk") from error
    text = f"Exported step {step:,} to {output}, as a checkpoint of {args['dataset']}."
    if config.optimizer.ema_momentum and not running_means:
        text += "\nIts state_dict has the weights; the run's scores are of the EMA: --running_means."
    return text
