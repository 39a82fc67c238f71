"""Checks of a signature's inputs that travel inside the exported graph, so that a server refuses nonsense.

Each returns its input, tied to the check by a control dependency, so that no pruning of the graph can leave
the check out. A check that fails raises `tf.errors.InvalidArgumentError`, a server's INVALID_ARGUMENT.
"""

import tensorflow as tf

# How many of the wrong values an error message lists.
_LISTED = 5


def checked_image(image: tf.Tensor) -> tf.Tensor:
    """Images of any shape: all values in [0, 1]."""
    valid = (image >= 0.0) & (image <= 1.0)  # false for NaN
    return _checked(image, valid, "image: values must be finite and in [0, 1] (divide 8-bit values by 255)")


def checked_temperature(temperature: tf.Tensor) -> tf.Tensor:
    """Temperatures of any shape: all finite and above 0."""
    valid = tf.math.is_finite(temperature) & (temperature > 0.0)
    return _checked(temperature, valid, "temperature: values must be finite and above 0")


def checked_latent(latent: tf.Tensor) -> tf.Tensor:
    """Latents of any shape: all finite."""
    return _checked(latent, tf.math.is_finite(latent), "latent: values must be finite")


def checked_result(image: tf.Tensor) -> tf.Tensor:
    """Images that the network has made: all finite, as they are unless temperatures or latents are beyond all sense."""
    return _checked(image, tf.math.is_finite(image), "image: not finite; a temperature or a latent is too large")


def checked_num_groups(num_groups: tf.Tensor, beside: tf.Tensor, name: str, groups: int) -> tf.Tensor:
    """Numbers of groups `[batch]`: each from 0 to `groups`, one for each row of `beside`, the input called `name`."""
    valid = (num_groups >= 0) & (num_groups <= groups)
    num_groups = _checked(num_groups, valid, f"num_groups: values must be from 0 to {groups}")
    return checked_rows("num_groups", num_groups, beside, name)


def checked_rows(own_name: str, value: tf.Tensor, beside: tf.Tensor, name: str) -> tf.Tensor:
    """Values `[batch]`: as many as there are rows in `beside`, the input called `name`.

    One for many rows would broadcast and quietly serve all of them.
    """
    rows, wanted = tf.shape(value)[0], tf.shape(beside)[0]
    message = f"{own_name}: there must be one for each row of {name}; found and rows given:"
    return tied(value, tf.equal(rows, wanted), [message, rows, wanted])


def _checked(value: tf.Tensor, valid: tf.Tensor, message: str) -> tf.Tensor:
    wrong = tf.boolean_mask(value, ~valid)
    return tied(value, tf.reduce_all(valid), [f"{message}; wrong values:", wrong])


def tied(value: tf.Tensor, condition: tf.Tensor, message: list) -> tf.Tensor:
    """The value, tied to a check of the condition; the message is a text and tensors."""
    with tf.control_dependencies([tf.debugging.Assert(condition, message, summarize=_LISTED)]):
        return tf.identity(value)
