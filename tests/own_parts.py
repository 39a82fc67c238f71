"""A likelihood and a cell that are registered, with state and without, in the way of docs/extending.md."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

import nvae_tf


@nvae_tf.register_likelihood("fixed_laplace")
class FixedLaplace:
    def __init__(self, config):
        self.num_parameters = config.image_channels

    def distribution(self, parameters):
        return tfp.distributions.Laplace(tf.sigmoid(parameters), 0.1)


@nvae_tf.register_cell("normed", parts=("preprocess", "encoder", "decoder"))
class Normed(keras.layers.Layer):
    def __init__(self, channels):
        super().__init__()
        self.convolution = keras.layers.Conv2D(channels, 3, padding="same")
        self.norm = keras.layers.BatchNormalization()

    def call(self, inputs, training=False):
        return keras.activations.swish(self.norm(self.convolution(inputs), training=training))
