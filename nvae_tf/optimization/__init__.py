"""The optimizer and the learning-rate schedule of the published training runs, and which steps are skipped."""

from nvae_tf.optimization.adamax import NVAEAdamax
from nvae_tf.optimization.schedule import LoweredRate, WarmupCosine
from nvae_tf.optimization.step_guard import RunawayGuard, StepGuard
from nvae_tf.optimization.weight_averages import average_of_weights, averaged_weights, inner_optimizer, start_averages
