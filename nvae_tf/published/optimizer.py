"""The state of training: Adamax' moments as torch keeps them, both ways, and what the published form has no place for.

`{"state": {number: {"step", "exp_avg", "exp_inf"}}, "param_groups": [{"params": [number, ...], ...}]}`; what is trained
is numbered in the order of the file's own `state_dict`. This project's own state has a key of its own: vectors of power
iterations, u - epsilon (which `exp_inf` can't give back to the last bit), moving averages, and the step guard's.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.config import check
from nvae_tf.models import NVAE
from nvae_tf.optimization import NVAEAdamax, inner_optimizer
from nvae_tf.published.names import PublishedTensor, published_tensors
from nvae_tf.published.weights import BROKEN_WEIGHTS, check_finite, fill, published_shape, published_values
from nvae_tf.training.checkpoints import loss_scale, names_of_variables, training_parts
from nvae_tf.training.run import ModelForTraining

MOMENTUM, NORM, STEP = "exp_avg", "exp_inf", "step"
# The slots of NVAEAdamax that they fill; that of `exp_inf` has u - epsilon.
SLOTS = {MOMENTUM: "momentum", NORM: "norm"}
LEAVE_OUT = "import the file without its optimizer's state (--without_optimizer)"
# Beginnings of names of variables: of training, not of the model; and of those that never hold NaN for a while.
_OF_TRAINING = ("optimizer/", "metrics/", "others/", "loss_scale/")
_FINITE = ("model/", "averages/", "optimizer/")


class SavedOptimizer(NamedTuple):
    """The optimizer's state of a file."""

    step: int  # the number of steps that it has taken
    # Of every parameter: number and name in the file, place in the model, `exp_avg` and `exp_inf` if it had a gradient.
    moments: list[tuple[int, str, PublishedTensor, Mapping[str, np.ndarray]]]


def fill_slots(optimizer: keras.optimizers.Optimizer, saved: SavedOptimizer, are_mapped: bool) -> None:
    """Assigns the slots of an optimizer, which is built; see `fill`."""
    inner: NVAEAdamax = inner_optimizer(optimizer)
    for moment, lowered_by in ((MOMENTUM, 0.0), (NORM, _epsilon(inner))):
        arrays = []
        for _, name, tensor, moments in saved.moments:
            zeros = np.broadcast_to(np.float32(0.0), published_shape(tensor))  # without memory for them
            what = f"the optimizer's {moment} of {name}"
            arrays.append((_in_slot(tensor, inner, moment), what, moments.get(moment, zeros)))
        fill(arrays, "optimizer's state", LEAVE_OUT, are_mapped, lowered_by)


def _in_slot(tensor: PublishedTensor, optimizer: NVAEAdamax, moment: str) -> PublishedTensor:
    return tensor._replace(variable=getattr(optimizer.slots_of(tensor.variable), SLOTS[moment]))


def _epsilon(optimizer: NVAEAdamax) -> np.float64:
    return np.float64(np.float32(optimizer.epsilon))  # as the optimizer's kernel has it


def published_optimizer(model: NVAE, learning_rate: float, read: Callable[[Any], np.ndarray]) -> dict[str, Any]:
    """The state of a model's optimizer, which is built, in the published form; `read` gives a variable's value."""
    inner: NVAEAdamax = inner_optimizer(model.optimizer)

    def raised(variable: Any) -> np.ndarray:
        return np.float32(read(variable).astype(np.float64) + _epsilon(inner))

    tensors = [tensor for tensor in published_tensors(model) if tensor.variable.trainable]
    step = int(read(inner.iterations))
    momenta = published_values([_in_slot(tensor, inner, MOMENTUM) for tensor in tensors], read)
    norms = published_values([_in_slot(tensor, inner, NORM) for tensor in tensors], raised)
    moments = zip(momenta, norms, strict=True)
    state = {number: {STEP: step, MOMENTUM: each[0], NORM: each[1]} for number, each in enumerate(moments)}
    group = {"lr": learning_rate, "betas": (inner.beta_1, inner.beta_2), "eps": inner.epsilon}
    group |= {"weight_decay": inner.l2, "params": list(range(len(tensors)))}
    return {"state": state, "param_groups": [group]}


def saved_optimizer(
    found: Mapping[str, PublishedTensor], optimizer: keras.optimizers.Optimizer, content: Mapping[str, Any]
) -> SavedOptimizer | None:
    """The entry `optimizer` of a published file, with which `optimizer` is to continue; None where it is empty.

    `found` are the model's tensors by their names in the file, in the order of its `state_dict`. ValueError: the state
    is of another form, of an Adamax with other settings, or does not fit the parameters; no number of it is read.
    """
    state = content.get("state")
    if not state:
        return None
    groups, inner = content.get("param_groups"), inner_optimizer(optimizer)
    # Which parameters are in which of several groups does not follow from the file.
    is_one = isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], Mapping)
    _check(is_one, "must have exactly one group in param_groups, which gives its parameters' order")
    for name, needed in (("betas", (inner.beta_1, inner.beta_2)), ("eps", inner.epsilon)):
        made_with = groups[0].get(name, needed)
        try:
            is_same = np.shape(made_with) == np.shape(needed) and np.allclose(made_with, needed, rtol=1e-6, atol=0.0)
        except (TypeError, ValueError):
            is_same = False
        made_with = f"{name} = {reprlib.repr(made_with)}"
        _check(is_same, f"was made with {made_with}, and the run would go on with {needed}")
    numbers = groups[0].get("params")
    are_numbers = isinstance(numbers, list) and all(isinstance(number, int) for number in numbers)
    _check(are_numbers and len(set(numbers)) == len(numbers), "has params that are no list of different numbers")
    _check(isinstance(state, Mapping), "is no mapping from parameters to their moments")
    parameters = [(name, tensor) for name, tensor in found.items() if tensor.variable.trainable]
    counts = f"{len(numbers)} parameters, and the model has {len(parameters)}"
    _check(len(numbers) == len(parameters), f"is that of {counts}")
    foreign = next(iter(state.keys() - set(numbers)), None)
    _check(foreign is None, f"is of parameter {foreign!r}, which its params lack")
    moments = [
        (number, name, tensor, _moments(number, name, tensor, state.get(number, {})))
        for number, (name, tensor) in zip(numbers, parameters, strict=True)
    ]
    step = saved_step(content)
    _check(step is not None, f"has a parameter without {STEP}, or with a negative one")
    return SavedOptimizer(step, moments)


def saved_step(content: Mapping[str, Any]) -> int | None:
    """The number of steps in the optimizer's state of a published file; None where it lacks them."""
    try:
        steps = [int(saved[STEP]) for saved in content["state"].values()]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None
    return max(steps) if steps and min(steps) >= 0 else None


def _check(valid: bool, what: str) -> None:
    check(valid, f"the optimizer's state {what}; {LEAVE_OUT}")


def _moments(number: int, name: str, tensor: PublishedTensor, saved: Any) -> Mapping[str, np.ndarray]:
    if isinstance(saved, Mapping) and not saved:
        return {}
    needed = published_shape(tensor)
    for moment in SLOTS:
        array = saved.get(moment) if isinstance(saved, Mapping) else None
        has = f"shape {array.shape}, {array.dtype}" if isinstance(array, np.ndarray) else "no numbers"
        fits = isinstance(array, np.ndarray) and array.shape == needed and array.dtype.kind not in "biuc"
        _check(fits, f"of parameter {number}, {name}, has {has} as {moment}, and not floats of shape {needed}")
    return {moment: saved[moment] for moment in SLOTS}


def checkpoint_names(made: ModelForTraining) -> Iterator[tuple[str, Any]]:
    """Every variable of a training checkpoint with its name there, or with each of several; the optimizer is built."""
    optimizer = made.model.optimizer
    parts = training_parts(made.model, optimizer, made.variables)
    yield from names_of_variables(parts | {"loss_scale": loss_scale(optimizer)})


def own_variables(made: ModelForTraining) -> dict[str, Any]:
    """Variables that the published form has no place for, by one name each."""
    inner = inner_optimizer(made.model.optimizer)
    known = {id(tensor.variable) for tensor in published_tensors(made.model)} | {id(inner.iterations)}
    known |= {id(inner.slots_of(variable).momentum) for variable in made.model.trainable_variables}
    found: dict[int, tuple[str, Any]] = {}
    for name, variable in checkpoint_names(made):
        if id(variable) not in known:
            found.setdefault(id(variable), (name, variable))
    return dict(found.values())


def is_of_training(name: str) -> bool:
    """Whether a variable of this name in checkpoints belongs to training and not to the model."""
    return name.startswith(_OF_TRAINING)


def fill_own(made: ModelForTraining, state: Mapping[str, np.ndarray]) -> None:
    """Assigns `own_variables`; ValueError where one is unknown, has another shape or type, or is not finite."""
    variables = own_variables(made)
    for name, value in state.items():
        needed, found = list(variables[name].shape) if name in variables else "no such variable", list(value.shape)
        if found == needed:
            needed, found = tf.as_dtype(variables[name].dtype).name, value.dtype.name
        message = f"'nvae_tf' has {name}: {found} in the file, {needed} in this run's model"
        check(found == needed, f"{message}; the file is damaged, or of another version of this project")
        if name.startswith(_FINITE):
            check_finite(value, f"'nvae_tf' {name}", LEAVE_OUT if is_of_training(name) else BROKEN_WEIGHTS)
        variables[name].assign(value)
