"""The bottom-up (inference) network: one feature for every latent group (Vahdat & Kautz 2020, figure 2a)."""

import keras
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.latent_plan import Block, Branch, LatentPlan
from nvae_tf.layers import FoldedPass, ForwardPass, ResidualCells, StackedConvolution, run_cells, stack_of
from nvae_tf.models.images import frame


class PreprocessBlock(keras.layers.Layer):
    """Normal cells and, last, a cell that halves the resolution and doubles the channels."""

    def __init__(self, block: Block, branch: Branch, config: ModelConfig, dtype=None):
        super().__init__(dtype=dtype)
        channels_in, channels_out, num_cells = block
        self.cells = stack_of(ResidualCells, num_cells - 1, branch, channels_in, channels_in, config, dtype=dtype)
        self.down = ResidualCells(1, branch, channels_in, channels_out, config, dtype=dtype)
        self.built = True

    def run(self, state: tf.Tensor, forward: ForwardPass) -> tf.Tensor:
        """`[batch, height, width, in]` -> `[batch, height / 2, width / 2, 2 in]`."""
        return self.down.single_layer(forward)(run_cells(self.cells, state, forward)[0])


class BottomUpScale(keras.layers.Layer):
    """The cells of one resolution, `cells_per_group` for each group, and the way down to the next resolution."""

    def __init__(self, config: ModelConfig, plan: LatentPlan, index: int, dtype=None):
        super().__init__(dtype=dtype)
        scale, branch = plan.scales[index], plan.cells.encoder
        self.num_groups, self.cells_per_group = len(scale.groups), config.num_cells_per_group_encoder
        channels, num_cells = scale.encoder_channels, self.num_groups * self.cells_per_group
        self.cells = ResidualCells(num_cells, branch, channels, channels, config, dtype=dtype)
        self.down = None
        if index > 0:
            self.down = ResidualCells(1, branch, channels, plan.scales[index - 1].encoder_channels, config, dtype=dtype)
        self.built = True


class BottomUp(keras.layers.Layer):
    """Stem, pre-processing, and the tower of cells from the largest resolution to the smallest."""

    def __init__(self, config: ModelConfig, plan: LatentPlan, name: str, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.config = config
        self.stem = StackedConvolution(1, config.image_channels, config.num_channels_encoder, 3, dtype=dtype)
        branch = plan.cells.preprocess
        self.preprocess = [PreprocessBlock(block, branch, config, dtype=dtype) for block in plan.preprocess]
        from_largest = [] if plan.is_vanilla else reversed(range(len(plan.scales)))
        self.scales = [BottomUpScale(config, plan, index, dtype=dtype) for index in from_largest]
        top_channels = plan.scales[0].encoder_channels
        self.top = StackedConvolution(1, top_channels, top_channels, 1, dtype=dtype)
        self.built = True

    def features(self, images: tf.Tensor, forward: ForwardPass | None = None) -> list[tf.Tensor]:
        """The feature of every group, top group first, from images `[batch, height, width, channels]` in [0, 1].

        They do not depend on any random draw. Without `forward` the pass is one of inference.
        """
        forward = forward or FoldedPass()
        framed = frame(images, self.config)
        state = self.stem.single_layer(forward)(tf.cast(2.0 * framed - 1.0, self.compute_dtype))
        for block in self.preprocess:
            state = block.run(state, forward)
        features = []
        for scale in self.scales:
            state, states = run_cells(scale.cells, state, forward, keeps_states=True)
            features += states[scale.cells_per_group - 1 :: scale.cells_per_group]
            if scale.down is not None:
                state = scale.down.single_layer(forward)(state)
        # The top-most group takes the tower's end in place of its kept feature.
        features[-1:] = [tf.nn.elu(self.top.single_layer(forward)(tf.nn.elu(state)))]
        return features[::-1]
