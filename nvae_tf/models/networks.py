"""The two networks (Vahdat & Kautz 2020, figure 2).

The bottom-up (inference) network makes one feature for every latent group. The top-down (generative) network goes from
the top latent to the likelihood's parameters; behind each group's posterior there may be flows (section 3.4).
"""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig, check
from nvae_tf.latent_plan import HIDDEN_MULTIPLE, Block, Branch, LatentPlan
from nvae_tf.layers import FoldedPass, ForwardPass, ResidualCells, StackedConvolution, StackedLayer, stack_of
from nvae_tf.layers.cpu_kernels import fan_out, has_cpu_forms
from nvae_tf.layers.scan import StackShare, run_cells, run_steps, states_of_cells
from nvae_tf.models.images import frame
from nvae_tf.models.latents import (
    GroupLayers,
    LatentSample,
    LatentSource,
    batch_size_of,
    latents_of_groups,
    tensors_of_latent,
)


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
        return self.down.single_layer(forward)(run_cells(self.cells, state, forward))


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
            state, states = states_of_cells(scale.cells, state, forward)
            features += states[scale.cells_per_group - 1 :: scale.cells_per_group]
            if scale.down is not None:
                state = scale.down.single_layer(forward)(state)
        # The top-most group takes the tower's end in place of its kept feature.
        features[-1:] = [tf.nn.elu(self.top.single_layer(forward)(tf.nn.elu(state)))]
        return features[::-1]


def causal_mask(size: int, channels_in: int, channels_out: int, strict: bool, mirrored: bool) -> np.ndarray:
    """Mask `[size, size, in, out]` of a convolution that looks only at what comes earlier in raster order.

    At the center, channels are in blocks (equal runs of the wider side, one for each channel of the narrower): output
    block `i` sees input blocks `< i` where `strict`, else `<= i`. `mirrored` flips height and width, not the channels.
    """
    center, narrower = size // 2, min(channels_in, channels_out)
    mask = np.zeros((size, size, channels_in, channels_out), np.float32)
    mask[:center] = 1.0
    mask[center, :center] = 1.0
    block_in, block_out = (np.arange(channels) * narrower // channels for channels in (channels_in, channels_out))
    mask[center, center] = (np.less if strict else np.less_equal)(block_in[:, None], block_out)
    return mask[::-1, ::-1].copy() if mirrored else mask


class FlowCells(StackedLayer):
    """`count` masked cells `z - m(z)` of inverse autoregressive flows, on latents `[batch, height, width, channels]`.

    An output's pixel and channel depend only on earlier ones in raster order, so the log-determinant is 0.
    """

    def __init__(self, count: int, channels: int, mirrored: bool, dtype=None):
        def masked(channels_in: int, channels_out: int, size: int, strict: bool = False, groups: int = 1, **settings):
            settings |= {"mask": causal_mask(size, channels_in // groups, channels_out, strict, mirrored)}
            return StackedConvolution(count, channels_in, channels_out, size, groups=groups, dtype=dtype, **settings)

        hidden = HIDDEN_MULTIPLE * channels
        parts = [
            masked(channels, hidden, 3, strict=True, use_bias=False),
            masked(hidden, hidden, 5, groups=hidden, use_bias=False),
            masked(hidden, channels, 1, log_norm_offset=-math.log(10.0)),
        ]
        super().__init__(count, parts, dtype=dtype)

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        first, depthwise, last = self.parts
        hidden = tf.nn.elu(first.apply_slice(weights[0], tf.cast(inputs, self.compute_dtype), records))
        hidden = tf.nn.elu(tf.nn.elu(depthwise.apply_slice(weights[1], hidden, records)))
        return inputs - tf.cast(last.apply_slice(weights[2], hidden, records), inputs.dtype)


class FlowPairs(StackedLayer):
    """`count` pairs of cells. The second of each sees the image mirrored: together, each pixel has seen all others."""

    def __init__(self, count: int, channels: int, dtype=None):
        cells = [FlowCells(count, channels, mirrored, dtype=dtype) for mirrored in (False, True)]
        super().__init__(count, cells, dtype=dtype)


class ClassEmbedding(keras.layers.Layer):
    """A vector for each class, which is added at all positions; an image without a class gets zeros.

    They start as zeros, so that a new model does not depend on the class.
    """

    def __init__(self, num_classes: int, channels: int, dtype=None):
        super().__init__(dtype=dtype)
        self.table = self.add_weight(name="table", shape=(num_classes, channels), initializer="zeros", autocast=False)
        self.built = True

    def make_weights(self, forward: ForwardPass) -> tf.Tensor:
        """The vectors of all classes."""
        return tf.convert_to_tensor(self.table)

    def added(self, tensor: tf.Tensor, forward: ForwardPass) -> tf.Tensor:
        """`[batch, height, width, channels]` with the vectors of the pass' labels."""
        if forward.labels is None:
            return tensor
        # A product, because a gather's gradient is sparse; -1 gives a row of zeros.
        # TFLite makes a lookup without a class -1 of tf.one_hot. Accelerators compare floats.
        classes, numbers = tf.cast(forward.labels, tf.float32), tf.range(self.table.shape[0], dtype=tf.float32)
        is_of_class = tf.equal(classes[:, tf.newaxis], numbers)
        vectors = tf.cast(is_of_class, tf.float32) @ forward.weights_of(self)
        return tensor + tf.cast(vectors, tensor.dtype)[:, tf.newaxis, tf.newaxis]


class TopDownScale(keras.layers.Layer):
    """All groups of one resolution, and the way up to the next."""

    def __init__(self, config: ModelConfig, plan: LatentPlan, index: int, dtype=None):
        super().__init__(dtype=dtype)
        scale = plan.scales[index]
        encoder, decoder, latent = scale.encoder_channels, scale.decoder_channels, config.num_latent_per_group
        self.num_groups = len(scale.groups)
        self.num_top_groups = 1 if index == 0 else 0
        self.is_vanilla, self.is_residual = plan.is_vanilla, config.residual_distributions
        self.num_latent, self.num_flows = latent, config.num_flows
        self.cells_per_group = config.num_cells_per_group_decoder
        branch = plan.cells.decoder
        below_top = self.num_groups - self.num_top_groups  # the top group has no cells, prior and feature combiner
        num_cells = below_top * self.cells_per_group
        self.cells = stack_of(ResidualCells, num_cells, branch, decoder, decoder, config, dtype=dtype)
        self.priors = stack_of(StackedConvolution, below_top, decoder, 2 * latent, 1, dtype=dtype)
        self.feature_combiners = stack_of(StackedConvolution, below_top, decoder, encoder, 1, dtype=dtype)
        self.posteriors = StackedConvolution(self.num_groups, encoder, 2 * latent, 3, dtype=dtype)
        self.flows = stack_of(FlowPairs, self.num_groups * self.num_flows, latent, dtype=dtype)
        combined = latent if plan.is_vanilla else decoder + latent
        self.combiners = StackedConvolution(self.num_groups, combined, decoder, 1, dtype=dtype)
        self.up = None
        if index + 1 < len(plan.scales):
            larger = plan.scales[index + 1].decoder_channels
            self.up = ResidualCells(1, branch, decoder, larger, config, dtype=dtype)
        # Added to the state; and in the top group, where these do not follow from the state, to prior and posterior.
        self.classes = self.classes_of_prior = self.classes_of_posterior = None
        if config.num_classes:
            check(not plan.is_vanilla, f"model.num_classes = {config.num_classes}: needs more than one latent group")
            self.classes = ClassEmbedding(config.num_classes, decoder, dtype=dtype)
        if config.num_classes and index == 0:
            self.classes_of_prior = ClassEmbedding(config.num_classes, 2 * latent)
            self.classes_of_posterior = ClassEmbedding(config.num_classes, encoder, dtype=dtype)
        self.built = True

    def run_groups(
        self, state: tf.Tensor, sources: Sequence[LatentSource], forward: ForwardPass
    ) -> tuple[tf.Tensor, list[LatentSample]]:
        """The state `[batch, height, width, channels]` after all groups, and their latents."""
        shares = [  # in the order in which `_group_layers` takes their layers
            StackShare(self.cells, self.cells_per_group),
            StackShare(self.priors),
            StackShare(self.feature_combiners),
            StackShare(self.posteriors),
            StackShare(self.flows, self.num_flows),
            StackShare(self.combiners),
        ]

        # `run_steps` calls this for each group; the source (models/latents.py) calls the group's prior and posterior.
        def step(layers: list[list[Callable]], state: tf.Tensor, source: LatentSource) -> tuple:
            group = self._group_layers(forward, layers)
            for cell in group.cells:
                state = cell(state)
            # The state has three uses: the prior and the posterior in `draw`, and `combine`; see `fan_out`.
            state, state_for_draw = fan_out(state, 2)
            latent = source.draw(group, state_for_draw)
            return group.combine(state, latent.z), latent

        return run_steps(shares, step, state, sources, forward, tensors_of_latent, latents_of_groups)

    def _group_layers(self, forward: ForwardPass, layers: list[list[Callable]]) -> GroupLayers:
        """The functions of one group, from its layers in the order of the shares of `run_groups`."""
        cells, priors, feature_combiners, [posterior_layer], flows, [combiner] = layers
        is_top = not priors

        def prior(state: tf.Tensor) -> tf.Tensor:
            if not is_top:
                return tf.cast(priors[0](tf.nn.elu(state)), tf.float32)
            # Sigma is then 1.01, see `soft_clamped_normal`.
            parameters = tf.zeros((batch_size_of(state), *state.shape[1:3], 2 * self.num_latent))
            return self.classes_of_prior.added(parameters, forward) if self.classes_of_prior else parameters

        def posterior(state: tf.Tensor, feature: tf.Tensor, prior_parameters: tf.Tensor) -> tf.Tensor:
            if not is_top:
                feature += feature_combiners[0](state)
            elif self.classes_of_posterior:
                feature = self.classes_of_posterior.added(feature, forward)
            parameters = tf.cast(posterior_layer(feature), tf.float32)
            return prior_parameters + parameters if self.is_residual else parameters

        def combine(state: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
            z = tf.cast(z, self.compute_dtype)
            if self.is_vanilla:  # the only group of the model has no state
                return combiner(z)
            if has_cpu_forms() and not forward.training:
                return combiner((state, z))  # convolves both without joining them
            return combiner(tf.concat([state, z], -1))

        return GroupLayers(cells, prior, posterior, flows, combine)


class PostprocessBlock(keras.layers.Layer):
    """A cell that doubles the resolution and halves the channels, then normal cells."""

    def __init__(self, block: Block, branch: Branch, config: ModelConfig, dtype=None):
        super().__init__(dtype=dtype)
        channels_in, channels_out, num_cells = block
        self.up = ResidualCells(1, branch, channels_in, channels_out, config, dtype=dtype)
        self.cells = stack_of(ResidualCells, num_cells - 1, branch, channels_out, channels_out, config, dtype=dtype)
        self.built = True

    def run(self, state: tf.Tensor, forward: ForwardPass) -> tf.Tensor:
        """`[batch, height, width, in]` -> `[batch, 2 height, 2 width, in / 2]`."""
        return run_cells(self.cells, self.up.single_layer(forward)(state), forward)


class TopDown(keras.layers.Layer):
    """The scales from the smallest to the largest, post-processing, and the likelihood's parameters."""

    def __init__(self, config: ModelConfig, plan: LatentPlan, num_parameters: int, name: str, dtype=None):
        super().__init__(name=name, dtype=dtype)
        top = plan.scales[0]
        self.start = self.add_weight(
            name="start",
            shape=(top.height, top.width, top.decoder_channels),
            initializer=keras.initializers.RandomUniform(0.0, 1.0),
            trainable=not plan.is_vanilla,  # the one-group model has it, but does not use it
        )
        self.scales = [TopDownScale(config, plan, index, dtype=dtype) for index in range(len(plan.scales))]
        branch = plan.cells.postprocess
        self.postprocess = [PostprocessBlock(block, branch, config, dtype=dtype) for block in plan.postprocess]
        self.image = StackedConvolution(1, config.num_channels_decoder, num_parameters, 3, dtype=dtype)
        self.built = True

    def make_weights(self, forward: ForwardPass) -> tf.Tensor:
        """The state that the network begins with, by `weights_of`, so that a loop reads it once (`pass_of_loop`)."""
        return tf.cast(self.start, self.compute_dtype)

    def run(
        self, sources: Sequence[LatentSource], batch_size: int | tf.Tensor, forward: ForwardPass
    ) -> tuple[tf.Tensor, list[LatentSample]]:
        """The likelihood's parameters `[batch, height, width, parameters]` and every group's latent, by its source."""
        start = forward.weights_of(self)
        state = tf.broadcast_to(start, (batch_size, *start.shape))
        latents: list[LatentSample] = []
        remaining = list(sources)
        for scale in self.scales:
            if scale.classes:
                state = scale.classes.added(state, forward)
            own, remaining = remaining[: scale.num_groups], remaining[scale.num_groups :]
            state, scale_latents = scale.run_groups(state, own, forward)
            latents += scale_latents
            if scale.up is not None:
                state = scale.up.single_layer(forward)(state)
        for block in self.postprocess:
            state = block.run(state, forward)
        return self.image.single_layer(forward)(tf.nn.elu(state)), latents
