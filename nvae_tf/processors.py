"""What computes: on CPUs some operations have a quicker form than TensorFlow's own, which GPUs need not."""

import functools
from collections.abc import Callable

import tensorflow as tf

from nvae_tf.replicas import replica_count


def has_gpus() -> bool:
    """Whether this process may use a GPU."""
    return bool(tf.config.get_visible_devices("GPU"))


def in_one_pass(function: Callable) -> Callable:
    """An element-wise function of tensors whose operations follow one another in a single pass over the memory.

    On one CPU it is compiled by XLA, anew for every shape: for training, where shapes stay the same.
    """
    if has_gpus() or replica_count() > 1:
        return function
    return _compiled(function)


@functools.cache
def _compiled(function: Callable) -> Callable:
    return tf.function(function, autograph=False, jit_compile=True)
