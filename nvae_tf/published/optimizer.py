"""The optimizer's state of a published checkpoint: Adamax' moments of every parameter, as torch keeps them.

`{"state": {number: {"step", "exp_avg", "exp_inf"}}, "param_groups": [{"params": [number, ...], ...}]}`; parameters are
numbered in the order of the file's own `state_dict`; running statistics, and whatever else is not trained, don't count.
"""

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from nvae_tf.models import NVAE
from nvae_tf.optimization import NVAEAdamax, inner_optimizer
from nvae_tf.published.names import PublishedTensor, published_tensors
from nvae_tf.published.stacks import Piece
from nvae_tf.published.weights import published_shape
from nvae_tf.training.finite_numbers import only_finite

MOMENTUM, NORM, STEP = "exp_avg", "exp_inf", "step"
LEAVE_OUT = "import the file without its optimizer's state (--without_optimizer)"


class SavedMoments(NamedTuple):
    """The moments of one parameter in a file.

    Attributes:
      number: the parameter's in the file.
      name: its name in the file's `state_dict`.
      tensor: its place in the model.
      arrays: `exp_avg` and `exp_inf` in the published layout; empty for a parameter that never had a gradient.
    """

    number: int
    name: str
    tensor: PublishedTensor
    arrays: Mapping[str, np.ndarray]


class SavedOptimizer(NamedTuple):
    """The optimizer's state of a file: the steps that it has taken, and the moments of all parameters."""

    step: int
    moments: list[SavedMoments]

    def pieces(self, optimizer: keras.optimizers.Optimizer) -> Iterator[Piece]:
        """The arrays for the slots of an optimizer, which must be built; converting one with NaN raises ValueError."""
        inner: NVAEAdamax = inner_optimizer(optimizer)
        for _, name, tensor, arrays in self.moments:
            slots, convert = inner.slots_of(tensor.variable), tensor.from_published

            def lowered(norm: np.ndarray, convert=convert) -> np.ndarray:
                return convert(norm_from_published(norm, inner))

            if not arrays:
                arrays = dict.fromkeys((MOMENTUM, NORM), np.zeros(published_shape(tensor), np.float32))
            for slot, moment, into in ((slots.momentum, MOMENTUM, convert), (slots.norm, NORM, lowered)):
                checked = only_finite(into, f"the optimizer's {moment} of {name}", LEAVE_OUT)
                yield Piece(slot, tensor.index, arrays[moment], checked)


def norm_from_published(norm: np.ndarray, optimizer: NVAEAdamax) -> np.ndarray:
    """The slot of `exp_inf`: u - epsilon, in double precision."""
    return norm.astype(np.float64) - _epsilon(optimizer)


def published_norm(norm: np.ndarray, optimizer: NVAEAdamax) -> np.ndarray:
    """`exp_inf` of the slot, which has u - epsilon."""
    return np.float32(norm.astype(np.float64) + _epsilon(optimizer))


def trained_tensors(model: NVAE) -> list[PublishedTensor]:
    """The tensors that published optimizers count, in the order of `published_tensors`."""
    return [tensor for tensor in published_tensors(model) if tensor.variable.trainable]


def saved_optimizer(
    found: Mapping[str, PublishedTensor], optimizer: keras.optimizers.Optimizer, content: Mapping[str, Any]
) -> SavedOptimizer | None:
    """Looks at the optimizer's state of a published file; no number of the moments is read.

    Args:
      found: the model's tensors by their names in the file, in the order of its `state_dict`.
      optimizer: the optimizer that is to go on from there.
      content: what the file has under `optimizer`, its tensors as arrays.

    Returns:
      What was found; None where the file has no optimizer's state.

    Raises:
      ValueError: it is of another form, of an Adamax with other settings, or does not fit the parameters; the message
        names the first.
    """
    state = content.get("state")
    if not state:
        return None
    group = _only_group(content)
    _check_settings(group, inner_optimizer(optimizer))
    numbers = _numbers(group)
    parameters = [(name, tensor) for name, tensor in found.items() if tensor.variable.trainable]
    if not isinstance(state, Mapping):
        raise ValueError(f"the optimizer's state is no mapping from parameters to their moments; {LEAVE_OUT}")
    if len(numbers) != len(parameters):
        raise ValueError(
            f"the optimizer's state is that of {len(numbers)} parameters, and the model has {len(parameters)}; "
            + LEAVE_OUT
        )
    if foreign := state.keys() - set(numbers):
        raise ValueError(
            f"the optimizer's state is of parameter {next(iter(foreign))!r}, which its params lack; {LEAVE_OUT}"
        )
    moments = [
        SavedMoments(number, name, tensor, _moments(number, name, tensor, state.get(number, {})))
        for number, (name, tensor) in zip(numbers, parameters, strict=True)
    ]
    return SavedOptimizer(max(_step(number, saved) for number, saved in state.items()), moments)


def saved_step(content: Mapping[str, Any]) -> int | None:
    """The steps that the optimizer of a published file has taken; None where the file does not tell.

    Args:
      content: what the file has under `optimizer`, its tensors as arrays.
    """
    state = content.get("state")
    if not isinstance(state, Mapping) or not state:
        return None
    try:
        return max(_step(number, saved) for number, saved in state.items())
    except ValueError:
        return None


def _epsilon(optimizer: NVAEAdamax) -> np.float64:
    # As the optimizer's kernel has it.
    return np.float64(np.float32(optimizer.epsilon))


def _only_group(content: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = content.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise ValueError(f"the optimizer's state has no param_groups that tell its parameters' order; {LEAVE_OUT}")
    if len(groups) != 1:
        # Which parameters are in which of several the file does not tell.
        raise ValueError(f"the optimizer's state has {len(groups)} param_groups, and not one; {LEAVE_OUT}")
    return groups[0]


def _check_settings(group: Mapping[str, Any], optimizer: NVAEAdamax) -> None:
    for name, needed in (("betas", (optimizer.beta_1, optimizer.beta_2)), ("eps", optimizer.epsilon)):
        if name in group and not _is_close(group[name], needed):
            raise ValueError(
                f"the optimizer's state was made with {name} = {reprlib.repr(group[name])}, and the run would go on "
                f"with {needed}; {LEAVE_OUT}"
            )


def _is_close(found: Any, needed: float | tuple[float, float]) -> bool:
    try:
        return np.shape(found) == np.shape(needed) and np.allclose(found, needed, rtol=1e-6, atol=0.0)
    except (TypeError, ValueError):
        return False


def _numbers(group: Mapping[str, Any]) -> list[int]:
    numbers = group.get("params")
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"the optimizer's state has params that are no list of numbers; {LEAVE_OUT}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"the optimizer's state has params that name a parameter twice; {LEAVE_OUT}")
    return numbers


def _moments(number: int, name: str, tensor: PublishedTensor, saved: Any) -> dict[str, np.ndarray]:
    if isinstance(saved, Mapping) and not saved:
        return {}
    what, needed = f"the optimizer's state of parameter {number}, {name},", published_shape(tensor)
    for moment in (MOMENTUM, NORM):
        if not isinstance(saved, Mapping) or not isinstance(saved.get(moment), np.ndarray):
            raise ValueError(f"{what} has no {moment}, so it is no Adamax' of the form that is known; {LEAVE_OUT}")
        if saved[moment].dtype.kind in "biuc":
            raise ValueError(f"{what} has {moment} of type {saved[moment].dtype}, and not of floats; {LEAVE_OUT}")
        if saved[moment].shape != needed:
            raise ValueError(f"{what} has {moment} of shape {saved[moment].shape}, and not {needed}; {LEAVE_OUT}")
    return {moment: saved[moment] for moment in (MOMENTUM, NORM)}


def _step(number: Any, saved: Any) -> int:
    try:
        step = int(saved[STEP])
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the optimizer's state of parameter {number} does not tell its step; {LEAVE_OUT}") from error
    if step < 0:
        raise ValueError(f"the optimizer's state of parameter {number} is of step {step}; {LEAVE_OUT}")
    return step
