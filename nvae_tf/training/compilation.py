"""How the training step is compiled: by XLA as a whole, in parts, or not."""

from collections.abc import Callable

import keras
import tensorflow as tf

from nvae_tf.config import check
from nvae_tf.training.devices import gpus


def compiles_whole_step(xla: str, replica_count: int) -> bool:
    """Follows `train.xla`, before the first graph is built.

    "auto" compiles the whole step for one GPU. Several replicas can't do that, because they talk to each other in the
    middle of it: there XLA compiles what lies between ("cluster"). On CPUs it runs this model's convolutions 30 to 50
    times slower than TensorFlow's own kernels, so there it is off.

    Returns:
      Whether to give `jit_compile=True`.

    Raises:
      ValueError: "jit" for several replicas.
    """
    if xla == "auto":
        xla = "off" if not gpus() else "jit" if replica_count == 1 else "cluster"
    check(
        xla != "jit" or replica_count == 1,
        f"train.xla = 'jit': not possible with {replica_count} replicas; set train.xla=cluster (or auto)",
    )
    if xla == "cluster":
        tf.config.optimizer.set_jit(True)
    return xla == "jit"


def step_function(strategy: tf.distribute.Strategy, model: keras.Model, compiled: bool) -> Callable:
    """The training step on all replicas, as a function of their images (`Replicas.divided`)."""
    # No autograph: the model is written in TensorFlow's own control flow, and traces faster without.
    return tf.function(lambda images: strategy.run(model.train_step, (images,)), autograph=False, jit_compile=compiled)
