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
    sizes = [height * width * channels for height, width, channels in shapes]
    # A Philox counter gives four numbers; every image starts at a counter of its own.
    counters = -(-sum(sizes) // _NUMBERS_PER_COUNTER)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    start = tf.stack([tf.cast(first, tf.uint64) * counters, tf.constant(0, tf.uint64)])
    # Philox gives the same numbers eagerly, in a graph and on every device; the default does not. XLA has its own.
    noise = tf.raw_ops.StatelessRandomNormalV2(
        shape=[batch_size, counters * _NUMBERS_PER_COUNTER],
        key=key,
        counter=counter + start,
        alg=tf.random.Algorithm.PHILOX.value,
    )
    return _cut(noise[:, : sum(sizes)], shapes, sizes)


def noise_per_image(shapes: Shapes, seeds: tf.Tensor) -> list[tf.Tensor]:
    """As `batch_noise`, but from one seed an image `[batch, 2]`: an image's draw does not depend on its batch."""
    sizes = [height * width * channels for height, width, channels in shapes]
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


def folded(seeds: tf.Tensor, numbers: int | tf.Tensor) -> tf.Tensor:
    """Other seeds `[batch, 2]` from the same ones: an independent stream for every number `[batch]`, or one for all."""
    return tf.map_fn(
        lambda pair: tf.random.experimental.stateless_fold_in(pair[0], pair[1], alg="philox"),
        (seeds, tf.broadcast_to(tf.convert_to_tensor(numbers, tf.int32), tf.shape(seeds)[:1])),
        fn_output_signature=tf.TensorSpec((2,), seeds.dtype),
    )


def _cut(noise: tf.Tensor, shapes: Shapes, sizes: list[int]) -> list[tf.Tensor]:
    pieces = tf.split(noise, sizes, axis=1)
    return [tf.reshape(piece, (-1, *shape)) for piece, shape in zip(pieces, shapes, strict=True)]
