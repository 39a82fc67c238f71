"""The residual branches of the cells (Vahdat & Kautz 2020, figure 3): operations in a row, and inverted residuals.

`change` says what a cell does to the resolution: "none", "down" (halves it, doubles the channels) or "up".
"""

import itertools

import tensorflow as tf

from nvae_tf import latent_plan
from nvae_tf.layers.batch_normalization import StackedBatchNormalization
from nvae_tf.layers.convolution import DataDependentConvolution, StackedConvolution
from nvae_tf.layers.normalization import numbers_a_channel
from nvae_tf.layers.resampling import nearest_upsampling
from nvae_tf.layers.stacked import Folding, StackedLayer
from nvae_tf.layers.swish_convolution import SwishConvolution


class EluConvolution(StackedLayer):
    """(Batch norm, in `bnelu`) -> ELU -> (nearest doubling) -> 3x3 convolution with bias."""

    def __init__(self, count: int, normalized: bool, channels_in: int, channels_out: int, change: str, **kwargs):
        shared = {"dtype": kwargs.get("dtype")}
        norm = [StackedBatchNormalization(count, channels_in, **shared)] if normalized else []
        kind = StackedConvolution if normalized else DataDependentConvolution
        convolution = kind(count, channels_in, channels_out, 3, 2 if change == "down" else 1, **shared)
        super().__init__(count, [*norm, convolution], **kwargs)
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
        """One operation on `[batch, height, width, channels]`."""
        if self.norm is not None:
            inputs = self.norm.apply_slice(weights[0], inputs, records)
        inputs = tf.nn.elu(inputs)
        if self.upsampling:
            inputs = nearest_upsampling(inputs)
        return self.convolution.apply_slice(weights[-1], inputs, records)


def activated_convolution(
    count: int, operation: str, channels_in: int, channels_out: int, change: str, dtype=None
) -> StackedLayer:
    """The stack of one operation by its name: `bnswish`, `bnswish5` (dilated), `bnelu` or `elu`."""
    if operation in ("elu", "bnelu"):
        return EluConvolution(count, operation == "bnelu", channels_in, channels_out, change, dtype=dtype)
    strides, dilation = 2 if change == "down" else 1, 2 if operation == "bnswish5" else 1
    convolution = StackedConvolution(count, channels_in, channels_out, 3, strides, dilation, dtype=dtype)
    return SwishConvolution(convolution, upsampling=change == "up", dtype=dtype)


class OperationsBranch(StackedLayer):
    """Activated convolutions in a row; the first carries the change of resolution and of channels."""

    def __init__(
        self,
        count: int,
        operations: tuple[str, ...],
        channels_in: int,
        channels_out: int,
        change: str,
        **kwargs,
    ):
        dtype = kwargs.get("dtype")
        first, *others = operations
        parts = [activated_convolution(count, first, channels_in, channels_out, change, dtype=dtype)]
        parts += [
            activated_convolution(count, operation, channels_out, channels_out, "none", dtype=dtype)
            for operation in others
        ]
        super().__init__(count, parts, **kwargs)

    def foldings(self) -> list[Folding]:
        """Every operation but the first normalizes what the convolution before it gives."""
        pairs = itertools.pairwise(self.parts)
        return [Folding(before.convolution, after.norm) for before, after in pairs if after.norm is not None]

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """The operations one after another."""
        for part, slice_ in zip(self.parts, weights, strict=True):
            inputs = part.apply_slice(slice_, inputs, records)
        return inputs


class InvertedResidualBranch(StackedLayer):
    """BN -> 1x1 to h -> BN -> swish -> (nearest doubling) -> depthwise or grouped -> BN -> swish -> 1x1 -> BN.

    `h` is `expansion` times the branch's input channels; the convolutions are plain (no weight normalization, no bias).
    The published network doubles first. All before the depthwise convolution acts on pixels by themselves, so the
    numbers are the same at a quarter of the cost.
    """

    def __init__(
        self,
        count: int,
        branch: latent_plan.InvertedBranch,
        channels_in: int,
        channels_out: int,
        change: str,
        **kwargs,
    ):
        hidden = branch.expansion * channels_in
        shared = {"dtype": kwargs.get("dtype")}
        plain = {"use_bias": False, "weight_normalized": False, **shared}
        stride = 2 if change == "down" else 1
        groups = branch.groups or hidden
        depthwise = StackedConvolution(count, hidden, hidden, branch.kernel_size, stride, groups=groups, **plain)
        parts = [
            StackedBatchNormalization(count, channels_in, **shared),
            StackedConvolution(count, channels_in, hidden, 1, **plain),
            SwishConvolution(depthwise, upsampling=change == "up", **shared),
            SwishConvolution(StackedConvolution(count, hidden, channels_out, 1, **plain), **shared),
            StackedBatchNormalization(count, channels_out, **shared),
        ]
        super().__init__(count, parts, **kwargs)
        self.upsampling = change == "up"

    def foldings(self) -> list[Folding]:
        """All four batch norms: the first precedes a convolution that looks at single pixels, the others follow one."""
        norm, widen, depthwise, narrow, last = self.parts
        return [
            Folding(widen, norm, on_outputs=False),
            Folding(widen, depthwise.norm),
            Folding(depthwise.convolution, narrow.norm),
            Folding(narrow.convolution, last),
        ]

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """One inverted residual on `[batch, height, width, channels]`."""
        outputs = inputs
        for part, slice_ in zip(self.parts, weights, strict=True):
            outputs = part.apply_slice(slice_, outputs, records)
        if self.upsampling and records is not None:
            # The first two batch norms have seen every pixel once, those of the published network four times.
            count = numbers_a_channel(inputs)
            records[-4:-2] = [statistics.of_repeated(count, 4) for statistics in records[-4:-2]]
        return outputs


def residual_branch(
    count: int, branch: latent_plan.Branch, channels_in: int, channels_out: int, change: str, dtype=None
) -> StackedLayer:
    """The stack of branches that the plan asks for."""
    if isinstance(branch, latent_plan.InvertedBranch):
        return InvertedResidualBranch(count, branch, channels_in, channels_out, change, dtype=dtype)
    return OperationsBranch(count, branch.operations, channels_in, channels_out, change, dtype=dtype)
