"""Weights made ready once, for models that are not trained any more: fewer operations, the same images.

In a network as it is trained, every pass normalizes the weights and applies batch norm by its running statistics. Both
are fixed when training is over: `exp(s) w / ||w||` is a kernel, and batch norm beside a convolution, with nothing
between the two, is a factor and a shift that the convolution can take over.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.layers.batch_normalization import BatchNormalizationWeights
from nvae_tf.layers.convolution import ConvolutionWeights
from nvae_tf.layers.normalization import EPSILON
from nvae_tf.layers.stacked import Folding, ForwardPass, StackedLayer
from nvae_tf.setting_checks import check

# Of every stack that owns variables one element a layer: a tuple of variables, or None for a batch norm that is folded.
FoldedWeights = Mapping[StackedLayer, list[Any]]


@dataclasses.dataclass
class FoldedPass(ForwardPass):
    """An inference pass with folded weights.

    Attributes:
      folded: from `folded_weights`.
    """

    folded: FoldedWeights = dataclasses.field(default_factory=dict)

    def slices_of(self, layer: StackedLayer) -> list[Any]:
        """The folded weights of a stack in float32; of one made of parts as ever."""
        if layer not in self.folded:
            return super().slices_of(layer)
        return tf.nest.map_structure(_read, self.folded[layer])


def folded_weights(stacks: Iterable[StackedLayer], kernel_dtype: str = "float32") -> FoldedWeights:
    """Weight normalization and, where that is possible, inference batch norm, folded into kernels and biases.

    Every layer has variables of its own: a slice of a stack would be copied at each use. They do not follow the stacks'
    variables.

    Args:
      stacks: all of a model, those that others are made of too.
      kernel_dtype: in which kernels are kept; vectors are float32, and all is computed in float32.

    Raises:
      ValueError: the stacks compute in half precision.
    """
    stacks = list(stacks)
    check(
        all(stack.compute_dtype == "float32" for stack in stacks),
        "weights of a model in half precision can't be folded: make it with dtype='float32'",
    )
    folded = {stack: _arrays(stack.slices(ForwardPass())) for stack in stacks if not stack.parts}
    for stack in stacks:
        for folding in stack.foldings():
            _fold(folded, folding)
    return {
        stack: tf.nest.map_structure(lambda array: _variable(array, kernel_dtype), slices)
        for stack, slices in folded.items()
    }


def _fold(folded: dict[StackedLayer, list[Any]], folding: Folding) -> None:
    convolution, norm, on_outputs = folding
    fold = _scaled_outputs if on_outputs else _scaled_inputs
    rows = zip(folded[convolution], folded[norm], strict=True)
    folded[convolution] = [fold(weights, *_scale_and_shift(statistics)) for weights, statistics in rows]
    folded[norm] = [None] * norm.count


def _scale_and_shift(norm: BatchNormalizationWeights) -> tuple[np.ndarray, np.ndarray]:
    scale = norm.gamma / np.sqrt(norm.variance + EPSILON)
    return scale, norm.beta - norm.mean * scale


def _scaled_outputs(weights: ConvolutionWeights, scale: np.ndarray, shift: np.ndarray) -> ConvolutionWeights:
    """`scale * convolution(x) + shift`; output channels are the kernel's last axis, of a depthwise one too."""
    bias = 0.0 if weights.bias is None else weights.bias
    return ConvolutionWeights(weights.kernel * scale, bias * scale + shift)


def _scaled_inputs(weights: ConvolutionWeights, scale: np.ndarray, shift: np.ndarray) -> ConvolutionWeights:
    """`convolution(scale * x + shift)` of a 1x1 kernel: a larger one would see its zero padding shifted too."""
    bias = 0.0 if weights.bias is None else weights.bias
    return ConvolutionWeights(weights.kernel * scale[:, np.newaxis], bias + shift @ weights.kernel[0, 0])


def _arrays(slices: list[Any]) -> list[Any]:
    # In double precision, so that each number is rounded once.
    return tf.nest.map_structure(lambda weight: None if weight is None else np.asarray(weight, np.float64), slices)


def _variable(array: np.ndarray | None, kernel_dtype: str) -> tf.Variable | None:
    if array is None:
        return None
    return tf.Variable(tf.cast(array, kernel_dtype if array.ndim > 1 else tf.float32), trainable=False)


def _read(weight: tf.Variable | None) -> tf.Tensor | None:
    return None if weight is None else tf.cast(weight, tf.float32)
