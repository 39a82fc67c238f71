"""PNG files in a graph, as tensors: from their bytes to images as the model sees them, and back."""

import struct

import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.data.pipeline import intensity_table

# How a PNG file begins, up to its width and height; its end; where its type of color ends, and one such type.
_BEGINNING, _END = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", b"\x00\x00\x00\x00IEND\xaeB`\x82"
_HEADER_BYTES, _GRAY_WITH_ALPHA = 26, b"\x04"


def images_of_files(image_bytes: tf.Tensor, config: ModelConfig) -> tuple[tf.Tensor, tf.Tensor]:
    """Images `[batch, height, width, channels]` in [0, 1] of PNG files `[batch]` of the model's size.

    Values are quantized to the bits of the model's data, as in training: with 1 bit, values from 128 up are white.
    Gray is converted to color and back where the model has other channels. Also which files have the right size and are
    whole `[batch]`; the images of the others are black. InvalidArgumentError where a file is damaged between header and
    end: no graph can check its sums.
    """
    shape = (config.image_height, config.image_width, config.image_channels)
    size = struct.pack(">II", config.image_width, config.image_height)
    # From the header, since a small file may be gigabytes when it is decoded; and the end, which a file cut off lacks.
    padding = " " * _HEADER_BYTES
    header = tf.strings.substr(tf.strings.join([image_bytes, padding]), 0, _HEADER_BYTES)
    is_right = tf.equal(tf.strings.substr(header, 0, len(_BEGINNING + size)), _BEGINNING + size)
    end = tf.strings.substr(tf.strings.join([padding, image_bytes]), -len(_END), len(_END))
    is_right &= tf.equal(end, _END)
    channels = config.image_channels
    if channels == 2:
        # The operation has no gray with alpha to ask for: 0 takes what the file has.
        channels = 0
        is_right &= tf.equal(tf.strings.substr(header, _HEADER_BYTES - 1, 1), _GRAY_WITH_ALPHA)
    files = tf.where(is_right, image_bytes, tf.io.encode_png(tf.zeros(shape, tf.uint8)))

    def decoded(content: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.io.decode_png(content, channels=channels, dtype=tf.uint8), shape)

    pixels = tf.map_fn(decoded, files, fn_output_signature=tf.TensorSpec(shape, tf.uint8))
    return tf.gather(tf.constant(intensity_table(config.num_bits)), tf.cast(pixels, tf.int32)), is_right


def eight_bit_pixels(image: tf.Tensor) -> tf.Tensor:
    """uint8 pixels of images of any shape in [0, 1]."""
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 1.0) * 255.0), tf.uint8)


def files_of_pixels(pixels: tf.Tensor) -> tf.Tensor:
    """PNG files `[batch]` of 8-bit pixels `[batch, height, width, 1 to 4]`."""
    return tf.map_fn(tf.io.encode_png, pixels, fn_output_signature=tf.TensorSpec((), tf.string))
