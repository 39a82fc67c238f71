"""Pictures as bytes of PNG files inside a graph: what a REST client sends and gets."""

import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.data.pipeline import intensity_table
from nvae_tf.serving.saved_models.input_checks import tied

# What a PNG file begins with, and up to where its size stands.
_PNG = b"\x89PNG\r\n\x1a\n"
_HEADER_LENGTH = 24


def images_from_bytes(image_bytes: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Images `[batch, height, width, channels]` in [0, 1] of PNG files `[batch]`.

    They are brought to the bits of the model's data as the data are: with 1 bit, values from 128 up are white. Gray
    is converted to color and back where the model has other channels.

    Raises:
      tf.errors.InvalidArgumentError: a file is no PNG file, or of another size than the model's.
    """
    shape = (config.image_height, config.image_width, config.image_channels)

    def pixels_of(content: tf.Tensor) -> tf.Tensor:
        content = _of_size(content, config.image_height, config.image_width)
        # The operation has no gray with alpha to ask for: 0 takes what the file has.
        channels = 0 if config.image_channels == 2 else config.image_channels
        pixels = tf.io.decode_png(content, channels=channels, dtype=tf.uint8)
        message = f"image_bytes: a picture must be of shape {list(shape)} (height, width, channels); this one is of:"
        pixels = tied(pixels, tf.reduce_all(tf.equal(tf.shape(pixels), shape)), [message, tf.shape(pixels)])
        # Not `ensure_shape`, whose own message might come first.
        pixels.set_shape(shape)
        return pixels

    pixels = tf.map_fn(pixels_of, image_bytes, fn_output_signature=tf.TensorSpec(shape, tf.uint8))
    return tf.gather(tf.constant(intensity_table(config.num_bits)), tf.cast(pixels, tf.int32))


def _of_size(content: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """A PNG file whose header tells this size: one that is small as a file may be gigabytes when it is decoded."""
    beginning = tf.strings.substr(tf.strings.join([content, " " * _HEADER_LENGTH]), 0, _HEADER_LENGTH)
    is_png = tf.equal(tf.strings.substr(beginning, 0, len(_PNG)), _PNG)
    beginning = tied(beginning, is_png, ["image_bytes: must be PNG files"])
    # Width and height stand at the end of it, the most significant byte first.
    size = tf.reverse(tf.io.decode_raw(tf.strings.substr(beginning, 16, 8), tf.int32, little_endian=False), [0])
    message = f"image_bytes: a picture must be of size {[height, width]} (height, width); this one is of:"
    return tied(content, tf.reduce_all(tf.equal(size, [height, width])), [message, size])


def pixels_of_images(image: tf.Tensor) -> tf.Tensor:
    """uint8 pixels of images of any shape in [0, 1]."""
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 1.0) * 255.0), tf.uint8)


def bytes_of_images(image: tf.Tensor) -> tf.Tensor:
    """PNG files `[batch]` of images `[batch, height, width, 1 to 4]` in [0, 1]."""
    signature = tf.TensorSpec((), tf.string)
    return tf.map_fn(tf.io.encode_png, pixels_of_images(image), fn_output_signature=signature)
