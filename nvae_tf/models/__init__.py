"""The networks and the model."""

from nvae_tf.models.nvae import NVAE
