"""Weights from elsewhere: the model of a run folder, and a new run that starts from another's weights (fine-tuning)."""

import dataclasses
import functools
import os
import pathlib
import warnings
import zipfile

import keras

from nvae_tf.config import CHECKPOINTS, DataSpec, ExperimentConfig, check, check_choice
from nvae_tf.errors import wrap_read_errors
from nvae_tf.layers import DataDependentConvolution
from nvae_tf.models import NVAE
from nvae_tf.published.names import named_weights
from nvae_tf.published.torch_file import from_torch_checkpoint
from nvae_tf.training.checkpoints import best_instead, check_size, find_best, newest_whole, restore_weights, step_of
from nvae_tf.training.companions import read_calibration, read_prior
from nvae_tf.training.run_folder import RunFolder, read_image_counts, read_run_config
from nvae_tf.training.sharing import find_run_folder

_LATEST_INSTEAD = 'take the latest: checkpoint="latest", or the flag --checkpoint=latest'
# What else a model holds is state of its training, or follows the kernels.
_NETWORK = ("bottom_up/", "top_down/")
_LISTED = 20
_NAMED_SETTINGS = 5


class TrainedRun:
    """A run and one of its checkpoints; settings and weights are read on first use. Raises what `load` raises."""

    def __init__(self, path: str | os.PathLike, checkpoint: str = "latest"):
        self._folder, self._which = RunFolder(find_run_folder(path)), checkpoint

    @functools.cached_property
    def config(self) -> ExperimentConfig:
        """The settings."""
        return read_run_config(self._folder)

    @functools.cached_property
    def checkpoint(self) -> str:
        """The prefix of the checkpoint's files."""
        return find_run(self._folder.path, self._which)[1]

    @property
    def step(self) -> int:
        """The checkpoint's step."""
        return step_of(self.checkpoint)

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of a conditional model, in their order; numbers where the run notes no names."""
        noted = read_image_counts(self._folder.images_file)
        return (noted and noted.class_names) or tuple(map(str, range(self.config.model.num_classes)))

    @property
    def model(self) -> NVAE:
        """The model as `load` gives it."""
        return self._loaded[0]

    @property
    def has_ema(self) -> bool:
        """Whether its weights are exponential moving averages (EMA): where the run keeps them."""
        return self._loaded[1]

    @functools.cached_property
    def _loaded(self) -> tuple[NVAE, bool]:
        # Fails before a model is made.
        config, checkpoint = self.config, self.checkpoint
        check_size(config.model, checkpoint)
        dropout = config.train.label_dropout if config.model.num_classes else 0.0
        model = NVAE(config.model, config.objective, seed=config.train.seed, label_dropout=dropout)
        has_ema = restore_weights(model, checkpoint)
        model.read_prior = functools.partial(read_prior, self._folder.prior_file, model, self.step)
        model.read_calibration = functools.partial(read_calibration, self._folder.outliers_file, model, self.step)
        return model, has_ema


def load(path: str | os.PathLike, checkpoint: str = "latest") -> NVAE:
    """The model of a run folder, with the weights of one of its checkpoints, or their exponential moving averages where
    the run keeps them (`optimizer.ema_momentum`). Instead of a damaged latest one the newest whole one is taken, with a
    warning. What nvae-prior and nvae-calibrate have made comes with the weights that it was made for, and is read when
    it is first used.

    Example:
      >>> model = nvae_tf.load("digits")
      >>> images = model.generate(64, temperature=0.7, seed=1)

    Args:
      path: the `--workdir` of nvae-train; or "hf://user/repo", of nvae-publish, or "hf://user/repo@revision"; or
        "digits", the preset of that name, trained, which comes with this package; or a file of `model.save`, .keras.
      checkpoint: "latest", or "best" for the one with the best test score (`train.keep_best`).

    Raises:
      FileNotFoundError: there is no such run folder, or it has no such checkpoint yet.
      OSError: the repository is unknown, or the Hub can't be reached.
      ValueError: `config.json`, or a .keras file, is damaged or asks for an impossible model; or all checkpoints, or
        the best, are damaged; or the checkpoint is of another architecture, then the first differences are named.
    """
    file = pathlib.Path(path)
    if file.suffix != ".keras" or not file.is_file():
        return load_run(path, checkpoint).model
    with wrap_read_errors(f"{file}: not a model that can be read (", "); restore it from a copy, or save it again"):
        check(zipfile.is_zipfile(file), "not a zip file, or cut off")
        model = keras.saving.load_model(file)
        check(isinstance(model, NVAE), f"a {type(model).__name__}, no NVAE")
        return model


def load_run(path: str | os.PathLike, checkpoint: str = "latest") -> TrainedRun:
    """The model as `load` gives it, read now, with its settings and its step; raises what `load` raises."""
    run = TrainedRun(path, checkpoint)
    _ = run.model
    return run


def find_run(path: str | os.PathLike, checkpoint: str = "latest") -> tuple[ExperimentConfig, str]:
    """The settings and the checkpoint, as the prefix of its files, that `load` takes; raises what `load` raises."""
    check_choice("checkpoint", checkpoint, CHECKPOINTS)
    folder = RunFolder(find_run_folder(path))
    config = read_run_config(folder)
    return config, _best(folder) if checkpoint == "best" else _newest(folder)


def spec_to_read(config: ExperimentConfig, data_path: str | None) -> DataSpec:
    """The data spec of a finished run, whose images may lie at another path now, and whose cache may be gone."""
    cache = config.data.cache if config.data.cache and pathlib.Path(config.data.cache).expanduser().is_dir() else None
    return dataclasses.replace(config.data, path=data_path or config.data.path, cache=cache)


def _newest(folder: RunFolder) -> str:
    found = newest_whole(folder.checkpoints)
    if found.path is None:
        raise FileNotFoundError(
            f"{folder.path}: no checkpoint in {folder.checkpoints}; nvae-train writes one every "
            "train.checkpoint_every_steps steps, at its end, and when it is interrupted"
            + best_instead(folder.checkpoints)
        )
    warned = [found.passed_over_line()] if found.unusable else []
    if found.step == 0 and not folder.origin_file.is_file():
        warned.append("step-0 is used, the weights before the first training step, as the only one")
    for line in warned:
        # Without a line of source text: one line on a terminal.
        warnings.warn_explicit(f"{folder.checkpoints}: {line}", UserWarning, filename="nvae_tf", lineno=0)
    return found.path


def _best(folder: RunFolder) -> str:
    place = folder.best_checkpoints
    found = find_best(place)
    if found.path is not None:
        return found.path
    if found.unusable:
        raise ValueError(
            f"{place}: the best checkpoint is damaged: {found.unusable_words()}. Restore its files from a copy, or "
            f"{_LATEST_INSTEAD}"
        )
    raise FileNotFoundError(
        f"{folder.path}: no best checkpoint in {place}; with train.keep_best nvae-train writes it when the test images "
        f"have been scored, every train.evaluate_every_steps steps. Train on, or {_LATEST_INSTEAD}"
    )


@dataclasses.dataclass
class Initialization:
    """Which weights of a network were taken from a source, and which were not."""

    source: str
    shapes: dict[str, tuple[int, ...]]
    source_shapes: dict[str, tuple[int, ...]]

    def __post_init__(self):
        both = [name for name in self.shapes if name in self.source_shapes]
        self.taken = [name for name in both if self.source_shapes[name] == self.shapes[name]]
        self.misshapen = [name for name in both if self.source_shapes[name] != self.shapes[name]]
        self.missing = [name for name in self.shapes if name not in self.source_shapes]
        self.unused = [name for name in self.source_shapes if name not in self.shapes]

    def report(self) -> str:
        """What was taken, and a list of what was not, by the reason."""
        taken, count = len(self.taken), len(self.shapes)
        which = f"all {count}" if taken == count else f"{taken} of {count}"
        lines = [f"Starts from {self.source}: {which} weights taken."]
        for heading, items in (
            ("Not taken, because of another shape in the source", [self.shapes_of(name) for name in self.misshapen]),
            ("Not taken, because they are not in the source", self.missing),
            ("Not used of the source, because this model has no such weights", self.unused),
        ):
            if items:
                lines += [f"{heading}: {len(items)}", *(f"  {item}" for item in items[:_LISTED])]
            if len(items) > _LISTED:
                lines.append(f"  and {len(items) - _LISTED} more")
        return "\n".join(lines)

    def shapes_of(self, name: str) -> str:
        """Both shapes of a weight."""
        return f"{name}: {list(self.source_shapes[name])} in the source, {list(self.shapes[name])} here"


def initialize(model: NVAE, path: str) -> Initialization:
    """Gives a model all weights of a source that fit: weights, running batch statistics, vectors of power iterations.

    A weight is taken where its name and its shape are those in the source, a stack of layers only whole: with another
    count its layers stand at other places of the hierarchy. The optimizer's state is not touched. `path` is a run
    folder, of which the weights are those that `load` gives, or a published file (.pt).

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: `path` is neither of both, or damaged, or none of its weights fits; nothing is assigned then.
    """
    source_name, source = _read_source(path)
    weights, source_weights = (
        {name: weight for name, weight in named_weights(one).items() if name.startswith(_NETWORK)}
        for one in (model, source)
    )
    shapes = [{name: tuple(weight.shape) for name, weight in one.items()} for one in (weights, source_weights)]
    found = Initialization(source_name, *shapes)
    old, new = dataclasses.asdict(source.config), dataclasses.asdict(model.config)
    settings = [f"model.{name} is {old[name]!r} there and {new[name]!r} here" for name in new if old[name] != new[name]]
    check(
        bool(found.taken),
        f"train.initialise_from = {path!r}: none of its {len(found.source_shapes)} weights fits one of the "
        f"{len(found.shapes)} of this model{''.join(f', e.g. {found.shapes_of(name)}' for name in found.misshapen[:1])}"
        f"; {'; '.join(settings[:_NAMED_SETTINGS])}{' ...' if len(settings) > _NAMED_SETTINGS else ''}. "
        "Set the model as it is there, or leave train.initialise_from out",
    )
    for name in found.taken:
        weights[name].assign(source_weights[name].numpy())
    # The vectors of kernels are numbered, and another architecture numbers them otherwise.
    vectors, source_vectors = _power_vectors(model), _power_vectors(source)
    for kernel in set(found.taken) & vectors.keys():
        vectors[kernel].assign(source_vectors[kernel].numpy())
    # With new kernels among them the first step iterates longer, as that of a new model does.
    if set(found.taken) >= vectors.keys():
        model.spectral_regularizer.warmed_up.assign(source.spectral_regularizer.warmed_up.numpy())
    # Or the first batch would set scales anew in all data-dependent layers, taken or not.
    taken = {id(weights[name]) for name in found.taken}
    if any(isinstance(layer, DataDependentConvolution) and id(layer.log_norm) in taken for layer in model.convolutions):
        model.data_initialised.assign(source.data_initialised.numpy())
    return found


def _read_source(path: str) -> tuple[str, NVAE]:
    """The source of weights: its name for messages, and a model that holds them."""
    place, where = find_run_folder(path), f"train.initialise_from = {path!r}"
    expected = "give the --workdir of a run of nvae-train, or a published file (.pt)"
    if not path or not place.exists():
        raise FileNotFoundError(f"{where}: no such file or folder; {expected}")
    is_fitting = place.is_dir() or place.suffix == ".pt"
    check(is_fitting, f"{where}: neither a run folder nor a published file; {expected}")
    try:
        if place.is_file():
            return path, from_torch_checkpoint(place)
        run = load_run(place)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise ValueError(f"train.initialise_from: {error}") from error
    averaged = ", moving averages (EMA) of the weights" if run.config.optimizer.ema_momentum else ""
    return f"{path}, step {run.step:,}{averaged}", run.model


def _power_vectors(model: NVAE) -> dict[str, keras.Variable]:
    """The vectors of the spectral regularizer by the names of their kernels."""
    names = {id(weight): name for name, weight in named_weights(model).items()}
    kernels = (names[id(convolution.kernel)] for convolution in model.convolutions)
    return dict(zip(kernels, model.spectral_regularizer.vectors, strict=True))
