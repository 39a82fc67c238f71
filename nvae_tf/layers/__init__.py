"""Stacked layers: the building blocks of the network, many identical ones in one variable each."""

from nvae_tf.layers.batch_normalization import StackedBatchNormalization
from nvae_tf.layers.convolution import DataDependentConvolution, StackedConvolution
from nvae_tf.layers.folding import FoldedPass, folded_weights
from nvae_tf.layers.residual_cells import ResidualCells, StackedSqueezeExcite
from nvae_tf.layers.stacked import ForwardPass, StackedLayer, stack_of, unstacked
