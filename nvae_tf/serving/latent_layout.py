"""How the latents of all groups lie in one flat vector, which is what exports take and give."""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

Shapes = Sequence[tuple[int, int, int]]


def latent_sizes(shapes: Shapes) -> list[int]:
    """The number of values of each group."""
    return [math.prod(shape) for shape in shapes]


def latent_layout(shapes: Shapes) -> dict[str, Any]:
    """The order, the groups' shapes and the length of a flat latent, as JSON knows them."""
    return {
        "order": "group after group, the top group first; each [height, width, channels], row-major",
        "shapes": [list(shape) for shape in shapes],
        "total": sum(latent_sizes(shapes)),
    }


def groups_of_flat(flat: tf.Tensor, shapes: Shapes) -> list[tf.Tensor]:
    """`[batch, total]` -> `[batch, height, width, channels]` a group."""
    groups = zip(tf.split(flat, latent_sizes(shapes), axis=1), shapes, strict=True)
    return [tf.reshape(group, [-1, *shape]) for group, shape in groups]


def flat_of_groups(latents: Sequence[tf.Tensor], shapes: Shapes) -> tf.Tensor:
    """`[batch, height, width, channels]` a group -> `[batch, total]`."""
    sizes = latent_sizes(shapes)
    return tf.concat([tf.reshape(latent, [-1, size]) for latent, size in zip(latents, sizes, strict=True)], axis=1)
