"""The optimizer and the learning-rate schedule of the published training runs."""

from nvae_tf.optimization.adamax import NVAEAdamax
from nvae_tf.optimization.schedule import WarmupCosine

__all__ = ["NVAEAdamax", "WarmupCosine"]
