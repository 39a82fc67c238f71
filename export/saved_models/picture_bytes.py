"""Pictures as bytes of PNG files inside a graph: what a REST client sends and gets."""

import tensorflow as tf

from export.saved_models.input_checks import tied
from nvae_tf.config import ModelConfig
from nvae_tf.data.preprocessing import intensity_table


def images_from_bytes(image_bytes: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Images `[batch, height, width, channels]` in [0, 1] of files of pictures `[batch]`, PNG or another usual kind.

    They are brought to the bits of the model's data as the data are: with 1 bit, values from 128 up are white. Grey
    is converted to colour and back where the model has other channels.

    Raises:
      tf.errors.InvalidArgumentError: a file is no picture, or of another size than the model's.
    """
    shape = (config.image_height, config.image_width, config.image_channels)

    def pixels_of(content: tf.Tensor) -> tf.Tensor:
        # The operation has no grey with alpha to ask for: 0 takes what the file has.
        channels = 0 if config.image_channels == 2 else config.image_channels
        pixels = tf.io.decode_png(content, channels=channels, dtype=tf.uint8)
        message = f"image_bytes: a picture must be of shape {list(shape)} (height, width, channels); this one is of:"
        pixels = tied(pixels, tf.reduce_all(tf.equal(tf.shape(pixels), shape)), [message, tf.shape(pixels)])
        # Not `ensure_shape`, whose own message might come first.
        pixels.set_shape(shape)
        return pixels

    pixels = tf.map_fn(pixels_of, image_bytes, fn_output_signature=tf.TensorSpec(shape, tf.uint8))
    return tf.gather(tf.constant(intensity_table(config.num_bits)), tf.cast(pixels, tf.int32))


def pixels_of_images(image: tf.Tensor) -> tf.Tensor:
    """uint8 pixels of images of any shape in [0, 1]."""
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 1.0) * 255.0), tf.uint8)


def bytes_of_images(image: tf.Tensor) -> tf.Tensor:
    """PNG files `[batch]` of images `[batch, height, width, 1 to 4]` in [0, 1]."""
    signature = tf.TensorSpec((), tf.string)
    return tf.map_fn(tf.io.encode_png, pixels_of_images(image), fn_output_signature=signature)
