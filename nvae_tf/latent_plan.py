"""The topology of the hierarchy as data (Vahdat & Kautz 2020, section 3.1 and figure 2); no TensorFlow.

The network is built by walking this plan, and the names of published files and parameter counts follow from it.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from nvae_tf.config import MOST_CHANNELS, ModelConfig, check, check_choice, shown, whole_number

_WARNINGS_SHOWN: dict = {}  # what this process has been warned of

HIDDEN_MULTIPLE = 6  # hidden channels of a flow cell for each channel of the latent
# More than one machine can train: such settings are a mistake, or from a damaged or hostile file.
MOST_LAYERS, MOST_WEIGHTS = 10_000, 2_000_000_000


class ConvolutionBranch(NamedTuple):
    """A residual branch of plain operations in a row: `bnswish`, `bnelu`, `elu` or the dilated `bnswish5`."""

    operations: tuple[str, ...]


class InvertedBranch(NamedTuple):
    """A residual branch that widens by `expansion`, convolves depthwise (or in `groups` groups), and narrows."""

    kernel_size: int
    expansion: int
    groups: int | None = None


# A class of Keras layers is a residual branch of one's own, see `register_cell`.
Branch = ConvolutionBranch | InvertedBranch | type


class CellSet(NamedTuple):
    """Which residual branch stands in each of the four parts of the network."""

    preprocess: Branch
    encoder: Branch
    decoder: Branch
    postprocess: Branch


def _inverted_decoder(*encoder: str) -> CellSet:
    branch = ConvolutionBranch(encoder)
    return CellSet(branch, branch, InvertedBranch(5, 6), InvertedBranch(5, 3))


_BNSWISH = ConvolutionBranch(("bnswish", "bnswish"))
_THREE_TIMES, _SIX_TIMES, _SIX_TIMES_11 = InvertedBranch(5, 3), InvertedBranch(5, 6), InvertedBranch(11, 6)
_IN_8_GROUPS = InvertedBranch(5, 3, groups=8)

CELL_SETS = {
    "res_mbconv": _inverted_decoder("bnswish", "bnswish"),
    "res_bnswish": CellSet(*[_BNSWISH] * 4),
    "res_bnelu": CellSet(*[ConvolutionBranch(("bnelu", "bnelu"))] * 4),
    "res_elu": CellSet(*[ConvolutionBranch(("elu", "elu"))] * 4),
    "mbconv_sep": CellSet(_THREE_TIMES, _SIX_TIMES, _SIX_TIMES, _THREE_TIMES),
    "mbconv_sep11": CellSet(_THREE_TIMES, _SIX_TIMES_11, _SIX_TIMES_11, _THREE_TIMES),
    "mbconv_den": CellSet(_IN_8_GROUPS, _SIX_TIMES, _SIX_TIMES, _IN_8_GROUPS),
    "res53_mbconv": _inverted_decoder("bnswish5", "bnswish"),
    "res35_mbconv": _inverted_decoder("bnswish", "bnswish5"),
    "res55_mbconv": _inverted_decoder("bnswish5", "bnswish5"),
    "mbconv_res": CellSet(_THREE_TIMES, _SIX_TIMES, _BNSWISH, _BNSWISH),
}


class Scale(NamedTuple):
    """One resolution of the hierarchy; `groups` are its latent groups counted from the top of the hierarchy (0)."""

    height: int
    width: int
    encoder_channels: int
    decoder_channels: int
    groups: tuple[int, ...]


class Block(NamedTuple):
    """One block of the pre- or post-processing: `num_cells` cells, one of which changes the resolution."""

    channels_in: int
    channels_out: int
    num_cells: int


@dataclasses.dataclass(frozen=True)
class LatentPlan:
    """Scales from the smallest (top) to the largest, and the blocks around them."""

    scales: tuple[Scale, ...]
    preprocess: tuple[Block, ...]
    postprocess: tuple[Block, ...]
    num_latent_per_group: int
    cells: CellSet

    @property
    def num_groups(self) -> int:
        """Number of latent groups over all scales."""
        return sum(len(scale.groups) for scale in self.scales)

    @property
    def is_vanilla(self) -> bool:
        """Whether this is the one-group model without towers."""
        return self.num_groups == 1

    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """`(height, width, channels)` of every group's latent, in top-down order."""
        return tuple((s.height, s.width, self.num_latent_per_group) for s in self.scales for _ in s.groups)


def values_of_groups(values: Sequence[Any], shapes: Sequence[tuple[int, int, int]], what: str) -> list[Any]:
    """One value for every group, top group first, from one for every scale (the smallest first) or for every group.

    `shapes` are of the groups' latents, `what` is the values' name in the plural, for the ValueError.
    """
    scales = list(dict.fromkeys(shape[:2] for shape in shapes))
    if len(values) == len(shapes):
        return list(values)
    if len(values) == len(scales):
        return [values[scales.index(shape[:2])] for shape in shapes]
    rule = f"one for each of the {len(scales)} scales or one for each of the {len(shapes)} groups"
    raise ValueError(f"{len(values)} {what}: give one for all, {rule}")


def feature_names(plan: LatentPlan, groups: str | Sequence[int] = "all", pool: str | None = None) -> list[str]:
    """The names of the columns of `NVAE.features`, such as `group0_y1_x0_c3`, or `group0_c3` where they are pooled."""
    names = []
    for group in feature_groups(plan, groups, pool):
        height, width, channels = plan.latent_shapes()[group]
        places = [f"_y{y}_x{x}" for y in range(height) for x in range(width)] if pool is None else [""]
        names += [f"group{group}{place}_c{channel}" for place in places for channel in range(channels)]
    return names


def feature_groups(plan: LatentPlan, groups: str | Sequence[int], pool: str | None) -> tuple[int, ...]:
    """The numbers of latent groups; ValueError where there is no such group, or no such pooling."""
    check(pool in (None, "mean"), f'pool = {shown(pool)}: must be None or "mean"')
    if isinstance(groups, str):
        check_choice("groups", groups, ("all",), 'not "all", nor a list of numbers')
        groups = range(plan.num_groups)
    check(hasattr(groups, "__len__") and len(groups), f'groups = {shown(groups)}: give "all", or a list as [0, 1]')
    return tuple(whole_number("groups", group, 0, plan.num_groups - 1) for group in groups)


def inference_bytes_per_image(config: ModelConfig) -> int:
    """Estimates, on the safe side, the bytes of a pass of inference for each image: four layers of the widest cells."""
    # Inside of the decoder's cells at the image's own resolution, with six times its channels, in float32.
    return 4 * 4 * config.network_height * config.network_width * 6 * config.num_channels_decoder


def latent_plan(config: ModelConfig) -> LatentPlan:
    """Lays out the hierarchy that the settings ask for; ValueError where they do not fit, or make too large a model."""
    _check_size(fewest_weights(config), MOST_WEIGHTS, "weights")
    height, width, *frame = config.image_height, config.image_width, config.network_height, config.network_width
    if (times := math.prod(frame) / (height * width)) > 2:
        text = f"images of {height} x {width} are padded with zeros to {frame[0]} x {frame[1]} (height x width)"
        text += f", {times:.3g} times the work: lower model.num_latent_scales = {config.num_latent_scales}, or padded_*"
        # Without a line of source text: one line on a terminal.
        warnings.warn_explicit(text, UserWarning, filename="nvae_tf", lineno=0, registry=_WARNINGS_SHOWN)
    return _layout(config)


def _layout(config: ModelConfig) -> LatentPlan:
    _check_architecture(config)
    groups, indices = config.num_groups_per_scale, range(1, config.num_latent_scales)
    smaller = [groups // 2**index if config.adaptive_groups else groups for index in indices]
    counts = [groups, *(max(count, config.min_groups_per_scale) for count in smaller)]  # largest scale first
    _check_size(sum(counts), MOST_LAYERS, "layers")  # first: the plan has a place for every group
    encoder, decoder = config.num_channels_encoder, config.num_channels_decoder
    scales, first_group = [], 0
    for index, count in reversed(list(enumerate(counts))):
        factor = 2 ** (config.num_preprocess_blocks + index)
        size = config.network_height // factor, config.network_width // factor
        groups = tuple(range(first_group, first_group + count))
        scales.append(Scale(*size, encoder * factor, decoder * factor, groups))
        first_group += count
    halvings = range(config.num_preprocess_blocks)
    preprocess = [Block(encoder * 2**i, encoder * 2 ** (i + 1), config.num_preprocess_cells) for i in halvings]
    postprocess = [Block(decoder * 2 ** (i + 1), decoder * 2**i, config.num_postprocess_cells) for i in halvings[::-1]]
    num_latent, cells = config.num_latent_per_group, CELL_SETS[config.cell_set]
    return LatentPlan(tuple(scales), tuple(preprocess), tuple(postprocess), num_latent, cells)


def _check_size(asked: int, most: int, what: str) -> None:
    fix = "use fewer channels, latents, groups, cells, flows or classes, or smaller images"
    check(asked <= most, f"model.num_*: at least {asked:,} {what}, and a model may have {most:,}; {fix}")


def fewest_weights(config: ModelConfig) -> int:
    """A lower bound of the numbers in all weights, which counts most of them; ValueError where settings do not fit."""
    plan, latent = _layout(config), config.num_latent_per_group
    top, flow = plan.scales[0], 2 * 9 * latent * HIDDEN_MULTIPLE * latent
    weights = top.height * top.width * top.decoder_channels + top.encoder_channels**2
    weights += 9 * config.image_channels * config.num_channels_encoder + config.num_classes * top.decoder_channels
    if config.likelihood == "logistic_mixture":
        weights += 9 * config.num_channels_decoder * config.num_mixtures
    # The cell of a block that changes the channels counts as one of the others.
    cells = [(block.num_cells, plan.cells.preprocess, block.channels_in) for block in plan.preprocess]
    cells += [(block.num_cells, plan.cells.postprocess, block.channels_out) for block in plan.postprocess]
    for scale in plan.scales:
        groups, encoder, decoder = len(scale.groups), scale.encoder_channels, scale.decoder_channels
        weights += groups * (9 * encoder * 2 * latent + decoder * latent + config.num_flows * flow)
        if not plan.is_vanilla:
            cells.append((groups * config.num_cells_per_group_encoder, plan.cells.encoder, encoder))
            cells.append(((groups - (scale is top)) * config.num_cells_per_group_decoder, plan.cells.decoder, decoder))
    # Each layer has at least one tensor of its own.
    layers = plan.num_groups * (1 + config.num_flows) + sum(count for count, _, _ in cells)
    _check_size(layers, MOST_LAYERS, "layers")
    for count, branch, channels in cells:
        if isinstance(branch, InvertedBranch):
            weights += count * 2 * branch.expansion * channels**2
        elif isinstance(branch, ConvolutionBranch):  # what a layer of one's own has is not known
            weights += count * 9 * len(branch.operations) * channels**2
    return weights


def _check_architecture(config: ModelConfig) -> None:
    check_choice("model.cell_set", config.cell_set, CELL_SETS)
    blocks, others, divisor = config.num_preprocess_blocks, config.num_postprocess_blocks, config.size_divisor
    fault = f"model.num_postprocess_blocks = {others}: must equal num_preprocess_blocks = {blocks}"
    check(others == blocks, f"{fault}, or the image that comes out has another size than the one that goes in")
    for side in ("height", "width"):
        real, padded = getattr(config, f"image_{side}"), getattr(config, f"network_{side}")
        fault = f"not divisible by {divisor}, as blocks and scales need, or smaller than the image's {side} of {real}"
        fix = "leave it out for the smallest that fits, or use fewer scales"
        check(padded >= real and padded % divisor == 0, f"model.padded_{side} = {padded}: {fault}; {fix}")
    if config.likelihood == "logistic_mixture" and config.image_channels > MOST_CHANNELS:
        most = f"the logistic mixture takes 1 to {MOST_CHANNELS} channels"
        raise ValueError(f"model.image_channels = {config.image_channels}: {most}")
    if config.likelihood == "bernoulli" and config.num_bits != 1:
        raise ValueError(f"model.num_bits = {config.num_bits}: the Bernoulli likelihood is for 1-bit images")
    for part, channels in (("preprocess", config.num_channels_encoder), ("postprocess", config.num_channels_decoder)):
        branch = getattr(CELL_SETS[config.cell_set], part)
        if isinstance(branch, InvertedBranch) and branch.groups and channels * branch.expansion % branch.groups:
            form = f"widen {channels} channels {branch.expansion} times and cut them into {branch.groups} groups"
            raise ValueError(f"model.cell_set = {config.cell_set!r}: its {part} cells {form}; use multiples of 8")
