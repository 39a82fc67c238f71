"""The networks and the model."""

from nvae_tf.models.nvae import NVAE, ModelForTraining, model_for_training

__all__ = ["NVAE", "ModelForTraining", "model_for_training"]
