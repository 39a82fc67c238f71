"""The model of a run: a new one, compiled for training, or with the weights of a checkpoint; and a run of a model."""

import dataclasses
import functools
import math
import os
import pathlib
import warnings
import zipfile
from typing import Any, NamedTuple

import keras

from nvae_tf.config import CHECKPOINTS, ExperimentConfig, check, check_choice, resolve_lengths
from nvae_tf.data_sets import MODEL_SETTINGS, data_spec
from nvae_tf.errors import wrap_read_errors
from nvae_tf.files import atomic_folder, check_new_folder
from nvae_tf.latent_plan import fewest_weights
from nvae_tf.models import NVAE
from nvae_tf.optimization import LoweredRate, NVAEAdamax, RunawayGuard, WarmupCosine
from nvae_tf.runs import checkpoints
from nvae_tf.runs.companions import read_calibration, read_prior
from nvae_tf.runs.run_folder import ImageCounts, RunFolder, read_run_config, write_run_config
from nvae_tf.runs.sharing import find_run_folder


class ModelForTraining(NamedTuple):
    """A model with its first weights, compiled; the optimizer's slots are not made yet."""

    model: NVAE  # with a `RunawayGuard`
    schedule: LoweredRate  # step -> learning rate


def model_for_training(config: ExperimentConfig, steps_per_epoch: int, total_steps: int) -> ModelForTraining:
    """Makes the model of an experiment; the same settings, of a run of this length, give the same first weights."""
    settings, rates = config.train, resolve_lengths(config, steps_per_epoch, total_steps).optimizer
    keras.utils.set_random_seed(settings.seed)
    how = {"dtype": settings.precision, "recompute": settings.recompute, "accumulate_steps": settings.accumulate_steps}
    model = _new_model(config, **how)
    lengths = round(rates.warmup_epochs * steps_per_epoch), steps_per_epoch, total_steps
    schedule = LoweredRate(WarmupCosine(rates.learning_rate, rates.learning_rate_min, *lengths))
    model.step_guard = RunawayGuard(settings.loss_tolerance)
    average = {"use_ema": True, "ema_momentum": rates.ema_momentum} if rates.ema_momentum else {}
    optimizer = NVAEAdamax(learning_rate=schedule, l2=rates.weight_decay, **average)
    # The step is compiled with all that is around it, see `nvae_tf.training.strategy`.
    model.compile(optimizer=optimizer, jit_compile=False)
    return ModelForTraining(model, schedule)


def _new_model(config: ExperimentConfig, **how: Any) -> NVAE:
    """The model of an experiment, with its first weights."""
    dropout = config.train.label_dropout if config.model.num_classes else 0.0
    return NVAE(config.model, config.objective, seed=config.train.seed, label_dropout=dropout, **how)


class TrainedRun:
    """A run and one of its checkpoints; settings and weights are read on first use. Raises what `load` raises."""

    has_ema: bool  # whether the weights of `model` are exponential moving averages (EMA), which a run may keep

    def __init__(self, path: str | os.PathLike, checkpoint: str = "latest"):
        check_choice("checkpoint", checkpoint, CHECKPOINTS)
        self._folder, self._which = RunFolder(find_run_folder(path)), checkpoint

    @functools.cached_property
    def config(self) -> ExperimentConfig:
        """The settings."""
        return read_run_config(self._folder)

    @functools.cached_property
    def checkpoint(self) -> str:
        """The prefix of the checkpoint's files; a warning says where a damaged one was passed over."""
        folder = self._folder
        _ = self.config  # raises where the place is no run folder, which says more than that it has no checkpoint
        if self._which == "best":
            best, place = checkpoints.find_best(folder.best_checkpoints), folder.best_checkpoints
            if best.unusable and best.prefix is None:
                fault = f"the best checkpoint is damaged: {best.passed_over_line()}. Restore its files from a copy"
                raise ValueError(f"{place}: {fault}, or take the latest: --checkpoint=latest")
            if best.prefix is None:
                fix = "nvae-train writes one with train.keep_best. Train on, or take the latest: --checkpoint=latest"
                raise FileNotFoundError(f"{folder.path}: no best checkpoint in {place}; {fix}")
            return best.prefix
        newest = checkpoints.find_newest(folder.checkpoints)
        if newest.prefix is None:
            when = "nvae-train writes one every train.checkpoint_every_steps steps and at its end"
            fault = f"no checkpoint in {folder.checkpoints}; {when}{checkpoints.BEST_INSTEAD}"
            raise FileNotFoundError(f"{folder.path}: {fault}")
        warned = [newest.passed_over_line()] if newest.unusable else []
        if newest.step == 0 and not folder.origin_file.is_file():
            warned.append("step-0 is used, the weights before the first training step, as the only one")
        for line in warned:
            # Without a line of source text: one line on a terminal.
            warnings.warn_explicit(f"{folder.checkpoints}: {line}", UserWarning, filename="nvae_tf", lineno=0)
        return newest.prefix

    @property
    def step(self) -> int:
        """The checkpoint's step."""
        return int(self.checkpoint.rpartition("-")[2])

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of a conditional model, in their order; numbers where the run notes no names."""
        counts = ImageCounts.read(self._folder.images_file)
        return (counts and counts.class_names) or tuple(map(str, range(self.config.model.num_classes)))

    @functools.cached_property
    def model(self) -> NVAE:
        """The model as `load` gives it."""
        # Wrong settings and checkpoints raise before a model is made.
        config, checkpoint = self.config, self.checkpoint
        shapes = checkpoints.stored_shapes(checkpoint).items()
        stored = sum(math.prod(shape) for name, shape in shapes if name.startswith("model/"))
        if (asked := fewest_weights(config.model)) > stored:
            fault = f"it has {stored:,} numbers, and the settings ask for at least {asked:,}"
            raise ValueError(f"{checkpoint}: a checkpoint of another architecture: {fault}")
        model = _new_model(config)
        self.has_ema = checkpoints.restore_weights(model, checkpoint)
        model.read_prior = functools.partial(read_prior, self._folder.prior_file, model, self.step)
        model.read_calibration = functools.partial(read_calibration, self._folder.outliers_file, model, self.step)
        return model


def load(path: str | os.PathLike, checkpoint: str = "latest") -> NVAE:
    """The model of a run folder, with the weights of one of its checkpoints, or their exponential moving averages where
    the run keeps them (`optimizer.ema_momentum`). If the latest is damaged, it warns and takes the newest whole one.

    Example:
      >>> model = nvae_tf.load("digits")
      >>> images = model.generate(64, temperature=0.7, seed=1)

    Args:
      path: the `--workdir` of nvae-train; or "hf://user/repo", of nvae-publish, or "hf://user/repo@revision"; or
        "digits", the preset of that name, trained, which comes with this package; or a file of `model.save`, .keras.
      checkpoint: "latest", or "best" for the one with the best test score (`train.keep_best`).

    FileNotFoundError: there is no such run folder, or no such checkpoint yet. OSError: the repository can't be fetched.
    ValueError: a file is damaged, or the checkpoint is of another architecture than `config.json`.
    """
    file = pathlib.Path(path)
    if file.suffix != ".keras" or not file.is_file():
        return load_run(path, checkpoint).model
    with wrap_read_errors(f"{file}: not a model that can be read (", "); restore it from a copy, or save it again"):
        check(zipfile.is_zipfile(file), "not a zip file, or cut off")
        model = keras.saving.load_model(file)
        check(isinstance(model, NVAE), f"a {type(model).__name__}, no NVAE")
        return model


def save(model: NVAE, path: str | os.PathLike, config: ExperimentConfig | None = None) -> None:
    """Writes a model as a run folder, which `load` and all commands read, but for `nvae-train`: it has no optimizer.

    Example:
      >>> nvae_tf.save(model, "runs/mine", config)

    The checkpoint's step is the compiled optimizer's, else `objective.total_steps`. A reweighted prior and an outlier
    calibration are not written: nvae-prior and nvae-calibrate make them anew.

    Args:
      model: trained by `fit`, or by a loop of your own.
      path: a new or empty folder.
      config: the experiment whose `model` the model has, for the other settings, the data's among them; None:
        data of the model's form, whose place nvae-evaluate takes from --data_path.

    ValueError: another model's settings, or a folder that holds something. OSError: it can't be written.
    """
    if config is not None and config.model != model.config:
        raise ValueError("save: config.model is not what this model was made with; give the model's own, or none")
    if config is None:
        data = {name: getattr(model.config, setting) for setting, name in MODEL_SETTINGS.items()}
        data |= {"labels": model.config.num_classes > 0, "num_classes": model.config.num_classes or None}
        spec = dataclasses.replace(data_spec("own_images"), file_bits=8, **data)
        config = ExperimentConfig(model=model.config, data=spec)
    place, total_steps = pathlib.Path(path).resolve(), model.objective.total_steps
    settings = {"seed": max(model.seed, 0), "label_dropout": model.label_dropout, "steps": total_steps}
    train = dataclasses.replace(config.train, precision=model.dtype_policy.name, **settings)
    config = resolve_lengths(dataclasses.replace(config, objective=model.objective, train=train), 1, total_steps)
    optimizer = getattr(model, "optimizer", None)
    step = total_steps if optimizer is None else int(optimizer.iterations)
    with atomic_folder(place, functools.partial(check_new_folder, place, f"save: {path}")) as written:
        folder = RunFolder(written)
        checkpoints.write_weights(folder.checkpoints, step, model, are_averages=False, all_weights=True)
        write_run_config(folder, config)


def load_run(path: str | os.PathLike, checkpoint: str = "latest") -> TrainedRun:
    """The model as `load` gives it, read now, with its settings and its step; raises what `load` raises."""
    run = TrainedRun(path, checkpoint)
    _ = run.model
    return run
