"""Every tensor of a published checkpoint: its name, and the place in this model's stacked variables that it fills.

Published files hold one tensor a layer, channels first; here identical layers share one variable with a leading axis.
The names are found by walking the model's plan, so they hold for every architecture.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.flows import FlowPairs
from nvae_tf.layers import ResidualCells, StackedBatchNormalization, StackedConvolution, StackedSqueezeExcite
from nvae_tf.layers.residual_cells import OperationsBranch, SwishConvolution
from nvae_tf.models import NVAE


class PublishedTensor(NamedTuple):
    """One tensor of a published file.

    Attributes:
      names: the name under which it may be found, and another form of it where there is one.
      variable: the variable that holds it.
      index: its place on the variable's leading axis, or None where the variable is not a stack.
      to_published: turns this model's layout into the published one.
      from_published: the other way.
      canceled: whether a batch norm right after it takes its effect on the image away, so that its gradient is in
        theory zero but for the regularizers'.
      companion: the name of an entry that stands after it in published files and carries nothing: the counter of a
        norm, or the second copy of a plain kernel.
    """

    names: tuple[str, ...]
    variable: Any
    index: int | None
    to_published: Callable[[np.ndarray], np.ndarray]
    from_published: Callable[[np.ndarray], np.ndarray]
    canceled: bool = False
    companion: str | None = None


def _same(array: np.ndarray) -> np.ndarray:
    return array


COUNTER, COPY = "num_batches_tracked", "weight_normalized"
_VECTOR = (_same, _same)
_DENSE = (np.transpose, np.transpose)
_KERNEL = (lambda a: a.transpose(3, 2, 0, 1), lambda a: a.transpose(2, 3, 1, 0))
_LOG_NORM = (lambda a: a.reshape(-1, 1, 1, 1), lambda a: a.reshape(-1))
_CHANNELS_FIRST = (lambda a: a.transpose(2, 0, 1), lambda a: a.transpose(1, 2, 0))


def published_tensors(model: NVAE) -> Iterator[PublishedTensor]:
    """Walks the model and yields every tensor that a published file of the same architecture holds, in its order.

    That of the recorded files; they have no one-group model, whose `stem_decoder` is put where the tower would stand.
    """
    bottom_up, top_down = model.bottom_up, model.top_down
    yield PublishedTensor(("prior_ftr0",), top_down.start, None, *_CHANNELS_FIRST)
    yield from _convolution("stem", bottom_up.stem, 0)
    yield from _preprocess(model)
    yield from _encoder_tower(model)
    yield from _convolution("enc0.1", bottom_up.top, 0)
    yield from _posteriors(model)
    yield from _priors(model)
    yield from _flows(model)
    yield from _decoder_tower(model)
    yield from _postprocess(model)
    yield from _convolution("image_conditional.1", top_down.image, 0)


def _preprocess(model: NVAE) -> Iterator[PublishedTensor]:
    position = 0
    for block in model.bottom_up.preprocess:
        for stack in (block.cells, block.down):
            for index in range(stack.count if stack else 0):
                yield from _cell(f"pre_process.{position}", stack, index)
                position += 1


def _postprocess(model: NVAE) -> Iterator[PublishedTensor]:
    position = 0
    for block in model.top_down.postprocess:
        for stack in (block.up, block.cells):
            for index in range(stack.count if stack else 0):
                yield from _cell(f"post_process.{position}", stack, index)
                position += 1


def _encoder_tower(model: NVAE) -> Iterator[PublishedTensor]:
    position = 0
    for scale, mirrored in zip(model.bottom_up.scales, reversed(model.top_down.scales), strict=False):
        combiners = mirrored.feature_combiners
        for group in range(scale.num_groups):
            for index in range(group * scale.cells_per_group, (group + 1) * scale.cells_per_group):
                yield from _cell(f"enc_tower.{position}", scale.cells, index)
                position += 1
            index = scale.num_groups - 1 - group - mirrored.num_top_groups
            if index >= 0:
                yield from _convolution(f"enc_tower.{position}.conv", combiners, index)
                position += 1
        if scale.down is not None:
            yield from _cell(f"enc_tower.{position}", scale.down, 0)
            position += 1


def _groups(model: NVAE) -> Iterator[tuple[int, Any, int]]:
    """Every group's number from the top, its scale, and its place there."""
    number = 0
    for scale in model.top_down.scales:
        for index in range(scale.num_groups):
            yield number, scale, index
            number += 1


def _posteriors(model: NVAE) -> Iterator[PublishedTensor]:
    for group, scale, index in _groups(model):
        yield from _convolution(f"enc_sampler.{group}", scale.posteriors, index)


def _priors(model: NVAE) -> Iterator[PublishedTensor]:
    for group, scale, index in _groups(model):
        if index >= scale.num_top_groups:
            yield from _convolution(f"dec_sampler.{group - 1}.1", scale.priors, index - scale.num_top_groups)


def _flows(model: NVAE) -> Iterator[PublishedTensor]:
    for group, scale, index in _groups(model):
        for flow in range(scale.num_flows):
            name = f"nf_cells.{group * scale.num_flows + flow}"
            yield from _flow_pair(name, scale.flows, index * scale.num_flows + flow)


def _decoder_tower(model: NVAE) -> Iterator[PublishedTensor]:
    position = 0
    for _, scale, index in _groups(model):
        below = index - scale.num_top_groups
        if below >= 0:
            for cell in range(below * scale.cells_per_group, (below + 1) * scale.cells_per_group):
                yield from _cell(f"dec_tower.{position}", scale.cells, cell)
                position += 1
        combiner = "stem_decoder" if scale.is_vanilla else f"dec_tower.{position}.conv"
        yield from _convolution(combiner, scale.combiners, index)
        position += 1
        if scale.up is not None and index == scale.num_groups - 1:
            yield from _cell(f"dec_tower.{position}", scale.up, 0)
            position += 1


def _cell(name: str, cells: ResidualCells, index: int) -> Iterator[PublishedTensor]:
    if cells.skip is not None:
        parts = cells.skip.parts
        names = ["1"] if len(parts) == 1 else [f"conv_{number + 1}" for number in range(len(parts))]
        for part_name, part in zip(names, parts, strict=True):
            yield from _convolution(f"{name}.skip.{part_name}", part, index)
    if isinstance(cells.branch, OperationsBranch):
        yield from _operations(name, cells.branch, index)
    else:
        yield from _inverted_residual(f"{name}._ops.0.conv", cells.branch, index)
    if cells.gate is not None:
        yield from _squeeze_excite(f"{name}.se.se", cells.gate, index)


def _operations(name: str, branch: OperationsBranch, index: int) -> Iterator[PublishedTensor]:
    for number, operation in enumerate(branch.parts):
        *norms, convolution = operation.parts
        for norm in norms:
            if isinstance(operation, SwishConvolution):
                yield from _batch_norm(f"{name}._ops.{number}.bn_act", norm, index)
            else:
                yield from _batch_norm(f"{name}._ops.{number}.bn", norm, index, has_own_module=True)
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


def _flow_pair(name: str, pairs: FlowPairs, index: int) -> Iterator[PublishedTensor]:
    for cell_name, cell in zip(("cell1", "cell2"), pairs.parts, strict=True):
        for part_name, part in zip(("conv.convz.0", "conv.convz.2", "mu.conv_0"), cell.parts, strict=True):
            yield from _convolution(f"{name}.{cell_name}.{part_name}", part, index)


def _squeeze_excite(name: str, gate: StackedSqueezeExcite, index: int) -> Iterator[PublishedTensor]:
    for number, layer in (("0", "reduce"), ("2", "expand")):
        yield PublishedTensor((f"{name}.{number}.weight",), getattr(gate, f"{layer}_kernel"), index, *_DENSE)
        yield PublishedTensor((f"{name}.{number}.bias",), getattr(gate, f"{layer}_bias"), index, *_VECTOR)


def _convolution(
    name: str, stack: StackedConvolution, index: int, followed_by_norm: bool = False
) -> Iterator[PublishedTensor]:
    copy = f"{name}.{COPY}" if stack.log_norm is None else None
    yield PublishedTensor((f"{name}.weight",), stack.kernel, index, *_KERNEL, companion=copy)
    if stack.bias is not None:
        yield PublishedTensor((f"{name}.bias",), stack.bias, index, *_VECTOR, followed_by_norm)
    if stack.log_norm is not None:
        yield PublishedTensor((f"{name}.log_weight_norm",), stack.log_norm, index, *_LOG_NORM, followed_by_norm)


def _batch_norm(
    name: str,
    stack: StackedBatchNormalization,
    index: int,
    has_own_module: bool = False,
    canceled: bool = False,
) -> Iterator[PublishedTensor]:
    """A norm without a fused swish is wrapped once more in the published files, but not in all copies of them."""
    for tensor, variable in (
        ("weight", stack.gamma),
        ("bias", stack.beta),
        ("running_mean", stack.moving_mean),
        ("running_var", stack.moving_variance),
    ):
        names = (f"{name}.bn.{tensor}", f"{name}.{tensor}") if has_own_module else (f"{name}.{tensor}",)
        counter = names[0].replace(tensor, COUNTER) if tensor == "running_var" else None
        yield PublishedTensor(names, variable, index, *_VECTOR, canceled and tensor == "bias", counter)
