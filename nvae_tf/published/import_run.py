"""From a published file to a run folder."""

import csv
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.config import ExperimentConfig, config_from_dict, config_to_dict, resolve_lengths
from nvae_tf.data_sets import DATA_SPECS
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_file, atomic_write, file_sha256
from nvae_tf.models import NVAE
from nvae_tf.optimization import start_averages
from nvae_tf.published import settings as published
from nvae_tf.published import weights
from nvae_tf.published.places import new_run_folder
from nvae_tf.published.torch_file import TorchCheckpoint, read_torch_checkpoint
from nvae_tf.runs.checkpoints import TrainingState, named_weights
from nvae_tf.runs.new_model import model_for_training
from nvae_tf.runs.origin import Origin, write_origin
from nvae_tf.runs.run_folder import ImageCounts, RunFolder, write_run_config

# For those who want to change settings; `--config` takes config.json too.
_CONFIG_TEXT = '''"""The settings of this run, for nvae-train: those of config.json beside this file."""

import pathlib

from nvae_tf.presets import load_settings


def get_config():
    return load_settings(str(pathlib.Path(__file__).with_name("config.json")))
'''
# Of the report: a tensor in the file; the variable that it fills, and its index there; and why it was not taken.
_COLUMNS = ("source", "shape", "dtype", "target", "index", "target_shape", "note")


class RunSettings(NamedTuple):
    """What is known of the run that a file becomes."""

    # With the length as `train.steps` where the number of GPUs, which gives that of `train.epochs`, does not follow.
    config: ExperimentConfig
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

    Weights and running statistics are taken over; the optimizer's moments start at zero, at the file's step.
    `data_path` and `data_source` replace the settings `data.path` and `data.source`, `license` that of the weights in
    files that this project wrote. `report` gets a table of all tensors, CSV; also where they do not fit.

    FileNotFoundError: there is no such file. OSError: the run folder can't be written. ValueError: the file is damaged
    or does not fit its settings, a run folder can't be made at `output`, or torch is not installed.
    """
    checkpoint = read_torch_checkpoint(file)
    try:
        if checkpoint.own:
            settings = _own_settings(checkpoint)
        else:
            settings = imported_settings(checkpoint.settings, checkpoint.epoch, checkpoint.global_step)
        given = {"path": data_path, "source": data_source}
        changes = {name: value for name, value in given.items() if value is not None}
        config = dataclasses.replace(settings.config, data=dataclasses.replace(settings.config.data, **changes))
        weights.check_implied_size(config.model, checkpoint.state)
        # No step is taken, so the learning rates do not matter.
        made = model_for_training(config, steps_per_epoch=1, total_steps=config.objective.total_steps)
        model = made.model
        if report is not None:
            _write_report(report, model, checkpoint.state)
        weights.load_published_weights(model, checkpoint.state)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    del checkpoint  # frees the memory of the file's tensors before the optimizer's slots are made
    model.optimizer.build(model.trainable_variables)
    start_averages(model)
    model.optimizer.iterations.assign(settings.step)
    origin = settings.origin
    if license is not None:
        origin = dataclasses.replace(origin, license=license)
    if origin.source_file is None:  # the file that the weights first came from
        origin = dataclasses.replace(origin, source_file=file.name, sha256=file_sha256(file), step=settings.step)
    with new_run_folder(output) as place:
        folder, keep = RunFolder(place), config.train.keep_checkpoints
        TrainingState(folder.checkpoints, model, model.optimizer, keep, made.variables).save(settings.step)
        atomic_write(folder.path / "config.py", _CONFIG_TEXT)
        if settings.images:
            atomic_write(folder.images_file, settings.images.text())
        write_origin(folder, origin)
        write_run_config(folder, config)
    parameters = sum(math.prod(weight.shape) for weight in model.trainable_variables)
    return settings._replace(config=config, parameters=parameters)


def _own_settings(checkpoint: TorchCheckpoint) -> RunSettings:
    """The settings of a file that this project wrote, from the entry that only such files have."""
    own = checkpoint.own
    try:
        config = config_from_dict(ExperimentConfig, json.loads(own["config"]))
        images, origin = (
            kind.parse(own[name]) if own.get(name) else None
            for name, kind in (("images", ImageCounts), ("origin", Origin))
        )
    # The JSON may be damaged, of another form, or nested without end.
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = "the file is damaged, or of another version of this project"
        raise ValueError(f"its entry 'nvae_tf' can't be read ({first_line(error)}); {why}") from error
    in_args = published.model_config_from_published(checkpoint.settings)
    if unlike := published.differing_settings(config.model, in_args):
        names = ", ".join(unlike)
        raise ValueError(f"'args' and 'nvae_tf' in the file contradict each other; 'nvae_tf' has {names}")
    return RunSettings(config, checkpoint.global_step or 0, images, origin or Origin())


def imported_settings(args: Mapping[str, Any], epoch: int | None, global_step: int | None) -> RunSettings:
    """The run of a published file, from its `args` and its epoch and step, if it has them."""
    model, objective = published.model_config_from_published(args), published.objective_config_from_published(args)
    settings = config_to_dict(ExperimentConfig(model=model, objective=objective))
    images = published.PUBLISHED_IMAGES[args["dataset"]]
    # Bedrooms and churches of other sizes are the same images.
    known = "lsun_bedroom64" if "bedroom" in images.data_name else "lsun_church64"
    data = dataclasses.asdict(DATA_SPECS.get(images.data_name, DATA_SPECS[known]))
    data |= {"name": images.data_name, "height": images.size, "width": images.size}
    settings["data"] = data | {"num_bits": model.num_bits, "likelihood": model.likelihood}
    defaults = []
    for group, names in (("optimizer", published.OPTIMIZER_SETTINGS), ("train", published.TRAIN_SETTINGS)):
        settings[group] |= {name: args[name] for name in names if name in args}
        defaults += [f"{group}.{name}" for name in names if name not in args]
    # The types of all settings are checked before they are calculated with.
    config = config_from_dict(ExperimentConfig, settings)
    train, counts, assumed = config.train, images.counts, None
    num_images = counts[0] if counts else 0
    replicas = _replicas(epoch, global_step, train.batch_size, num_images)
    epoch_steps = max(num_images // (train.batch_size * (replicas or 1)), 1)
    step = (epoch or 0) * epoch_steps if global_step is None else global_step
    # Whatever is missing, learning rate and KL weight must be those of the part of the run that is over.
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
    names, matched = {id(weight): name for name, weight in named_weights(model).items()}, weights.match(model, state)
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name, value in state.items():
            row = {"source": name, "shape": _text(value.shape), "dtype": str(value.dtype)}
            if name in matched.fitting:
                variable = matched.fitting[name].variable
                row |= {"target": names[id(variable)], "target_shape": _text(tuple(variable.shape))}
                row["index"] = matched.fitting[name].index
            elif name in matched.misshapen:
                row["note"] = f"of another shape: this architecture needs {_text(matched.misshapen[name])}"
            else:
                row["note"] = "ignored: carries no information" if name in matched.ignored else "unknown"
            writer.writerow(row)
        writer.writerows({"source": name, "note": "missing"} for name in matched.missing)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
