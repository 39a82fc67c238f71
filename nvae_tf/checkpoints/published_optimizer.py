"""The optimizer's state of a published checkpoint: Adamax' moments of every parameter, as torch keeps them.

`{"state": {number: {"step", "exp_avg", "exp_inf"}}, "param_groups": [{"params": [number, ...], ...}]}`; parameters are
numbered in the order of the `state_dict`, running statistics left out.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from nvae_tf.checkpoints.published_names import PublishedTensor, published_tensors
from nvae_tf.checkpoints.published_weights import published_shape
from nvae_tf.checkpoints.stacks import Piece
from nvae_tf.models import NVAE
from nvae_tf.optimization import NVAEAdamax

MOMENTUM, NORM, STEP = "exp_avg", "exp_inf", "step"
_LEAVE_OUT = "import the file without its optimizer's state (--without_optimizer)"


class SavedMoments(NamedTuple):
    """The moments of one parameter in a file.

    Attributes:
      number: the parameter's in the file.
      tensor: the parameter.
      arrays: `exp_avg` and `exp_inf` in the published layout; empty for a parameter that never had a gradient.
    """

    number: Any
    tensor: PublishedTensor
    arrays: Mapping[str, np.ndarray]


class SavedOptimizer(NamedTuple):
    """The optimizer's state of a file: the steps that it has taken, and the moments of all parameters."""

    step: int
    moments: list[SavedMoments]

    def pieces(self, optimizer: keras.optimizers.Optimizer) -> Iterator[Piece]:
        """The arrays for the slots of an optimizer, which must be built."""
        inner: NVAEAdamax = getattr(optimizer, "inner_optimizer", optimizer)
        # As the optimizer's kernel has it.
        epsilon = np.float64(np.float32(inner.epsilon))
        for _, tensor, arrays in self.moments:
            slots, convert = inner.slots_of(tensor.variable), tensor.from_published

            def lowered(norm: np.ndarray, convert=convert) -> np.ndarray:
                return convert(norm.astype(np.float64) - epsilon)

            if arrays:
                yield Piece(slots.momentum, tensor.index, arrays[MOMENTUM], convert)
                yield Piece(slots.norm, tensor.index, arrays[NORM], lowered)
            else:
                untouched = np.zeros(published_shape(tensor), np.float32)
                yield Piece(slots.momentum, tensor.index, untouched, convert)
                yield Piece(slots.norm, tensor.index, untouched, lowered)


def trained_tensors(model: NVAE) -> list[PublishedTensor]:
    """The tensors that published optimizers count, in their order."""
    return [tensor for tensor in published_tensors(model) if tensor.variable.trainable]


def saved_optimizer(model: NVAE, content: Mapping[str, Any]) -> SavedOptimizer | None:
    """Looks at the optimizer's state of a published file; no number of the moments is read.

    Args:
      model: the model of the file's architecture.
      content: what the file has under `optimizer`, its tensors as arrays.

    Returns:
      What was found; None where the file has no optimizer's state.

    Raises:
      ValueError: it is of another form, or does not fit the parameters; the message names the first.
    """
    state = content.get("state")
    if not state:
        return None
    tensors, numbers = trained_tensors(model), _numbers(content)
    if not isinstance(state, Mapping) or len(numbers) != len(tensors) or state.keys() - set(numbers):
        raise ValueError(
            f"the optimizer's state is that of {len(numbers)} parameters, and the model has {len(tensors)}; "
            + _LEAVE_OUT
        )
    moments = [
        SavedMoments(number, tensor, _moments(number, tensor, state.get(number, {})))
        for number, tensor in zip(numbers, tensors, strict=True)
    ]
    return SavedOptimizer(max(_step(number, saved) for number, saved in state.items()), moments)


def _numbers(content: Mapping[str, Any]) -> list:
    groups = content.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise ValueError(f"the optimizer's state has no param_groups that tell its parameters' order; {_LEAVE_OUT}")
    return [number for group in groups for number in group.get("params", ())]


def _moments(number: Any, tensor: PublishedTensor, saved: Any) -> dict[str, np.ndarray]:
    if saved == {}:
        return {}
    what, needed = f"the optimizer's state of parameter {number}, {tensor.names[0]},", published_shape(tensor)
    for name in (MOMENTUM, NORM):
        if not isinstance(saved, Mapping) or not isinstance(saved.get(name), np.ndarray):
            raise ValueError(f"{what} has no {name}, so it is no Adamax' of the form that is known; {_LEAVE_OUT}")
        if saved[name].shape != needed:
            raise ValueError(f"{what} has {name} of shape {saved[name].shape}, and not {needed}; {_LEAVE_OUT}")
    return {name: saved[name] for name in (MOMENTUM, NORM)}


def _step(number: Any, saved: Mapping[str, Any]) -> int:
    try:
        return int(saved[STEP])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the optimizer's state of parameter {number} does not tell its step; {_LEAVE_OUT}") from error
