"""NVAE, a deep hierarchical variational autoencoder, on TensorFlow and Keras."""

from nvae_tf.config import ExperimentConfig, ModelConfig, ObjectiveConfig, experiment_config
from nvae_tf.models import NVAE

__version__ = "0.1.0"

__all__ = ["NVAE", "ExperimentConfig", "ModelConfig", "ObjectiveConfig", "experiment_config"]
