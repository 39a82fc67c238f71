"""Settings of TensorFlow's runtime that suit the devices that are there."""

import tensorflow as tf


def suit_devices() -> None:
    """Before the first graph is built: on a CPU alone, leaves out grappler's rewriting of graphs.

    It takes longer than everything else before the first step (on the MNIST preset 16 s of processor time, 10 s
    without), and the steps that follow are no faster for it. Graphs are built small to begin with, see
    `nvae_tf.layers.stacked`.
    """
    if not tf.config.list_physical_devices("GPU"):
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
