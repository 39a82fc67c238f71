"""The standard-normal draws of all groups, a pure function of their seeds."""

from collections.abc import Sequence

import tensorflow as tf

Shapes = Sequence[tuple[int, int, int]]
_NUMBERS_PER_COUNTER = 4


def batch_noise(
    shapes: Shapes, batch_size: int | tf.Tensor, seed: tf.Tensor | Sequence[int], first: int | tf.Tensor = 0
) -> list[tf.Tensor]:
    """One draw `[batch, height, width, channels]` a group from one seed `[2]` for a whole batch (training).

    The draws of an image depend on the seed and its place in the whole batch: `first` is that of the first of these
    images, where others are drawn elsewhere.
    """
    sizes = _sizes(shapes)
    return _cut(_numbered_draws(sum(sizes), batch_size, seed, first), shapes, sizes)


def noise_per_image(shapes: Shapes, seeds: tf.Tensor) -> list[tf.Tensor]:
    """As `batch_noise`, but from one seed an image `[batch, 2]`: an image's draw does not depend on its batch."""
    sizes = _sizes(shapes)
    noise = tf.map_fn(
        lambda seed: tf.random.stateless_normal((sum(sizes),), seed, alg="philox"),
        seeds,
        fn_output_signature=tf.TensorSpec((sum(sizes),), tf.float32),
    )
    return _cut(noise, shapes, sizes)


def image_seeds(seed: int | tf.Tensor, count: int | tf.Tensor, first: int | tf.Tensor = 0) -> tf.Tensor:
    """Seeds `[count, 2]` of the images `first .. first + count - 1` of a stream."""
    indices = tf.range(first, first + count, dtype=tf.int32)
    return tf.stack([tf.fill(tf.shape(indices), tf.cast(seed, tf.int32)), indices], axis=1)


def noise_of_samples(shapes: Shapes, seeds: tf.Tensor, first: int | tf.Tensor, count: int) -> list[tf.Tensor]:
    """The draws of samples `first ... first + count - 1` of every image, one seed an image `[batch, 2]`.

    `[batch * count, height, width, channels]` a group, the samples of an image one after another. A sample's draw
    depends on the image's seed and its number alone.
    """
    sizes = _sizes(shapes)
    noise = tf.map_fn(
        lambda seed: _numbered_draws(sum(sizes), count, seed, first),
        seeds,
        fn_output_signature=tf.TensorSpec((count, sum(sizes)), tf.float32),
    )
    return _cut(tf.reshape(noise, [-1, sum(sizes)]), shapes, sizes)


def _numbered_draws(
    size: int, count: int | tf.Tensor, seed: tf.Tensor | Sequence[int], first: int | tf.Tensor
) -> tf.Tensor:
    """Draws `[count, size]`, each a function of the seed `[2]` and its number, counted from `first`."""
    # A Philox counter gives four numbers; every draw starts at a counter of its own.
    counters = -(-size // _NUMBERS_PER_COUNTER)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    start = tf.stack([tf.cast(first, tf.uint64) * counters, tf.constant(0, tf.uint64)])
    # Philox gives the same numbers eagerly, in a graph and on every device; the default does not. XLA has its own.
    noise = tf.raw_ops.StatelessRandomNormalV2(
        shape=[count, counters * _NUMBERS_PER_COUNTER],
        key=key,
        counter=counter + start,
        alg=tf.random.Algorithm.PHILOX.value,
    )
    return noise[:, :size]


def _sizes(shapes: Shapes) -> list[int]:
    return [height * width * channels for height, width, channels in shapes]


def _cut(noise: tf.Tensor, shapes: Shapes, sizes: list[int]) -> list[tf.Tensor]:
    pieces = tf.split(noise, sizes, axis=1)
    return [tf.reshape(piece, (-1, *shape)) for piece, shape in zip(pieces, shapes, strict=True)]
