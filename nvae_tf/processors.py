"""What computes: on CPUs some operations have a quicker form than TensorFlow's own, which GPUs need not."""

import tensorflow as tf

from nvae_tf.replicas import replica_count


def has_gpus() -> bool:
    """Whether this process may use a GPU."""
    return bool(tf.config.get_visible_devices("GPU"))


def on_one_cpu() -> bool:
    """Whether there is one replica and no GPU."""
    return not has_gpus() and replica_count() == 1
