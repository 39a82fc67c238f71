"""The topology of the hierarchy as data: which scales, groups and cells there are and how wide (no TensorFlow).

The network is built by walking this plan, and the names of published files, parameter counts and error messages follow
from it (Vahdat & Kautz 2020, section 3.1 and figure 2).
"""

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import TypeVar

from nvae_tf.config import ModelConfig, check, check_choice

Value = TypeVar("Value")
# What this process has been warned of.
_WARNINGS_SHOWN: dict = {}

HIDDEN_MULTIPLE = 6  # hidden channels of a flow cell for each channel of the latent
# More than one machine can train: such settings are a mistake, or those of a damaged or hostile file.
MOST_LAYERS, MOST_WEIGHTS = 10_000, 2_000_000_000


@dataclasses.dataclass(frozen=True)
class ConvolutionBranch:
    """A residual branch of plain operations in a row: `bnswish`, `bnelu`, `elu` or the dilated `bnswish5`."""

    operations: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class InvertedBranch:
    """A residual branch that widens by `expansion`, convolves depthwise (or in `groups` groups), and narrows."""

    kernel_size: int
    expansion: int
    groups: int | None = None


Branch = ConvolutionBranch | InvertedBranch


@dataclasses.dataclass(frozen=True)
class CellSet:
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


@dataclasses.dataclass(frozen=True)
class Scale:
    """One resolution of the hierarchy; `groups` are its latent groups counted from the top of the hierarchy (0)."""

    height: int
    width: int
    encoder_channels: int
    decoder_channels: int
    groups: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Block:
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


def values_of_groups(values: Sequence[Value], shapes: Sequence[tuple[int, int, int]], what: str) -> list[Value]:
    """One value for every group, top group first.

    They are given for every scale, the smallest first, or for every group, whose latents have these shapes (see
    `LatentPlan.latent_shapes`). ValueError, with the values' name in the plural, where there are as many as neither.
    """
    scales = list(dict.fromkeys(shape[:2] for shape in shapes))
    if len(values) == len(shapes):
        return list(values)
    if len(values) == len(scales):
        return [values[scales.index(shape[:2])] for shape in shapes]
    raise ValueError(
        f"{len(values)} {what}: give one for all, one for each of the {len(scales)} scales or one for each of the "
        f"{len(shapes)} groups"
    )


def groups_per_scale(config: ModelConfig) -> tuple[int, ...]:
    """Number of groups in every scale, from the *largest* resolution to the smallest."""
    counts = []
    for index in range(config.num_latent_scales):
        count = config.num_groups_per_scale // 2**index if config.adaptive_groups else config.num_groups_per_scale
        counts.append(count if index == 0 else max(count, config.min_groups_per_scale))
    return tuple(counts)


def inference_bytes_per_image(config: ModelConfig) -> int:
    """Estimates, on the safe side, the memory that a pass of inference takes for each image: four of its widest layers.

    The widest layers are inside of the decoder's cells, which have six times its channels, in float32. With each
    halving of the resolution a layer's numbers halve too, so the image's own resolution counts.
    """
    return 4 * 4 * config.network_height * config.network_width * 6 * config.num_channels_decoder


def latent_plan(config: ModelConfig) -> LatentPlan:
    """Lays out the hierarchy that the settings ask for; ValueError where they do not fit, or make too large a model."""
    _check_size(fewest_weights(config), MOST_WEIGHTS, "weights")
    sizes = config.image_height, config.image_width, config.network_height, config.network_width
    if (times := sizes[2] * sizes[3] / (sizes[0] * sizes[1])) > 2:
        text = "images of {} x {} are padded with zeros to {} x {} (height x width)".format(*sizes)
        text += f", {times:.3g} times the work: lower model.num_latent_scales = {config.num_latent_scales}, or padded_*"
        # Without a line of source text: one line on a terminal.
        warnings.warn_explicit(text, UserWarning, filename="nvae_tf", lineno=0, registry=_WARNINGS_SHOWN)
    return _layout(config)


def _layout(config: ModelConfig) -> LatentPlan:
    _check_architecture(config)
    _check_size(fewest_layers(config), MOST_LAYERS, "layers")  # first: the plan has a place for every group
    before_scales = 2**config.num_preprocess_blocks
    scales, first_group = [], 0
    counts = groups_per_scale(config)
    for index in reversed(range(config.num_latent_scales)):
        factor = before_scales * 2**index
        scales.append(
            Scale(
                height=config.network_height // factor,
                width=config.network_width // factor,
                encoder_channels=config.num_channels_encoder * factor,
                decoder_channels=config.num_channels_decoder * factor,
                groups=tuple(range(first_group, first_group + counts[index])),
            )
        )
        first_group += counts[index]
    widths = [config.num_channels_encoder * 2**index for index in range(config.num_preprocess_blocks + 1)]
    preprocess = [Block(*pair, config.num_preprocess_cells) for pair in itertools.pairwise(widths)]
    widths = [config.num_channels_decoder * 2**index for index in reversed(range(config.num_postprocess_blocks + 1))]
    postprocess = [Block(*pair, config.num_postprocess_cells) for pair in itertools.pairwise(widths)]
    num_latent, cells = config.num_latent_per_group, CELL_SETS[config.cell_set]
    return LatentPlan(tuple(scales), tuple(preprocess), tuple(postprocess), num_latent, cells)


def _check_size(asked: int, most: int, what: str) -> None:
    if asked > most:
        fix = "use fewer channels, latents, groups, cells, flows or classes, or smaller images"
        raise ValueError(f"model.num_*: at least {asked:,} {what}, and a model may have {most:,}; {fix}")


def fewest_layers(config: ModelConfig) -> int:
    """A lower bound of the layers, each of which has at least one tensor of its own."""
    groups = sum(groups_per_scale(config))
    layers = config.num_preprocess_blocks * config.num_preprocess_cells
    layers += config.num_postprocess_blocks * config.num_postprocess_cells + groups * (1 + config.num_flows)
    if groups > 1:
        layers += groups * config.num_cells_per_group_encoder + (groups - 1) * config.num_cells_per_group_decoder
    return layers


def fewest_weights(config: ModelConfig) -> int:
    """A lower bound of the numbers in all weights, which counts most of them; ValueError where settings do not fit."""
    plan, latent = _layout(config), config.num_latent_per_group
    top, flow = plan.scales[0], 2 * 9 * latent * HIDDEN_MULTIPLE * latent
    weights = top.height * top.width * top.decoder_channels + top.encoder_channels**2
    weights += 9 * config.image_channels * config.num_channels_encoder + config.num_classes * top.decoder_channels
    if config.likelihood == "logistic_mixture":
        weights += 9 * config.num_channels_decoder * config.num_mixtures
    # Of a block, the cell that changes the channels counts as one of the others.
    cells = [(block.num_cells, plan.cells.preprocess, block.channels_in) for block in plan.preprocess]
    cells += [(block.num_cells, plan.cells.postprocess, block.channels_out) for block in plan.postprocess]
    for scale in plan.scales:
        groups, encoder, decoder = len(scale.groups), scale.encoder_channels, scale.decoder_channels
        weights += groups * (9 * encoder * 2 * latent + decoder * latent + config.num_flows * flow)
        if not plan.is_vanilla:
            cells.append((groups * config.num_cells_per_group_encoder, plan.cells.encoder, encoder))
            cells.append(((groups - (scale is top)) * config.num_cells_per_group_decoder, plan.cells.decoder, decoder))
    for count, branch, channels in cells:
        is_inverted = isinstance(branch, InvertedBranch)
        weights += count * (2 * branch.expansion if is_inverted else 9 * len(branch.operations)) * channels**2
    return weights


def _check_architecture(config: ModelConfig) -> None:
    check_choice("model.cell_set", config.cell_set, CELL_SETS)
    blocks, scales = config.num_preprocess_blocks, config.num_latent_scales
    check(
        blocks == config.num_postprocess_blocks,
        f"model.num_postprocess_blocks = {config.num_postprocess_blocks}: must equal num_preprocess_blocks = {blocks}, "
        "or the image that comes out has another size than the one that goes in",
    )
    divisor = config.size_divisor
    for side in ("height", "width"):
        real, padded = getattr(config, f"image_{side}"), getattr(config, f"network_{side}")
        setting = f"model.padded_{side} = {padded}"
        check(padded >= real, f"{setting}: smaller than the image's {side} of {real}")
        check(
            padded % divisor == 0,
            f"{setting}: not divisible by {divisor} ({blocks} preprocess blocks and {scales} scales halve it "
            f"{divisor.bit_length() - 1} times); leave it out for the smallest that is, or use fewer scales or blocks",
        )
    counts = list(groups_per_scale(config))
    check(
        min(counts) >= 1,
        f"model.num_groups_per_scale = {config.num_groups_per_scale}: halved at each of {scales} scales gives {counts} "
        "groups; raise it, or set min_groups_per_scale to at least 1, or use fewer scales",
    )
    channels = config.image_channels
    too_many = f"model.image_channels = {channels}: the logistic mixture takes 1 to 4 channels"
    check(config.likelihood != "logistic_mixture" or channels <= 4, too_many)
    one_bit = f"model.num_bits = {config.num_bits}: the Bernoulli likelihood is for 1-bit images; set it to 1"
    check(config.likelihood != "bernoulli" or config.num_bits == 1, one_bit)
    cells = CELL_SETS[config.cell_set]
    for part, channels in (("preprocess", config.num_channels_encoder), ("postprocess", config.num_channels_decoder)):
        branch = getattr(cells, part)
        if isinstance(branch, InvertedBranch) and branch.groups and channels * branch.expansion % branch.groups:
            raise ValueError(
                f"model.cell_set = {config.cell_set!r}: its {part} cells widen {channels} channels {branch.expansion} "
                f"times, and {channels * branch.expansion} can't be cut into {branch.groups} groups; use multiples of 8"
            )
