"""Weights of a published checkpoint into a model."""

from collections.abc import Mapping

import numpy as np

from nvae_tf.checkpoints.published_names import PublishedTensor, published_tensors
from nvae_tf.models import NVAE

# Copies of other tensors and counters, which carry nothing.
_IGNORED_ENDINGS = (".weight_normalized", ".num_batches_tracked")


def load_published_weights(model: NVAE, state: Mapping[str, np.ndarray]) -> None:
    """Fills the model from a published `state_dict` of arrays in the published layout.

    Nothing is assigned unless every tensor fits.

    Raises:
      ValueError: tensors are missing, left over or of another shape; the message names them.
    """
    remaining = {name for name in state if not name.endswith(_IGNORED_ENDINGS)}
    values: dict[int, tuple] = {}
    missing, misshapen = [], []
    for tensor in published_tensors(model):
        name = next((name for name in tensor.names if name in state), None)
        if name is None:
            missing.append(tensor.names[-1])
            continue
        remaining.discard(name)
        variable, target = values.setdefault(
            id(tensor.variable), (tensor.variable, np.zeros(tensor.variable.shape, np.float32))
        )
        place = target if tensor.index is None else target[tensor.index]
        expected = tensor.to_published(place).shape
        array = np.asarray(state[name], np.float32)
        if array.shape != expected:
            misshapen.append(f"{name} has shape {array.shape}, this architecture needs {expected}")
            continue
        place[...] = tensor.from_published(array)
    _check(missing, misshapen, sorted(remaining))
    for variable, value in values.values():
        variable.assign(value)
    model.data_initialised.assign(1.0)


def published_array(tensor: PublishedTensor, value: np.ndarray) -> np.ndarray:
    """The part of a variable-shaped `value` (weights or gradients) that is this tensor, in the published layout."""
    return tensor.to_published(value if tensor.index is None else value[tensor.index])


def _check(missing: list[str], misshapen: list[str], left_over: list[str]) -> None:
    problems = [
        f"{len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("of another shape", misshapen), ("unknown", left_over))
        if names
    ]
    if problems:
        raise ValueError(
            "the published weights do not fit this architecture; tensors "
            + "; ".join(problems)
            + ". Take the settings from the same file as the weights"
        )
