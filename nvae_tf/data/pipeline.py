"""The input pipeline: batches of images in [0, 1] as a pure function of (seed, step)."""

from collections.abc import Iterator, Sequence

import tensorflow as tf

from nvae_tf.data.closing import closed_at_exit
from nvae_tf.data.image_sources import ImageSource
from nvae_tf.data.ordering import ALL, Shard, sequential_index_batches, shuffled_index_batches
from nvae_tf.data.preprocessing import binarise, flip_horizontally, intensity_table
from nvae_tf.data.random_streams import RandomStream, stream_key
from nvae_tf.data.sources import check_image_shape
from nvae_tf.data_spec import DataSpec

# Enough to keep a device busy; left to itself, tf.data fills half of the machine's memory with large images.
_BATCHES_AHEAD = 4


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Returns the number of whole batches in `count` examples; a last partial batch is dropped.

    Raises:
        ValueError: the batch size is not positive, or larger than the split.
    """
    _check_batch_size(batch_size)
    if batch_size > count:
        raise ValueError(
            f"A batch of {batch_size} is larger than the training split of {count} images: "
            f"set train.batch_size (times the number of replicas) to {count} or less."
        )
    return count // batch_size


def training_batches(
    source: ImageSource, spec: DataSpec, batch_size: int, seed: int, start_step: int = 0, share: Shard = ALL
) -> tf.data.Dataset:
    """Returns endless training batches.

    Batch number `step` is a pure function of (source, spec, batch size, seed, step), with its binarization
    and flips: starting at any step gives bit for bit the batches that come from step 0, and replays nothing.
    Every epoch is a new permutation; its last partial batch is dropped. Every access binarizes afresh.

    Args:
        source: the training split.
        spec: the data set.
        batch_size: images per batch, over all replicas.
        seed: of the order, the binarization and the flips; 0 or above.
        start_step: number of the first batch.
        share: which part of every batch this process takes; together the processes have the whole batches.

    Returns:
        A dataset of float32 `[batch_size / share.count, height, width, channels]` in [0, 1], at the images' real
        size: the model pads.

    Raises:
        ValueError: the batch size is larger than the split or can't be shared evenly, the seed or start step is
            negative, or the images have another size than the spec's.
    """
    check_image_shape(source, spec)
    steps_per_epoch(source.count, batch_size)
    if start_step < 0:
        raise ValueError(f"The start step is {start_step}; it must be 0 or above.")
    index_batches = shuffled_index_batches(source.count, batch_size, seed, start_step, share)
    flip_key = stream_key(seed, RandomStream.HORIZONTAL_FLIP) if spec.horizontal_flip else None
    binarize_key = stream_key(seed, RandomStream.TRAINING_BINARIZATION)
    return _image_batches(index_batches, source, spec, binarize_key, flip_key)


def evaluation_batches(
    source: ImageSource, spec: DataSpec, batch_size: int, seed: int, numbers: Sequence[int] | None = None
) -> tf.data.Dataset:
    """Returns every image of a split once and in order, never flipped; the last batch holds what is left.

    The binarization of an image depends on (seed, its number in the split), not on the batch size. It is the
    same each time the dataset is iterated; for a fresh one, as training's validation wants, pass a new seed.

    Args:
        source: the split.
        spec: the data set.
        batch_size: images per batch; one that is larger than the split gives a single batch.
        seed: of the binarization; 0 or above.
        numbers: only these batches, in this order, counted from 0.

    Returns:
        A dataset of float32 `[up to batch_size, height, width, channels]` in [0, 1], at real size.

    Raises:
        ValueError: the batch size is not positive, the seed is negative, or the images have another size than
            the spec's.
    """
    check_image_shape(source, spec)
    _check_batch_size(batch_size)
    index_batches = sequential_index_batches(source.count, batch_size, numbers)
    return _image_batches(index_batches, source, spec, stream_key(seed, RandomStream.EVALUATION_BINARIZATION))


def iterate(batches: tf.data.Dataset, source: ImageSource) -> Iterator[tf.Tensor]:
    """Goes through batches; where an image of the source can't be read, raises what reading it raised.

    TensorFlow would raise an error of its own, with the other's text and a traceback in it.
    """
    return closed_at_exit(_iterate(batches, source))


def _iterate(batches, source):
    known = len(source.failures)
    try:
        yield from batches
    except tf.errors.OpError as error:
        news = source.failures[known:]
        raise (news[0] if news else error) from None


def _image_batches(index_batches, source, spec, binarize_key, flip_key=None):
    """Reads and preprocesses whole batches, several at a time, in order."""
    read = source.reader()
    # What is to be binarized keeps its intensities until then.
    table = intensity_table(8 if spec.binarise else spec.num_bits)

    def images_of(first_position, indices):
        values = tf.ensure_shape(read(indices), [indices.shape[0], *spec.image_shape])
        if flip_key is not None:
            values = flip_horizontally(values, flip_key, first_position)
        images = tf.gather(table, tf.cast(values, tf.int32))
        if spec.binarise:
            images = binarise(images, binarize_key, first_position)
        return images

    batches = index_batches.map(images_of, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(_BATCHES_AHEAD)


def _check_batch_size(batch_size):
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}; it must be 1 or above.")
