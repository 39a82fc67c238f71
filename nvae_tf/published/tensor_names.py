"""The tensors of published checkpoints: their names, and the place of each in this model's variables.

Published files hold one tensor a layer, channels first; here identical layers share one variable with a leading axis.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.config import ModelConfig
from nvae_tf.latent_plan import fewest_weights
from nvae_tf.layers import ResidualCells, StackedBatchNormalization, StackedConvolution
from nvae_tf.layers.residual_cells import OperationsBranch, SwishConvolution
from nvae_tf.models import NVAE


class PublishedTensor(NamedTuple):
    """One tensor of a published file."""

    names: tuple[str, ...]  # under which it may be found, the one that is written first
    variable: Any
    index: int | None  # its place on the variable's leading axis; None where that is no stack
    to_published: Callable[[np.ndarray], np.ndarray]  # this model's layout into the published one
    from_published: Callable[[np.ndarray], np.ndarray]
    canceled: bool = False  # whether a batch norm right after it cancels its effect: no gradient but regularizers'
    companion: str | None = None  # an entry after it without information: a norm's counter, or a plain kernel's copy


COUNTER, COPY = "num_batches_tracked", "weight_normalized"  # the last part of companions' names
_ONE_FILE = "Settings and weights must come from one file, and that file must be whole"
# Layouts: this model's into the published one, and back.
_VECTOR = (np.asarray, np.asarray)
_DENSE = (np.transpose, np.transpose)
_KERNEL = (lambda a: a.transpose(3, 2, 0, 1), lambda a: a.transpose(2, 3, 1, 0))
_LOG_NORM = (lambda a: a.reshape(-1, 1, 1, 1), lambda a: a.reshape(-1))
_CHANNELS_FIRST = (lambda a: a.transpose(2, 0, 1), lambda a: a.transpose(1, 2, 0))


def published_tensors(model: NVAE) -> Iterator[PublishedTensor]:
    """Every tensor that a published file of the model's architecture holds, in the order of the recorded files."""
    bottom_up, top_down = model.bottom_up, model.top_down
    groups = [(scale, index) for scale in top_down.scales for index in range(scale.num_groups)]  # from the top
    yield PublishedTensor(("prior_ftr0",), top_down.start, None, *_CHANNELS_FIRST)
    yield from _convolution("stem", bottom_up.stem, 0)
    yield from _tower("pre_process", _all((block.cells, block.down) for block in bottom_up.preprocess))
    yield from _tower("enc_tower", _encoder_tower(model))
    yield from _convolution("enc0.1", bottom_up.top, 0)
    for group, (scale, index) in enumerate(groups):
        yield from _convolution(f"enc_sampler.{group}", scale.posteriors, index)
    for group, (scale, index) in enumerate(groups):
        if index >= scale.num_top_groups:
            yield from _convolution(f"dec_sampler.{group - 1}.1", scale.priors, index - scale.num_top_groups)
    for group, (scale, index) in enumerate(groups):
        for flow in range(scale.num_flows):
            for cell_name, cell in zip(("cell1", "cell2"), scale.flows.parts, strict=True):
                name = f"nf_cells.{group * scale.num_flows + flow}.{cell_name}"
                for part_name, part in zip(("conv.convz.0", "conv.convz.2", "mu.conv_0"), cell.parts, strict=True):
                    yield from _convolution(f"{name}.{part_name}", part, index * scale.num_flows + flow)
    if model.plan.is_vanilla:
        # No recorded file is of such a model: it stands where the tower would be.
        yield from _convolution("stem_decoder", top_down.scales[0].combiners, 0)
    else:
        yield from _tower("dec_tower", _decoder_tower(groups))
    yield from _tower("post_process", _all((block.up, block.cells) for block in top_down.postprocess))
    yield from _convolution("image_conditional.1", top_down.image, 0)


def _tower(name: str, entries: Iterable[tuple[Any, int]]) -> Iterator[PublishedTensor]:
    """Cells and combiners, each a stack and an index there, in one running count."""
    for position, (stack, index) in enumerate(entries):
        if isinstance(stack, ResidualCells):
            yield from _cell(f"{name}.{position}", stack, index)
        else:
            yield from _convolution(f"{name}.{position}.conv", stack, index)


def _all(stacks: Iterable[Iterable[ResidualCells | None]]) -> Iterator[tuple[ResidualCells, int]]:
    return ((stack, index) for block in stacks for stack in block if stack for index in range(stack.count))


def _encoder_tower(model: NVAE) -> Iterator[tuple[Any, int]]:
    for scale, mirrored in zip(model.bottom_up.scales, reversed(model.top_down.scales), strict=False):
        for group in range(scale.num_groups):
            yield from ((scale.cells, group * scale.cells_per_group + cell) for cell in range(scale.cells_per_group))
            index = scale.num_groups - 1 - group - mirrored.num_top_groups
            if index >= 0:
                yield mirrored.feature_combiners, index
        if scale.down is not None:
            yield scale.down, 0


def _decoder_tower(groups: Iterable[tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
    for scale, index in groups:
        below = index - scale.num_top_groups
        if below >= 0:
            yield from ((scale.cells, below * scale.cells_per_group + cell) for cell in range(scale.cells_per_group))
        yield scale.combiners, index
        if scale.up is not None and index == scale.num_groups - 1:
            yield scale.up, 0


def _cell(name: str, cells: ResidualCells, index: int) -> Iterator[PublishedTensor]:
    if cells.skip is not None:
        for number, part in enumerate(cells.skip.parts, 1):
            part_name = f"conv_{number}" if len(cells.skip.parts) > 1 else "1"
            yield from _convolution(f"{name}.skip.{part_name}", part, index)
    if isinstance(cells.branch, OperationsBranch):
        yield from _operations(name, cells.branch, index)
    else:
        yield from _inverted_residual(f"{name}._ops.0.conv", cells.branch, index)
    if cells.gate is not None:
        for number, layer in (("0", "reduce"), ("2", "expand")):
            kernel, bias = (getattr(cells.gate, f"{layer}_{part}") for part in ("kernel", "bias"))
            yield PublishedTensor((f"{name}.se.se.{number}.weight",), kernel, index, *_DENSE)
            yield PublishedTensor((f"{name}.se.se.{number}.bias",), bias, index, *_VECTOR)


def _operations(name: str, branch: OperationsBranch, index: int) -> Iterator[PublishedTensor]:
    for number, operation in enumerate(branch.parts):
        *norms, convolution = operation.parts
        is_fused = isinstance(operation, SwishConvolution)
        for norm in norms:
            norm_name = f"{name}._ops.{number}.{'bn_act' if is_fused else 'bn'}"
            yield from _batch_norm(norm_name, norm, index, has_own_module=not is_fused)
        followed_by_norm = bool(norms) and number + 1 < len(branch.parts)
        yield from _convolution(f"{name}._ops.{number}.conv_0", convolution, index, followed_by_norm)


def _inverted_residual(name: str, branch, index: int) -> Iterator[PublishedTensor]:
    first = 1 if branch.upsampling else 0
    norm, widen, depthwise, narrow, last = branch.parts
    yield from _batch_norm(f"{name}.{first}", norm, index, has_own_module=True, canceled=True)
    yield from _convolution(f"{name}.{first + 1}.conv.0", widen, index)
    yield from _batch_norm(f"{name}.{first + 1}.conv.1", depthwise.norm, index)
    yield from _convolution(f"{name}.{first + 2}.conv.0", depthwise.convolution, index)
    yield from _batch_norm(f"{name}.{first + 2}.conv.1", narrow.norm, index)
    yield from _convolution(f"{name}.{first + 3}", narrow.convolution, index)
    yield from _batch_norm(f"{name}.{first + 4}", last, index, has_own_module=True)


def _convolution(name: str, stack: StackedConvolution, index: int, canceled: bool = False) -> Iterator[PublishedTensor]:
    copy = f"{name}.{COPY}" if stack.log_norm is None else None
    yield PublishedTensor((f"{name}.weight",), stack.kernel, index, *_KERNEL, companion=copy)
    if stack.bias is not None:
        yield PublishedTensor((f"{name}.bias",), stack.bias, index, *_VECTOR, canceled)
    if stack.log_norm is not None:
        yield PublishedTensor((f"{name}.log_weight_norm",), stack.log_norm, index, *_LOG_NORM, canceled)


def _batch_norm(
    name: str, stack: StackedBatchNormalization, index: int, has_own_module: bool = False, canceled: bool = False
) -> Iterator[PublishedTensor]:
    """A norm without a fused swish is wrapped once more, but not in all copies of the published files."""
    variables = {"weight": stack.gamma, "bias": stack.beta}
    variables |= {"running_mean": stack.moving_mean, "running_var": stack.moving_variance}
    for tensor, variable in variables.items():
        names = (f"{name}.bn.{tensor}", f"{name}.{tensor}") if has_own_module else (f"{name}.{tensor}",)
        counter = names[0].replace(tensor, COUNTER) if tensor == "running_var" else None
        yield PublishedTensor(names, variable, index, *_VECTOR, canceled and tensor == "bias", counter)


class Match(NamedTuple):
    """Which tensors of a file fit an architecture, by their names in the file."""

    fitting: dict[str, PublishedTensor]
    ignored: set[str]  # carry no information
    missing: list[str]
    misshapen: dict[str, tuple[int, ...]]  # the shape that the architecture needs
    unknown: list[str]


def match(model: NVAE, state: Mapping[str, np.ndarray]) -> Match:
    """Compares names and shapes of a state with what the model needs; reads no number."""
    fitting, missing, misshapen = {}, [], {}
    for tensor in published_tensors(model):
        name = next((name for name in tensor.names if name in state), None)
        if name is None:
            missing.append(tensor.names[-1])
        elif np.shape(state[name]) != published_shape(tensor):
            misshapen[name] = published_shape(tensor)
        else:
            fitting[name] = tensor
    layers = {name.rpartition(".")[0] for name in (*fitting, *misshapen)}
    ignored = state.keys() & {f"{layer}.{entry}" for layer in layers for entry in (COPY, COUNTER)}
    unknown = sorted(state.keys() - fitting.keys() - misshapen.keys() - ignored)
    return Match(fitting, ignored, missing, misshapen, unknown)


def load_published_weights(model: NVAE, state: Mapping[str, np.ndarray]) -> None:
    """Fills the model from a `state_dict` of arrays; ValueError, before anything is assigned, where they do not fit."""
    fitting, _, missing, misshapen, unknown = match(model, state)
    shapes = [f"{name} has shape {np.shape(state[name])}, not {needed}" for name, needed in misshapen.items()]
    faults = {"missing": missing, "of another shape": shapes, "unknown": unknown}
    if problems := [f"{len(names)} {what}: {', '.join(names[:5])}" for what, names in faults.items() if names]:
        fault = f"the published weights do not fit this architecture; tensors: {'; '.join(problems)}"
        raise ValueError(f"{fault}. {_ONE_FILE}")
    values: dict[int, tuple[Any, np.ndarray]] = {}
    for name, tensor in fitting.items():
        variable, place = tensor.variable, ... if tensor.index is None else tensor.index
        _, value = values.setdefault(id(variable), (variable, np.empty(variable.shape, np.float32)))
        with np.errstate(over="ignore"):  # a number that is too large for float32 becomes infinity
            value[place] = tensor.from_published(state[name])
        if not np.isfinite(value[place]).all():
            raise ValueError(f"{name} holds NaN or infinity; take a file from before its training diverged")
    while values:  # each is freed once it is assigned
        _, (variable, value) = values.popitem()
        variable.assign(value)
    model.data_initialised.assign(1.0)


def published_state(model: NVAE, step: int) -> dict[str, Any]:
    """The `state_dict` of a published file, torch tensors, in its order and with the entries without information."""
    import torch

    state = {}
    for tensor in published_tensors(model):
        # A copy: a view would bring the memory of its base into the file.
        weight = torch.from_numpy(np.array(published_array(tensor, tensor.variable), order="C"))
        state[tensor.names[0]] = weight
        if tensor.companion:
            state[tensor.companion] = torch.tensor(step) if tensor.companion.endswith(COUNTER) else weight
    return state


def published_array(tensor: PublishedTensor, value: Any) -> np.ndarray:
    """The part of a variable-shaped `value` (weights or gradients) that is this tensor, in the published layout."""
    return tensor.to_published(np.asarray(value if tensor.index is None else value[tensor.index]))


def published_shape(tensor: PublishedTensor) -> tuple[int, ...]:
    """The shape of a tensor in published files; takes no memory for its numbers."""
    return published_array(tensor, np.broadcast_to(np.float32(0.0), tuple(tensor.variable.shape))).shape


def check_implied_size(config: ModelConfig, state: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where an architecture has more numbers than a file, so that it is never built."""
    needed, numbers = fewest_weights(config), sum(value.size for value in state.values())
    if needed > numbers:
        fits = "the published weights do not fit this architecture"
        raise ValueError(f"{fits}: it has at least {needed:,} numbers, and the file {numbers:,}. {_ONE_FILE}")
