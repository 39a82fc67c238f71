"""The top-down (generative) network: from the top latent to the likelihood's parameters (figure 2 of the paper)."""

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from nvae_tf.config import ModelConfig, check
from nvae_tf.flows import FlowPairs
from nvae_tf.latent_plan import Block, Branch, LatentPlan
from nvae_tf.layers import ForwardPass, ResidualCells, StackedConvolution, StackShare, run_cells, run_steps, stack_of
from nvae_tf.layers.cpu_kernels import fan_out
from nvae_tf.models.latents import (
    GroupLayers,
    LatentSample,
    LatentSource,
    batch_size_of,
    latents_of_groups,
    tensors_of_latent,
)


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

    def add_to(self, tensor: tf.Tensor, forward: ForwardPass) -> tf.Tensor:
        """`[batch, height, width, channels]` with the vectors of the pass' labels."""
        if forward.labels is None:
            return tensor
        # A product, because a gather's gradient is sparse; -1 gives a row of zeros. Not of `tf.one_hot`, which TFLite
        # turns into a lookup that has no class -1; of floats, because accelerators compare these.
        classes, numbers = tf.cast(forward.labels, tf.float32), tf.range(self.table.shape[0], dtype=tf.float32)
        is_of_class = tf.equal(classes[:, tf.newaxis], numbers)
        vectors = tf.cast(is_of_class, tf.float32) @ forward.weights_of(self)
        return tensor + tf.cast(vectors, tensor.dtype)[:, tf.newaxis, tf.newaxis]


class TopDownScale(keras.layers.Layer):
    """All groups of one resolution, and the way up to the next."""

    def __init__(self, config: ModelConfig, plan: LatentPlan, index: int, dtype=None):
        super().__init__(dtype=dtype)
        scale, num_latent = plan.scales[index], config.num_latent_per_group
        encoder_channels, decoder_channels = scale.encoder_channels, scale.decoder_channels
        self.num_groups = len(scale.groups)
        self.num_top_groups = 1 if index == 0 else 0
        # A vanilla model is one latent group, a plain VAE without a state.
        self.is_vanilla, self.has_relative_posteriors = plan.is_vanilla, config.residual_distributions
        self.num_latent, self.num_flows = num_latent, config.num_flows
        self.cells_per_group = config.num_cells_per_group_decoder
        branch = plan.cells.decoder
        below_top = self.num_groups - self.num_top_groups  # the top group has no cells, prior or feature combiner
        num_cells = below_top * self.cells_per_group
        self.cells = stack_of(ResidualCells, num_cells, branch, decoder_channels, decoder_channels, config, dtype=dtype)
        self.priors = stack_of(StackedConvolution, below_top, decoder_channels, 2 * num_latent, 1, dtype=dtype)
        self.feature_combiners = stack_of(
            StackedConvolution, below_top, decoder_channels, encoder_channels, 1, dtype=dtype
        )
        self.posteriors = StackedConvolution(self.num_groups, encoder_channels, 2 * num_latent, 3, dtype=dtype)
        self.flows = stack_of(FlowPairs, self.num_groups * self.num_flows, num_latent, dtype=dtype)
        combiner_channels = num_latent if plan.is_vanilla else decoder_channels + num_latent
        self.combiners = StackedConvolution(self.num_groups, combiner_channels, decoder_channels, 1, dtype=dtype)
        self.up = None
        if index + 1 < len(plan.scales):
            larger = plan.scales[index + 1].decoder_channels
            self.up = ResidualCells(1, branch, decoder_channels, larger, config, dtype=dtype)
        # Class vectors are added to the state. The top group's prior and posterior do not read the state, so they are
        # added to that prior's parameters and to that posterior's feature too.
        self.classes = self.classes_of_prior = self.classes_of_posterior = None
        if config.num_classes:
            check(not plan.is_vanilla, f"model.num_classes = {config.num_classes}: needs more than one latent group")
            self.classes = ClassEmbedding(config.num_classes, decoder_channels, dtype=dtype)
        if config.num_classes and index == 0:
            self.classes_of_prior = ClassEmbedding(config.num_classes, 2 * num_latent)
            self.classes_of_posterior = ClassEmbedding(config.num_classes, encoder_channels, dtype=dtype)
        self.built = True

    def run_groups(
        self, state: tf.Tensor, sources: Sequence[LatentSource], forward: ForwardPass
    ) -> tuple[tf.Tensor, list[LatentSample]]:
        """The state `[batch, height, width, channels]` after all groups, and their latents."""
        shares = {  # by the names of the parameters of `_group_layers`
            "cells": StackShare(self.cells, self.cells_per_group),
            "priors": StackShare(self.priors),
            "feature_combiners": StackShare(self.feature_combiners),
            "posteriors": StackShare(self.posteriors),
            "flows": StackShare(self.flows, self.num_flows),
            "combiners": StackShare(self.combiners),
        }

        # The calls of a group: run_steps -> step -> source.draw (models/latents.py) -> prior, posterior; then combine.
        def step(layers: Mapping[str, list[Callable]], state: tf.Tensor, source: LatentSource) -> tuple:
            group = self._group_layers(forward, **layers)
            for cell in group.cells:
                state = cell(state)
            # The state has three uses: prior and posterior in `draw`, and `combine`. TensorFlow would add their three
            # gradients in any order; with a copy each for `draw` and `combine` it adds two at a time (`fan_out`).
            state, state_for_draw = fan_out(state, 2)
            latent = source.draw(group, state_for_draw)
            return group.combine(state, latent.z), latent

        convert = {"output_to_tensors": tensors_of_latent, "stacked_tensors_to_outputs": latents_of_groups}
        return run_steps(shares, step, state, sources, forward, **convert)

    def _group_layers(
        self, forward: ForwardPass, cells, priors, feature_combiners, posteriors, flows, combiners
    ) -> GroupLayers:
        """The functions of one group, from lists of its layers, see `run_groups`."""
        [posterior_layer], [combiner] = posteriors, combiners
        is_top = not priors

        def prior(state: tf.Tensor) -> tf.Tensor:
            if not is_top:
                return tf.cast(priors[0](tf.nn.elu(state)), tf.float32)
            # The prior of the top group: mean 0 and sigma exp(0) + 0.01, see `soft_clamped_normal`.
            parameters = tf.zeros((batch_size_of(state), *state.shape[1:3], 2 * self.num_latent))
            return self.classes_of_prior.add_to(parameters, forward) if self.classes_of_prior else parameters

        def posterior(state: tf.Tensor, feature: tf.Tensor, prior_parameters: tf.Tensor) -> tf.Tensor:
            if not is_top:
                feature += feature_combiners[0](state)
            elif self.classes_of_posterior:
                feature = self.classes_of_posterior.add_to(feature, forward)
            parameters = tf.cast(posterior_layer(feature), tf.float32)
            return prior_parameters + parameters if self.has_relative_posteriors else parameters

        def combine(state: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
            z = tf.cast(z, self.compute_dtype)
            if self.is_vanilla:
                return combiner(z)
            if forward.cpu_forms and not forward.training:
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
        return run_cells(self.cells, self.up.single_layer(forward)(state), forward)[0]


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
        """The state that the network begins with, by `weights_of`: a loop over passes reads the variable only once."""
        return tf.cast(self.start, self.compute_dtype)

    def run(
        self, sources: Sequence[LatentSource], batch_size: int | tf.Tensor, forward: ForwardPass
    ) -> tuple[tf.Tensor, list[LatentSample]]:
        """The likelihood's parameters `[batch, height, width, parameters]` and the latents of all groups."""
        start = forward.weights_of(self)
        state = tf.broadcast_to(start, (batch_size, *start.shape))
        latents: list[LatentSample] = []
        remaining = list(sources)
        for scale in self.scales:
            if scale.classes:
                state = scale.classes.add_to(state, forward)
            own, remaining = remaining[: scale.num_groups], remaining[scale.num_groups :]
            state, scale_latents = scale.run_groups(state, own, forward)
            latents += scale_latents
            if scale.up is not None:
                state = scale.up.single_layer(forward)(state)
        for block in self.postprocess:
            state = block.run(state, forward)
        return self.image.single_layer(forward)(tf.nn.elu(state)), latents
