"""How large a model settings imply at the least: compared with a file before a model of that size is made."""

from collections.abc import Mapping

import numpy as np

from nvae_tf.config import ModelConfig
from nvae_tf.flows import HIDDEN_MULTIPLE
from nvae_tf.latent_plan import Branch, InvertedBranch, groups_per_scale, latent_plan


def check_implied_size(config: ModelConfig, state: Mapping[str, np.ndarray]) -> None:
    """Checks that a file may hold the weights of an architecture; what it does not hold is not looked for.

    Args:
      config: the architecture, of the file's own settings.
      state: the weights in the file, by name.

    Raises:
      ValueError: the architecture has more layers or more numbers than the file, or its settings do not fit each other.
    """
    # First, because the plan has a place for every group.
    _compare("layers", fewest_layers(config), "tensors", len(state))
    _compare("numbers", fewest_numbers(config), "numbers", sum(value.size for value in state.values()))


def fewest_layers(config: ModelConfig) -> int:
    """A lower bound of the layers, each of which has a tensor or more of its own."""
    groups = sum(groups_per_scale(config))
    blocks = config.num_preprocess_blocks * config.num_preprocess_cells
    blocks += config.num_postprocess_blocks * config.num_postprocess_cells
    layers = blocks + groups * (1 + config.num_flows)
    if groups > 1:
        layers += groups * config.num_cells_per_group_encoder + (groups - 1) * config.num_cells_per_group_decoder
    return layers


def fewest_numbers(config: ModelConfig) -> int:
    """A lower bound of the numbers in all weights: of a model with many channels, most of them.

    Raises:
      ValueError: the settings do not fit each other.
    """
    plan, latent = latent_plan(config), config.num_latent_per_group
    flow = 2 * 9 * latent * HIDDEN_MULTIPLE * latent
    top = plan.scales[0]
    numbers = top.height * top.width * top.decoder_channels + 9 * config.image_channels * config.num_channels_encoder
    if config.likelihood == "logistic_mixture":
        numbers += 9 * config.num_channels_decoder * config.num_mixtures
    for scale in plan.scales:
        groups, encoder, decoder = len(scale.groups), scale.encoder_channels, scale.decoder_channels
        numbers += groups * (9 * encoder * 2 * latent + decoder * latent + config.num_flows * flow)
        if not plan.is_vanilla:
            numbers += groups * config.num_cells_per_group_encoder * _in_cell(plan.cells.encoder, encoder)
            below_top = groups - (scale is top)
            numbers += below_top * config.num_cells_per_group_decoder * _in_cell(plan.cells.decoder, decoder)
    for block in plan.preprocess:
        numbers += (block.num_cells - 1) * _in_cell(plan.cells.preprocess, block.channels_in)
    for block in plan.postprocess:
        numbers += (block.num_cells - 1) * _in_cell(plan.cells.postprocess, block.channels_out)
    return numbers


def _in_cell(branch: Branch, channels: int) -> int:
    if isinstance(branch, InvertedBranch):
        return 2 * branch.expansion * channels**2
    return 9 * len(branch.operations) * channels**2


def _compare(what: str, needed: int, of_file: str, found: int) -> None:
    if needed > found:
        raise ValueError(
            f"the published weights do not fit this architecture: it has at least {needed:,} {what}, and the file "
            f"{found:,} {of_file}. Settings and weights must be those of one file, and that file whole"
        )
