"""Stacked layers: the building blocks of the network, many identical ones in one variable each."""

from nvae_tf.layers.convolution import DataDependentConvolution, StackedConvolution, kernels_of_all
from nvae_tf.layers.normalization import FoldedPass, FoldedWeights, StackedBatchNormalization, folded_weights
from nvae_tf.layers.packing import FirstAxisPacking, Packing
from nvae_tf.layers.residual_cells import KerasLayers, ResidualCells, StackedSqueezeExcite
from nvae_tf.layers.stacked import ForwardPass, StackedLayer, layers_of_kind, stack_of, variables_named_alike
from nvae_tf.layers.steps import StackShare, run_cells, run_steps
