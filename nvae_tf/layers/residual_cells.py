"""Stacked residual cells: `skip(x) + residual_scale * gate * branch(x)` (Vahdat & Kautz 2020, figure 3, appendix A).

`change` is what a cell or a branch does to the resolution: "none", "down" (halves it, doubles the channels) or "up".
A new kind of branch is a Keras layer that `register_cell` registers. One of the package's own, with PyTorch names, is a
class here that `ResidualCells` chooses, a named tuple with a line of `CELL_SETS` in `nvae_tf/latent_plan.py`, its names
in `nvae_tf/published/tensor_names.py`, and its table in `cell_tables` of `nvae_tf/published/settings.py`.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from nvae_tf import latent_plan
from nvae_tf.config import ModelConfig, check, check_choice, register
from nvae_tf.latent_plan import Branch, CellSet, ConvolutionBranch, InvertedBranch
from nvae_tf.layers import cpu_kernels, normalization
from nvae_tf.layers.convolution import ConvolutionWeights, DataDependentConvolution, StackedConvolution
from nvae_tf.layers.normalization import Folding, StackedBatchNormalization
from nvae_tf.layers.stacked import ForwardPass, StackedLayer


def register_cell(name: str, parts: Sequence[str] = CellSet._fields) -> Callable[[type], type]:
    """Registers a Keras layer as the residual branch of `model.cell_set = name`, as a decorator of its class.

    `layer(channels)` maps `[batch, height, width, channels]` to the same shape. It stands in these `parts` of the
    network, and the branches of "res_mbconv" in the others. Cells that change the resolution do so before it. Its
    state may be vectors (batch norm). ValueError: the name is taken.
    """
    check(isinstance(name, str), 'register_cell takes a name: @nvae_tf.register_cell("convnext")')

    def registered(layer: type) -> type:
        for part in parts:
            check_choice(f"cell {name!r}: part", part, CellSet._fields)
        cells = latent_plan.CELL_SETS
        register("cell_set", name, cells, layer)
        cells[f"{layer.__module__}:{name}"] = cells["res_mbconv"]._replace(**dict.fromkeys(parts, layer))
        return layer

    return registered


class ResidualCells(StackedLayer):
    """`count` cells of one kind: *down* with twice the channels, *up* with half of them, normal with as many."""

    def __init__(
        self, count: int, branch: Branch, channels_in: int, channels_out: int, config: ModelConfig, dtype=None
    ):
        change = "none" if channels_in == channels_out else "down" if channels_out > channels_in else "up"
        skip = {"none": None, "down": FactorizedReduce, "up": BilinearExpand}[change]
        if isinstance(branch, type):
            branch = KerasLayers(count, branch, channels_out, dtype)
        else:
            kind = InvertedResidualBranch if isinstance(branch, InvertedBranch) else OperationsBranch
            branch = kind(count, branch, channels_in, channels_out, change, dtype)
        gate = StackedSqueezeExcite(count, channels_out, dtype=dtype) if config.squeeze_excite else None
        skip = skip and skip(count, channels_in, channels_out, dtype=dtype)
        super().__init__(count, [part for part in (branch, gate, skip) if part is not None], dtype=dtype)
        self.branch, self.gate, self.skip, self.residual_scale = branch, gate, skip, config.residual_scale

    def apply_layer(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        skip = functools.partial(self.skip.apply_layer, weights[-1], records=records) if self.skip else None
        if skip and isinstance(self.branch, KerasLayers):
            inputs, skip = skip(inputs), None
        residual = self.branch.apply_layer(weights[0], inputs, records)
        gate = 1.0 if self.gate is None else self.gate.apply_layer(weights[1], residual, records)
        residual = residual * (self.residual_scale * gate)
        return (skip(inputs) if skip else inputs) + residual


class KerasLayers(StackedLayer):
    """`count` Keras layers `layer(channels)` of a registered class, which keep height, width and channels.

    One of them computes, with the others' weights in place of its own.
    """

    def __init__(self, count: int, layer: type, channels: int, dtype=None):
        super().__init__(count, dtype=dtype)
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.dtype_policy)
        try:
            layers = [_built(layer, channels) for _ in range(count)]
        finally:
            keras.config.set_dtype_policy(before)
        self._layer = lambda: layers[0]  # in a function: its variables are not this layer's
        state = {"trainable": False, "aggregation": "only_first_replica"}
        self.trained = self._stacked("trained", [one.trainable_variables for one in layers])
        self.statistics = self._stacked("state", [one.non_trainable_variables for one in layers], **state)
        del layers[1:]

    def _stacked(self, name: str, variables: list[list], **settings) -> list[keras.Variable]:
        stacks = [np.stack(list(map(keras.ops.convert_to_numpy, each))) for each in zip(*variables, strict=True)]
        return [
            self.add_weight(name=f"{name}_{number}", shape=each.shape, initializer=each, **settings)
            for number, each in enumerate(stacks)
        ]

    def make_weights(self, forward: ForwardPass) -> tuple[tf.Tensor, ...]:
        return tuple(map(tf.convert_to_tensor, (*self.trained, *self.statistics)))

    def apply_layer(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        in_training, layer = records is not None, self._layer()
        variables, state = [*layer.trainable_variables, *layer.non_trainable_variables], layer.non_trainable_variables
        mapping = zip(variables, weights, strict=True)
        with keras.StatelessScope(state_mapping=list(mapping)) as scope:
            outputs = layer(inputs, training=in_training)
        if in_training and state:
            records.append(tuple(tf.stop_gradient(scope.get_current_value(variable)) for variable in state))
        return tf.cast(outputs, inputs.dtype)


def _built(layer: type, channels: int) -> keras.layers.Layer:
    """A layer with its variables; ValueError where it can't be the branch of a cell."""
    one, images, where = layer(channels), keras.Input((16, 16, channels)), f"registered cell {layer.__name__}"
    check(isinstance(one, keras.layers.Layer), f"{where}: it must be a keras.layers.Layer")
    if (shape := one(images).shape) != images.shape:
        raise ValueError(f"{where}: {images.shape} became {shape}; it must keep the shape")
    kinds = {(len(each.shape), "float" in each.dtype) for each in one.non_trainable_variables}
    if not one.trainable_variables or not kinds <= {(1, True)}:
        raise ValueError(f"{where}: it must have weights, and vectors alone as state (batch norm; no dropout)")
    return one


class InvertedResidualBranch(StackedLayer):
    """BN -> 1x1 to h -> BN -> swish -> (nearest doubling) -> depthwise or grouped -> BN -> swish -> 1x1 -> BN."""

    # `h` is `expansion` times the input channels. The published network doubles first, but all before the depthwise
    # convolution acts on single pixels: the same numbers at a quarter of the cost.

    def __init__(self, count: int, branch: InvertedBranch, channels_in: int, channels_out: int, change: str, dtype):
        hidden = branch.expansion * channels_in
        plain = {"use_bias": False, "weight_normalized": False, "dtype": dtype}
        stride, groups = 2 if change == "down" else 1, branch.groups or hidden
        depthwise = StackedConvolution(count, hidden, hidden, branch.kernel_size, stride, groups=groups, **plain)
        parts = [
            StackedBatchNormalization(count, channels_in, dtype=dtype),
            StackedConvolution(count, channels_in, hidden, 1, **plain),
            SwishConvolution(depthwise, upsampling=change == "up", dtype=dtype),
            SwishConvolution(StackedConvolution(count, hidden, channels_out, 1, **plain), dtype=dtype),
            StackedBatchNormalization(count, channels_out, dtype=dtype),
        ]
        super().__init__(count, parts, dtype=dtype)
        self.upsampling = change == "up"

    def foldings(self) -> list[Folding]:
        # The first batch norm precedes a convolution of single pixels, the others follow one.
        norm, widen, depthwise, narrow, last = self.parts
        return [
            Folding(widen, norm, on_outputs=False),
            Folding(widen, depthwise.norm),
            Folding(depthwise.convolution, narrow.norm),
            Folding(narrow.convolution, last),
        ]

    def apply_layer(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        in_training = records is not None
        if self.upsampling and not in_training and cpu_kernels.has_cpu_forms():
            return self._in_phases(weights, inputs)
        outputs = super().apply_layer(weights, inputs, records)
        if self.upsampling and in_training:
            # The first two batch norms have seen every pixel once, the published network's four times.
            count = normalization.numbers_a_channel(inputs)
            repeated_variance = 4 * (count - 1.0) / (4 * count - 1.0)
            records[-4:-2] = [(mean, variance * repeated_variance) for mean, variance in records[-4:-2]]
        return outputs

    def _in_phases(self, weights: tuple, inputs: tf.Tensor) -> tf.Tensor:
        norm, widen, (depthwise, depthwise_weights), *others = zip(self.parts, weights, strict=True)
        for part, part_weights in (norm, widen):
            inputs = part.apply_layer(part_weights, inputs, None)
        phases = depthwise.phases(depthwise_weights, inputs)
        for part, part_weights in others:
            phases = [part.apply_layer(part_weights, phase, None) for phase in phases]
        return cpu_kernels.interleaved(tf.stack(phases))


class OperationsBranch(StackedLayer):
    """`bnswish`, `bnswish5` (dilated), `bnelu` or `elu` in a row; the first changes resolution and channels."""

    def __init__(self, count: int, branch: ConvolutionBranch, channels_in: int, channels_out: int, change: str, dtype):
        def stack(operation: str, channels_in: int, change: str) -> StackedLayer:
            strides, dilation = 2 if change == "down" else 1, 2 if operation == "bnswish5" else 1
            kind = DataDependentConvolution if operation == "elu" else StackedConvolution
            convolution = kind(count, channels_in, channels_out, 3, strides, dilation, dtype=dtype)
            activated = EluConvolution if operation in ("elu", "bnelu") else SwishConvolution
            return activated(convolution, upsampling=change == "up", dtype=dtype)

        first, *others = branch.operations
        parts = [stack(first, channels_in, change), *(stack(each, channels_out, "none") for each in others)]
        super().__init__(count, parts, dtype=dtype)

    def foldings(self) -> list[Folding]:
        pairs = itertools.pairwise(self.parts)
        return [Folding(before.convolution, after.norm) for before, after in pairs if after.norm is not None]


class EluConvolution(StackedLayer):
    """(Batch norm, unless the convolution is data-dependent) -> ELU -> (nearest doubling) -> convolution."""

    def __init__(self, convolution: StackedConvolution, upsampling: bool = False, dtype=None):
        norm = None
        if not isinstance(convolution, DataDependentConvolution):
            norm = StackedBatchNormalization(convolution.count, convolution.channels_in, dtype=dtype)
        super().__init__(convolution.count, [norm, convolution] if norm else [convolution], dtype=dtype)
        self.norm, self.convolution, self.upsampling = norm, convolution, upsampling

    def apply_layer(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        if self.norm is not None:
            inputs = self.norm.apply_layer(weights[0], inputs, records)
        inputs = tf.nn.elu(inputs)
        inputs = cpu_kernels.nearest_upsampling(inputs) if self.upsampling else inputs
        return self.convolution.apply_layer(weights[-1], inputs, records)


class SwishConvolution(EluConvolution):
    """Batch norm -> swish -> (nearest doubling) -> convolution, a stack as deep as the convolution's."""

    # In training nothing between these is kept: the backward pass normalizes and activates once more.

    def apply_layer(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        norm, convolution = weights
        if records is None:
            return self._convolve(self._active(norm, inputs), convolution)
        outputs, statistics = _without_keeping(self._convolve, inputs, *norm, convolution.kernel, *convolution.bias)
        records.append(statistics)
        return outputs

    def phases(self, weights: tuple, inputs: tf.Tensor) -> list[tf.Tensor]:
        """What `interleaved` makes the outputs of, in inference, where these have twice the resolution."""
        norm, convolution = weights
        active, kernels = self._active(norm, inputs), cpu_kernels.phase_kernels(convolution.kernel)
        return [self.convolution.apply_layer(convolution._replace(kernel=kernel), active, None) for kernel in kernels]

    def _active(self, norm: tuple, inputs: tf.Tensor) -> tf.Tensor:
        if not norm:
            # Folded: the rewriting of graphs makes one operation of this, which takes less time than `swish`.
            return inputs * tf.sigmoid(inputs)
        return cpu_kernels.swish(self.norm.apply_layer(norm, inputs, None))

    def _convolve(self, active: tf.Tensor, weights: ConvolutionWeights) -> tf.Tensor:
        active = cpu_kernels.nearest_upsampling(active) if self.upsampling else active
        return self.convolution.apply_layer(weights, active, None)


def _without_keeping(convolve: Callable, *arguments: tf.Tensor) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """`convolve(swish(batch norm(x)), weights)` and the statistics; its gradient computes its way there again."""
    statistics = []  # as results of the operation the statistics would have gradients

    def convolve_by(active: tf.Tensor, kernel: tf.Tensor, *bias: tf.Tensor) -> tf.Tensor:
        return convolve(active, ConvolutionWeights(kernel, bias))

    @tf.custom_gradient
    def operation(inputs, gamma, beta, *weights):
        batch = normalization.normalize_batch(inputs, gamma, beta)
        statistics[:] = tf.stop_gradient(batch.mean), tf.stop_gradient(batch.variance)
        outputs = convolve_by(cpu_kernels.swish(batch.outputs), *weights)

        def gradient(upstream):
            moments = batch.divisors()
            # Without this the executor would do it as soon as it can, in the forward pass, and keep the results.
            with tf.control_dependencies([upstream]):
                active, swish_gradient = cpu_kernels.normalized_swish(inputs, gamma, beta, *moments)
            active_gradient, *weight_gradients = cpu_kernels.gradients_of(convolve_by, (active, *weights), upstream)
            return *batch.gradient(swish_gradient(active_gradient)), *weight_gradients

        return outputs, gradient

    return operation(*arguments), tuple(statistics)


class StackedSqueezeExcite(StackedLayer):
    """Gates `[batch, 1, 1, channels]`: channel mean -> dense -> ReLU -> dense -> sigmoid (Hu et al. 2018)."""

    def __init__(self, count: int, channels: int, dtype=None):
        super().__init__(count, dtype=dtype)
        hidden = max(channels // 16, 4)
        for name, units_in, units_out in (("reduce", channels, hidden), ("expand", hidden, channels)):
            uniform = keras.initializers.RandomUniform(-(units_in**-0.5), units_in**-0.5)
            for part, shape in (("kernel", (count, units_in, units_out)), ("bias", (count, units_out))):
                weight = self.add_weight(name=f"{name}_{part}", shape=shape, initializer=uniform)
                setattr(self, weight.name, weight)

    def make_weights(self, forward: ForwardPass) -> tuple[tf.Tensor, ...]:
        return tuple(tf.cast(variable, self.compute_dtype) for variable in self.weights)

    def apply_layer(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        reduce_kernel, reduce_bias, expand_kernel, expand_bias = weights
        hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(tf.reduce_mean(inputs, axis=(1, 2)), reduce_kernel), reduce_bias))
        gate = tf.sigmoid(tf.nn.bias_add(tf.matmul(hidden, expand_kernel), expand_bias))
        return tf.reshape(gate, (-1, 1, 1, gate.shape[-1]))


class FactorizedReduce(StackedLayer):
    """The skip of down cells: swish, then four 1x1 convolutions at stride 2, each on its own shift of the image."""

    # Of the four pixels of a square, row by row, the one that each convolution sees: (0, 0), (1, 1), (0, 1), (1, 0).
    PIXELS = (0, 3, 1, 2)

    def __init__(self, count: int, channels_in: int, channels_out: int, dtype=None):
        quarter = channels_out // 4
        widths = (quarter, quarter, quarter, channels_out - 3 * quarter)
        parts = [StackedConvolution(count, channels_in, width, 1, dtype=dtype) for width in widths]
        super().__init__(count, parts, dtype=dtype)

    def apply_layer(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        # One rearrangement: the gradients of four strided slices take ten times as long on CPUs. With the gradient of
        # `tf.split` XLA would compile a training step anew each time.
        squares = tf.nn.space_to_depth(cpu_kernels.swish(inputs), 2)
        _, height, width, channels = squares.shape
        pixels = tf.unstack(tf.reshape(squares, (-1, height, width, 4, channels // 4)), axis=3)
        parts = zip(self.parts, weights, self.PIXELS, strict=True)
        return cpu_kernels.concatenated([part.apply_layer(own, pixels[i], records) for part, own, i in parts])


class BilinearExpand(StackedLayer):
    """The skip of up cells: aligned bilinear doubling and a 1x1 convolution without bias."""

    # The convolution comes first: both are linear and act on different axes, so it has a quarter of the work.

    def __init__(self, count: int, channels_in: int, channels_out: int, dtype=None):
        convolution = StackedConvolution(count, channels_in, channels_out, 1, use_bias=False, dtype=dtype)
        super().__init__(count, [convolution], dtype=dtype)

    def apply_layer(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        return aligned_bilinear_upsampling(super().apply_layer(weights, inputs, records))


def aligned_bilinear_upsampling(inputs: tf.Tensor) -> tf.Tensor:
    """Doubles height and width bilinearly, in float32; corners keep their places (not so in Keras' UpSampling2D)."""
    # By two matrix products: TensorFlow's operation for it has no second derivative, and is silent about that.
    _, height, width, channels = inputs.shape
    rows = tf.reshape(tf.cast(inputs, tf.float32), (-1, width, channels))
    wider = tf.reshape(tf.matmul(_doubling_matrix(width), rows), (-1, height, 2 * width * channels))
    doubled = tf.reshape(tf.matmul(_doubling_matrix(height), wider), (-1, 2 * height, 2 * width, channels))
    return tf.cast(doubled, inputs.dtype)


def _doubling_matrix(size: int) -> np.ndarray:
    """The matrix `[1, 2 * size, size]` that interpolates `2 * size` values between `size` ones, the ends in place."""
    places = np.linspace(0, size - 1, 2 * size)[:, np.newaxis]
    return np.maximum(1.0 - np.abs(places - np.arange(size)), 0.0)[np.newaxis].astype(np.float32)
