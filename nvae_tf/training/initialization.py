"""A new run that starts from the weights of another run, or of a published file (fine-tuning)."""

import dataclasses

import keras

from nvae_tf.layers import DataDependentConvolution
from nvae_tf.models import NVAE
from nvae_tf.published.torch_file import from_torch_checkpoint
from nvae_tf.runs.checkpoints import named_weights
from nvae_tf.runs.loading import load_run
from nvae_tf.runs.sharing import find_run_folder

# The other weights of a model are state of its training, or follow the kernels.
_NETWORK = ("bottom_up/", "top_down/")
_LISTED = 20
_NAMED_SETTINGS = 5


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
        """How many weights were taken, and a list of the others, by the reason."""
        taken, count = len(self.taken), len(self.shapes)
        which = f"all {count}" if taken == count else f"{taken} of {count}"
        lines = [f"Starts from {self.source}: {which} weights taken."]
        misshapen = [self.weight_shapes(name) for name in self.misshapen]
        for heading, items in (
            (
                "Not taken, because of another shape in the source",
                misshapen,
            ),
            ("Not taken, because they are not in the source", self.missing),
            ("Not used of the source, because this model has no such weights", self.unused),
        ):
            if items:
                lines += [f"{heading}: {len(items)}", *(f"  {item}" for item in items[:_LISTED])]
            if len(items) > _LISTED:
                lines.append(f"  and {len(items) - _LISTED} more")
        return "\n".join(lines)

    def weight_shapes(self, name: str) -> str:
        """The shapes of a weight in both models, in words."""
        return f"{name}: {list(self.source_shapes[name])} in the source, {list(self.shapes[name])} here"


def initialize(model: NVAE, path: str) -> Initialization:
    """Gives a model all weights of a source that fit: weights, running batch statistics, vectors of power iterations.

    A weight is taken if it has the same name and shape in the source, a stack of layers only whole: with another
    count its layers stand at other places of the hierarchy. The optimizer's state is not touched. `path` is a run
    folder, whose weights are taken as `load` gives them, or a published file (.pt).

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
    compared = Initialization(source_name, *shapes)
    if not compared.taken:
        raise ValueError(_nothing_fits(path, compared, model, source))
    for name in compared.taken:
        weights[name].assign(source_weights[name].numpy())
    # The vectors of kernels are numbered, and another architecture numbers them otherwise.
    vectors, source_vectors = _power_vectors(model), _power_vectors(source)
    for kernel in set(compared.taken) & vectors.keys():
        vectors[kernel].assign(source_vectors[kernel].numpy())
    # With new kernels among them the first step iterates longer, as that of a new model does.
    if set(compared.taken) >= vectors.keys():
        model.spectral_regularizer.warmed_up.assign(source.spectral_regularizer.warmed_up.numpy())
    # Otherwise the first batch would set scales anew in all data-dependent layers, taken or not.
    taken = {id(weights[name]) for name in compared.taken}
    if any(isinstance(layer, DataDependentConvolution) and id(layer.log_norm) in taken for layer in model.convolutions):
        model.data_initialised.assign(source.data_initialised.numpy())
    return compared


def _nothing_fits(path: str, compared: Initialization, model: NVAE, source: NVAE) -> str:
    """The message for a source of which no weight fits."""
    old, new = dataclasses.asdict(source.config), dataclasses.asdict(model.config)
    settings = [f"model.{name} is {old[name]!r} there and {new[name]!r} here" for name in new if old[name] != new[name]]
    differences = "; ".join(settings[:_NAMED_SETTINGS]) + (" ..." if len(settings) > _NAMED_SETTINGS else "")
    example = "".join(f", e.g. {compared.weight_shapes(name)}" for name in compared.misshapen[:1])
    return (
        f"train.initialize_from = {path!r}: none of its {len(compared.source_shapes)} weights fits one of the "
        f"{len(compared.shapes)} of this model{example}; {differences}. Set the model as it is there, or leave "
        "train.initialize_from out"
    )


def _read_source(path: str) -> tuple[str, NVAE]:
    """The source of weights: its name for messages, and a model that holds them."""
    place, where = find_run_folder(path), f"train.initialize_from = {path!r}"
    expected = "give the --workdir of a run of nvae-train, or a published file (.pt)"
    if not path or not place.exists():
        raise FileNotFoundError(f"{where}: no such file or folder; {expected}")
    if not place.is_dir() and place.suffix != ".pt":
        raise ValueError(f"{where}: neither a run folder nor a published file; {expected}")
    try:
        if place.is_file():
            return path, from_torch_checkpoint(place)
        run = load_run(place)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise ValueError(f"train.initialize_from: {error}") from error
    averaged = ", moving averages (EMA) of the weights" if run.config.optimizer.ema_momentum else ""
    return f"{path}, step {run.step:,}{averaged}", run.model


def _power_vectors(model: NVAE) -> dict[str, keras.Variable]:
    """The vectors of the spectral regularizer by the names of their kernels."""
    names = {id(weight): name for name, weight in named_weights(model).items()}
    kernels = (names[id(convolution.kernel)] for convolution in model.convolutions)
    return dict(zip(kernels, model.spectral_regularizer.vectors, strict=True))
