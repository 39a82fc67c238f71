"""The optimizer and the learning-rate schedule of the published training runs."""

from nvae_tf.optimization.adamax import NVAEAdamax
from nvae_tf.optimization.averaging import average_of_weights, averaged_weights
from nvae_tf.optimization.loss_scaling import inner_optimizer
from nvae_tf.optimization.schedule import LoweredRate, WarmupCosine
from nvae_tf.optimization.step_guard import RunawayGuard, StepGuard

__all__ = [
    "LoweredRate",
    "NVAEAdamax",
    "RunawayGuard",
    "StepGuard",
    "WarmupCosine",
    "average_of_weights",
    "averaged_weights",
    "inner_optimizer",
]
