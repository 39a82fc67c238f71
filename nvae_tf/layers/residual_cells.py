"""Stacked residual cells: `skip(x) + 0.1 * gate * branch(x)` (Vahdat & Kautz 2020, figure 3 and appendix A).

`change` is what a cell or a branch does to the resolution: "none", "down" (halves it, doubles the channels) or "up".
"""

import itertools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.latent_plan import Branch, ConvolutionBranch, InvertedBranch
from nvae_tf.layers.convolution import ConvolutionWeights, DataDependentConvolution, StackedConvolution
from nvae_tf.layers.cpu_kernels import (
    concatenated,
    gradients_of,
    has_cpu_forms,
    interleaved,
    nearest_upsampling,
    normalized_swish,
    phase_kernels,
    swish,
)
from nvae_tf.layers.normalization import StackedBatchNormalization, normalize_batch, numbers_a_channel
from nvae_tf.layers.stacked import Folding, ForwardPass, StackedLayer

RESIDUAL_SCALE = 0.1


class ResidualCells(StackedLayer):
    """`count` cells of one kind on `[batch, height, width, channels_in]`.

    `channels_out` equal to `channels_in` makes normal cells, twice it *down* cells, half of it *up* cells.
    """

    def __init__(
        self, count: int, branch: Branch, channels_in: int, channels_out: int, squeeze_excite: bool, dtype=None
    ):
        change = "none" if channels_in == channels_out else "down" if channels_out > channels_in else "up"
        skip = {"none": None, "down": FactorizedReduce, "up": BilinearExpand}[change]
        kind = InvertedResidualBranch if isinstance(branch, InvertedBranch) else OperationsBranch
        parts = [kind(count, branch, channels_in, channels_out, change, dtype=dtype)]
        if squeeze_excite:
            parts.append(StackedSqueezeExcite(count, channels_out, dtype=dtype))
        if skip is not None:
            parts.append(skip(count, channels_in, channels_out, dtype=dtype))
        super().__init__(count, parts, dtype=dtype)
        self.branch = parts[0]
        self.gate = parts[1] if squeeze_excite else None
        self.skip = parts[-1] if skip is not None else None

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        residual = self.branch.apply_slice(weights[0], inputs, records)
        if self.gate is None:
            residual = RESIDUAL_SCALE * residual
        else:
            residual = residual * (RESIDUAL_SCALE * self.gate.apply_slice(weights[1], residual, records))
        skipped = inputs if self.skip is None else self.skip.apply_slice(weights[-1], inputs, records)
        return skipped + residual


class InvertedResidualBranch(StackedLayer):
    """BN -> 1x1 to h -> BN -> swish -> (nearest doubling) -> depthwise or grouped -> BN -> swish -> 1x1 -> BN.

    `h` is `expansion` times the branch's input channels; the convolutions are plain (no weight normalization, no bias).
    The published network doubles first. All before the depthwise convolution acts on pixels by themselves, so the
    numbers are the same at a quarter of the cost. In inference CPUs don't double the image at all, see `phase_kernels`.
    """

    def __init__(
        self, count: int, branch: InvertedBranch, channels_in: int, channels_out: int, change: str, dtype=None
    ):
        hidden = branch.expansion * channels_in
        plain = {"use_bias": False, "weight_normalized": False, "dtype": dtype}
        stride = 2 if change == "down" else 1
        groups = branch.groups or hidden
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

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        if self.upsampling and records is None and has_cpu_forms():
            return self._in_phases(weights, inputs)
        outputs = super().apply_slice(weights, inputs, records)
        if self.upsampling and records is not None:
            # The first two batch norms have seen every pixel once, those of the published network four times.
            count = numbers_a_channel(inputs)
            repeated_variance = 4 * (count - 1.0) / (4 * count - 1.0)
            records[-4:-2] = [(mean, variance * repeated_variance) for mean, variance in records[-4:-2]]
        return outputs

    def _in_phases(self, weights: tuple, inputs: tf.Tensor) -> tf.Tensor:
        norm, widen, (depthwise, depthwise_weights), *others = zip(self.parts, weights, strict=True)
        for part, part_weights in (norm, widen):
            inputs = part.apply_slice(part_weights, inputs, None)
        phases = depthwise.phases(depthwise_weights, inputs)
        for part, part_weights in others:
            phases = [part.apply_slice(part_weights, phase, None) for phase in phases]
        return interleaved(tf.stack(phases))


class OperationsBranch(StackedLayer):
    """`bnswish`, `bnswish5` (dilated), `bnelu` or `elu` in a row; the first changes resolution and channels."""

    def __init__(
        self, count: int, branch: ConvolutionBranch, channels_in: int, channels_out: int, change: str, dtype=None
    ):
        def stack(operation: str, channels_in: int, change: str) -> StackedLayer:
            if operation in ("elu", "bnelu"):
                return EluConvolution(count, operation == "bnelu", channels_in, channels_out, change, dtype=dtype)
            strides, dilation = 2 if change == "down" else 1, 2 if operation == "bnswish5" else 1
            convolution = StackedConvolution(count, channels_in, channels_out, 3, strides, dilation, dtype=dtype)
            return SwishConvolution(convolution, upsampling=change == "up", dtype=dtype)

        first, *others = branch.operations
        parts = [stack(first, channels_in, change), *(stack(each, channels_out, "none") for each in others)]
        super().__init__(count, parts, dtype=dtype)

    def foldings(self) -> list[Folding]:
        pairs = itertools.pairwise(self.parts)
        return [Folding(before.convolution, after.norm) for before, after in pairs if after.norm is not None]


class EluConvolution(StackedLayer):
    """(Batch norm, in `bnelu`) -> ELU -> (nearest doubling) -> 3x3 convolution with bias."""

    def __init__(self, count: int, normalized: bool, channels_in: int, channels_out: int, change: str, dtype=None):
        norm = [StackedBatchNormalization(count, channels_in, dtype=dtype)] if normalized else []
        kind = StackedConvolution if normalized else DataDependentConvolution
        convolution = kind(count, channels_in, channels_out, 3, 2 if change == "down" else 1, dtype=dtype)
        super().__init__(count, [*norm, convolution], dtype=dtype)
        self.upsampling = change == "up"

    @property
    def norm(self) -> StackedLayer | None:
        """The batch norm that it begins with, if it has one."""
        return self.parts[0] if len(self.parts) > 1 else None

    @property
    def convolution(self) -> StackedLayer:
        """The convolution that it ends with."""
        return self.parts[-1]

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        if self.norm is not None:
            inputs = self.norm.apply_slice(weights[0], inputs, records)
        inputs = tf.nn.elu(inputs)
        if self.upsampling:
            inputs = nearest_upsampling(inputs)
        return self.convolution.apply_slice(weights[-1], inputs, records)


class SwishConvolution(StackedLayer):
    """Batch norm -> swish -> (nearest doubling) -> convolution, a stack as deep as that of the convolution.

    Most of a network's memory lies between these three. In training none of it is kept: the backward pass normalizes
    and activates once more, two cheap passes over the input.
    """

    def __init__(self, convolution: StackedConvolution, upsampling: bool = False, dtype=None):
        norm = StackedBatchNormalization(convolution.count, convolution.channels_in, dtype=dtype)
        super().__init__(convolution.count, [norm, convolution], dtype=dtype)
        self.norm, self.convolution, self.upsampling = norm, convolution, upsampling

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        norm, convolution = weights
        if norm is None or norm.mean is not None:
            return self._convolve(self._active(norm, inputs), convolution)
        bias = [] if convolution.bias is None else [convolution.bias]
        weights = norm.gamma, norm.beta, convolution.kernel, *bias
        outputs, statistics = _without_keeping(self._convolve, inputs, *weights)
        if records is not None:
            records.append(statistics)
        return outputs

    def phases(self, weights: tuple, inputs: tf.Tensor) -> list[tf.Tensor]:
        """What `interleaved` makes the outputs of, in inference, where these have twice the resolution."""
        norm, convolution = weights
        active, kernels = self._active(norm, inputs), phase_kernels(convolution.kernel)
        return [self.convolution.apply_slice(convolution._replace(kernel=kernel), active, None) for kernel in kernels]

    def _active(self, norm: tuple | None, inputs: tf.Tensor) -> tf.Tensor:
        if norm is None:
            # Folded: the rewriting of graphs makes one operation of this, which takes less time than `swish`.
            return inputs * tf.sigmoid(inputs)
        return swish(self.norm.apply_slice(norm, inputs, None))

    def _convolve(self, active: tf.Tensor, weights: ConvolutionWeights) -> tf.Tensor:
        if self.upsampling:
            active = nearest_upsampling(active)
        return self.convolution.apply_slice(weights, active, None)


def _without_keeping(
    convolve: Callable[[tf.Tensor, ConvolutionWeights], tf.Tensor], *arguments: tf.Tensor
) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """`convolve(swish(batch norm(x)), weights)` by an operation whose gradient computes its way there again.

    The arguments are x, gamma, beta and the weights. Beside the outputs are mean and variance, for the records: as
    results of the operation they would have gradients.
    """
    statistics = []

    @tf.custom_gradient
    def operation(inputs, gamma, beta, *weights):
        batch = normalize_batch(inputs, gamma, beta)
        statistics[:] = tf.stop_gradient(batch.mean), tf.stop_gradient(batch.variance)
        outputs = convolve(swish(batch.outputs), ConvolutionWeights(*weights))

        def gradient(upstream):
            moments = batch.divisors()
            # Without this the executor would do it as soon as it can, in the forward pass, and keep the results.
            with tf.control_dependencies([upstream]):
                active, swish_gradient = normalized_swish(inputs, gamma, beta, *moments)

            def again(active, *weights):
                return convolve(active, ConvolutionWeights(*weights))

            active_gradient, *weight_gradients = gradients_of(again, (active, *weights), upstream)
            return *batch.gradient(swish_gradient(active_gradient)), *weight_gradients

        return outputs, gradient

    return operation(*arguments), tuple(statistics)


class StackedSqueezeExcite(StackedLayer):
    """`count` gates: channel mean -> dense to `max(channels // 16, 4)` -> ReLU -> dense -> sigmoid (Hu et al. 2018).

    `[batch, height, width, channels]` -> `[batch, 1, 1, channels]` in (0, 1).
    """

    def __init__(self, count: int, channels: int, dtype=None):
        super().__init__(count, dtype=dtype)
        hidden = max(channels // 16, 4)
        for name, units_in, units_out in (("reduce", channels, hidden), ("expand", hidden, channels)):
            uniform = keras.initializers.RandomUniform(-(units_in**-0.5), units_in**-0.5)
            kernel = self.add_weight(name=f"{name}_kernel", shape=(count, units_in, units_out), initializer=uniform)
            bias = self.add_weight(name=f"{name}_bias", shape=(count, units_out), initializer=uniform)
            setattr(self, f"{name}_kernel", kernel)
            setattr(self, f"{name}_bias", bias)

    def weights_of(self, forward: ForwardPass) -> tuple[tf.Tensor, ...]:
        variables = (self.reduce_kernel, self.reduce_bias, self.expand_kernel, self.expand_bias)
        return tuple(tf.cast(variable, self.compute_dtype) for variable in variables)

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        reduce_kernel, reduce_bias, expand_kernel, expand_bias = weights
        hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(tf.reduce_mean(inputs, axis=(1, 2)), reduce_kernel), reduce_bias))
        gate = tf.sigmoid(tf.nn.bias_add(tf.matmul(hidden, expand_kernel), expand_bias))
        return tf.reshape(gate, (-1, 1, 1, gate.shape[-1]))


class FactorizedReduce(StackedLayer):
    """The skip of down cells: swish, then four 1x1 convolutions at stride 2, each on its own shift of the image.

    `[batch, height, width, in]` -> `[batch, height / 2, width / 2, out]`.
    """

    # Of the four pixels of a square, row by row, the one that each convolution sees: (0, 0), (1, 1), (0, 1), (1, 0).
    PIXELS = (0, 3, 1, 2)

    def __init__(self, count: int, channels_in: int, channels_out: int, dtype=None):
        quarter = channels_out // 4
        widths = (quarter, quarter, quarter, channels_out - 3 * quarter)
        parts = [StackedConvolution(count, channels_in, width, 1, dtype=dtype) for width in widths]
        super().__init__(count, parts, dtype=dtype)

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        # One rearrangement: the gradients of four strided slices take ten times as long on CPUs. With the gradient of
        # `tf.split` XLA would compile a training step anew each time.
        squares = tf.nn.space_to_depth(swish(inputs), 2)
        _, height, width, channels = squares.shape
        pixels = tf.unstack(tf.reshape(squares, (-1, height, width, 4, channels // 4)), axis=3)
        parts = zip(self.parts, weights, self.PIXELS, strict=True)
        return concatenated([part.apply_slice(slice_, pixels[pixel], records) for part, slice_, pixel in parts])


class BilinearExpand(StackedLayer):
    """The skip of up cells: aligned bilinear doubling and a 1x1 convolution without bias.

    The convolution comes first: both are linear and act on different axes, so the numbers are the same at a quarter of
    the cost. `[batch, height, width, in]` -> `[batch, 2 height, 2 width, out]`.
    """

    def __init__(self, count: int, channels_in: int, channels_out: int, dtype=None):
        convolution = StackedConvolution(count, channels_in, channels_out, 1, use_bias=False, dtype=dtype)
        super().__init__(count, [convolution], dtype=dtype)

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        return aligned_bilinear_upsampling(self.parts[0].apply_slice(weights[0], inputs, records))


def aligned_bilinear_upsampling(inputs: tf.Tensor) -> tf.Tensor:
    """Doubles height and width bilinearly, in float32; corners keep their places (not so in Keras' UpSampling2D).

    By two matrix products: TensorFlow's operation for it has no second derivative, and is silent about that.
    """
    _, height, width, channels = inputs.shape
    rows = tf.reshape(tf.cast(inputs, tf.float32), (-1, width, channels))
    wider = tf.reshape(tf.matmul(_doubling_matrix(width), rows), (-1, height, 2 * width * channels))
    doubled = tf.reshape(tf.matmul(_doubling_matrix(height), wider), (-1, 2 * height, 2 * width, channels))
    return tf.cast(doubled, inputs.dtype)


def _doubling_matrix(size: int) -> np.ndarray:
    """The matrix `[1, 2 * size, size]` that interpolates `2 * size` values between `size` ones, the ends in place."""
    places = np.linspace(0, size - 1, 2 * size)[:, np.newaxis]
    return np.maximum(1.0 - np.abs(places - np.arange(size)), 0.0)[np.newaxis].astype(np.float32)
