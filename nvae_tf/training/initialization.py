"""A new run that starts from the weights of another run, or of a published file (fine-tuning)."""

import keras

from nvae_tf.layers import DataDependentConvolution
from nvae_tf.models import NVAE
from nvae_tf.published.torch_file import from_torch_checkpoint
from nvae_tf.runs.checkpoints import named_weights
from nvae_tf.runs.loading import load_run
from nvae_tf.runs.sharing import find_run_folder

# The other weights of a model are state of its training, or follow the kernels.
_NETWORK = ("bottom_up/", "top_down/")


def initialize(model: NVAE, path: str) -> tuple[list[str], str]:
    """Gives a model all weights of a source that fit: weights, running batch statistics, vectors of power iterations.

    A weight is taken if it has the same name and shape in the source, a stack of layers only whole. `path` is a run
    folder, whose weights are taken as `load` gives them, or a published file (.pt). Returns the names of the weights
    that were taken, and a report about all. FileNotFoundError: there is nothing at `path`. ValueError: it is neither of
    both, or damaged, or none of its weights fits; nothing is assigned then.
    """
    name_of_source, source = _read_source(path)
    weights, source_weights = (
        {name: weight for name, weight in named_weights(one).items() if name.startswith(_NETWORK)}
        for one in (model, source)
    )
    both = [name for name in weights if name in source_weights]
    taken = [name for name in both if weights[name].shape == source_weights[name].shape]
    if not taken:
        pairs = zip(vars(source.config).items(), vars(model.config).values(), strict=True)
        changed = [f"model.{name} is {old!r} there and {new!r} here" for (name, old), new in pairs if old != new]
        raise ValueError(
            f"train.initialize_from = {path!r}: none of its {len(source_weights)} weights fits one of the "
            f"{len(weights)} of this model: {'; '.join(changed[:5])}. Set the model as it is there"
        )
    for name in taken:
        weights[name].assign(source_weights[name].numpy())
    # The vectors of kernels are numbered, and another architecture numbers them otherwise.
    vectors, source_vectors = _power_vectors(model), _power_vectors(source)
    for kernel in set(taken) & vectors.keys():
        vectors[kernel].assign(source_vectors[kernel].numpy())
    # With new kernels among them the first step iterates longer, as that of a new model does.
    if set(taken) >= vectors.keys():
        model.spectral_regularizer.warmed_up.assign(source.spectral_regularizer.warmed_up.numpy())
    # Otherwise the first batch would set scales anew in all data-dependent layers, taken or not.
    taken_ids = {id(weights[name]) for name in taken}
    dependent = (layer for layer in model.convolutions if isinstance(layer, DataDependentConvolution))
    if any(id(layer.log_norm) in taken_ids for layer in dependent):
        model.data_initialised.assign(source.data_initialised.numpy())
    return taken, _report(name_of_source, weights, source_weights, taken)


def _report(source: str, weights: dict, source_weights: dict, taken: list[str]) -> str:
    shapes = [{name: list(weight.shape) for name, weight in each.items()} for each in (source_weights, weights)]
    misshapen = weights.keys() & source_weights.keys() - {*taken}
    others = {
        "Not taken, because of another shape in the source": [
            f"{name}: {shapes[0][name]} in the source, {shapes[1][name]} here" for name in misshapen
        ],
        "Not taken, because they are not in the source": weights.keys() - source_weights.keys(),
        "Not used of the source, because this model has no such weights": source_weights.keys() - weights.keys(),
    }
    which = f"all {len(taken)}" if len(taken) == len(weights) else f"{len(taken)} of {len(weights)}"
    lines = [f"Starts from {source}: {which} weights taken."]
    for heading, names in others.items():
        lines += [f"{heading}: {len(names)}", *(f"  {name}" for name in sorted(names))] if names else []
    return "\n".join(lines)


def _read_source(path: str) -> tuple[str, NVAE]:
    """The source of weights: its name for messages, and a model that holds them."""
    place = find_run_folder(path)
    if not place.is_dir() and (not place.is_file() or place.suffix != ".pt"):
        expected = "give the --workdir of a run of nvae-train, or a published file (.pt)"
        raise FileNotFoundError(f"train.initialize_from = {path!r}: no such folder or published file; {expected}")
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
