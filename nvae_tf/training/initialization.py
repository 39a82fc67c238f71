"""Starting a new run from the weights of another, or from published ones: fine-tuning.

A weight is taken where its name and its shape are those in the source, from whatever architecture. A stack of layers
(see `nvae_tf.layers.stacked`) is one weight whose first axis counts the layers: with another count (more groups, more
cells) it is of another shape, and not taken in part, because its layers then stand at other places of the hierarchy.
"""

import dataclasses
import pathlib

import keras

from nvae_tf.layers import DataDependentConvolution
from nvae_tf.models import NVAE
from nvae_tf.published.names import named_weights
from nvae_tf.published.torch_file import from_torch_checkpoint
from nvae_tf.training.loading import load_run

# What else a model holds is state of its training, or follows the kernels.
_NETWORK = ("bottom_up/", "top_down/")
_LISTED = 20
_NAMED_SETTINGS = 5
_EXPECTED = "give the --workdir of a run of train.main, or a published file (.pt)"


@dataclasses.dataclass
class Initialization:
    """Which weights of a network were `taken` from a source, and which were not: `misshapen` have another shape there,
    `missing` are not there, and `unused` ones of the source have no place here.
    """

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
        sections = (
            ("Not taken, because of another shape in the source", [self.shapes_of(name) for name in self.misshapen]),
            ("Not taken, because they are not in the source", self.missing),
            ("Not used of the source, because this model has no such weights", self.unused),
        )
        for heading, items in sections:
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

    Steps, the optimizer's slots and moving averages are not touched. `path` is a run folder, of whose latest checkpoint
    the exponential moving averages (EMA) of the weights are taken where there are any, or a published file (.pt).

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: `path` is neither of both, or damaged, or none of its weights fits; nothing is assigned then.
    """
    source_name, source = _read(path)
    weights, source_weights = (
        {name: weight for name, weight in named_weights(one).items() if name.startswith(_NETWORK)}
        for one in (model, source)
    )
    shapes = [{name: tuple(weight.shape) for name, weight in one.items()} for one in (weights, source_weights)]
    found = Initialization(source_name, *shapes)
    if not found.taken:
        raise ValueError(_nothing_fits(path, found, source, model))
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
    layers = [layer for layer in model.convolutions if isinstance(layer, DataDependentConvolution)]
    if any(id(layer.log_norm) in taken for layer in layers):
        model.data_initialised.assign(source.data_initialised.numpy())
    return found


def _read(path: str) -> tuple[str, NVAE]:
    """The source of weights: its name for messages, and a model that holds them."""
    place = pathlib.Path(path)
    if not path or not place.exists():
        raise FileNotFoundError(f"train.initialise_from = {path!r}: no such file or folder; {_EXPECTED}")
    if place.is_file() and place.suffix != ".pt":
        raise ValueError(f"train.initialise_from = {path!r}: neither a run folder nor a published file; {_EXPECTED}")
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


def _nothing_fits(path: str, found: Initialization, source: NVAE, model: NVAE) -> str:
    names = [field.name for field in dataclasses.fields(model.config)]
    both = ((name, getattr(source.config, name), getattr(model.config, name)) for name in names)
    settings = [f"model.{name} is {old!r} there and {new!r} here" for name, old, new in both if old != new]
    example = f", e.g. {found.shapes_of(found.misshapen[0])}" if found.misshapen else ""
    return (
        f"train.initialise_from = {path!r}: none of its {len(found.source_shapes)} weights fits one of the "
        f"{len(found.shapes)} of this model{example}; {'; '.join(settings[:_NAMED_SETTINGS])}"
        f"{' ...' if len(settings) > _NAMED_SETTINGS else ''}. Set the model as it is there, or leave "
        "train.initialise_from out"
    )
