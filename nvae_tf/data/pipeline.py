"""How images come into graphs: the input pipeline, batches in [0, 1] as a pure function of (seed, step); PNG files.

Random numbers come from Philox, a function of a key (the seed, and what the numbers are for) and a counter (the
position in the stream of images): nothing to save, nothing to replay. Salmon et al. 2011, "Parallel random numbers".
"""

import atexit
import dataclasses
import hashlib
import itertools
import math
import struct
import weakref
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataSpec, ModelConfig, check, whole_number
from nvae_tf.data.sources import ImageSource, spread_numbers
from nvae_tf.replicas import ALL, Shard

_PHILOX, _NUMBERS_PER_COUNTER = tf.random.Algorithm.PHILOX.value, 4
_ORDER, _FLIP, _TRAINING_BINARIZATION, _EVALUATION_BINARIZATION, _CROP = range(5)  # what random numbers are for
# For the functions of datasets: converted by autograph, which they don't need, a first batch comes half a second later.
_AS_WRITTEN = tf.autograph.experimental.do_not_convert
_PNG_BEGINNING = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"  # how a PNG file begins, up to its width and height


def stream_key(seed: int, stream: int) -> np.ndarray:
    """The Philox key, uint64 `[1]`, of the numbers for one of the uses above, independent of the others'."""
    seed = whole_number("the seed of the data", seed)
    return np.random.SeedSequence(seed, spawn_key=(stream,)).generate_state(1, np.uint64)


def uniform(key: np.ndarray, first_position: tf.Tensor, batch_size: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Numbers in [0, 1) for a run of positions, float32 `[batch_size, *shape]`: a function of key, position, shape."""
    size = math.prod(shape)
    # Whole counters per position, so that every position starts at a counter of its own.
    counters = -(-size // _NUMBERS_PER_COUNTER)
    counter = tf.stack([tf.cast(first_position, tf.uint64) * counters, tf.constant(0, tf.uint64)])
    drawn = [batch_size, counters * _NUMBERS_PER_COUNTER]
    numbers = tf.raw_ops.StatelessRandomUniformV2(shape=drawn, key=key, counter=counter, alg=_PHILOX)
    return tf.reshape(numbers[:, :size], [batch_size, *shape])


def permutation(key: np.ndarray, epoch: tf.Tensor, count: int) -> tf.Tensor:
    """The epoch's permutation of `0 .. count - 1`, int32 `[count]`."""
    # `tf.random.experimental.index_shuffle` came back to the same 256 permutations of 1,437 examples (TensorFlow 2.21).
    counter = tf.stack([tf.constant(0, tf.uint64), tf.cast(epoch, tf.uint64)])
    form = {"shape": [count], "dtype": tf.int64}
    return tf.argsort(tf.raw_ops.StatelessRandomUniformFullIntV2(key=key, counter=counter, alg=_PHILOX, **form))


def intensities(values: tf.Tensor, num_bits: int, limits: tuple[float, ...] = ()) -> tf.Tensor:
    """Stored values in [0, 1], float32: numbers between two limits, or whole ones of `num_bits` bits.

    With b bits, 1 to 8, a value from 0 to 255 is `floor(value / 2^(8 - b)) / (2^b - 1)` (Vahdat & Kautz 2020).
    """
    if limits:
        return (values - limits[0]) / (limits[1] - limits[0])
    if num_bits > 8:
        return tf.cast(values, tf.float32) / (2**num_bits - 1)
    levels = np.arange(256) >> (8 - num_bits)
    table = levels.astype(np.float32) / np.float32(2**num_bits - 1)
    return tf.gather(tf.constant(table), tf.cast(values, tf.int32))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """The number of full batches in `count` images; ValueError where there is none."""
    if not 1 <= batch_size <= count:
        rule = f"it (train.batch_size times the replicas) must be from 1 to {count}"
        raise ValueError(f"The batch size is {batch_size}, and there are {count} training images: {rule}.")
    return count // batch_size


def training_batches(
    source: ImageSource, spec: DataSpec, batch_size: int, seed: int, start_step: int = 0, shard: Shard = ALL
) -> tf.data.Dataset:
    """Endless training batches: float32 `[batch_size / shard.count, height, width, channels]` in [0, 1], real size.

    With `spec.labels` pairs: these images, and the numbers of their classes, int32 `[batch_size / shard.count]`.
    Every epoch is a new permutation; its last partial batch is dropped. ValueError where the batch of all replicas,
    `batch_size`, is larger than the split or can't be divided evenly.
    """
    steps_per_epoch(source.count, batch_size)
    whole_number("the start step", start_step)
    check(batch_size % shard.count == 0, f"A batch of {batch_size} can't be shared evenly by {shard.count} processes.")
    index_batches = shuffled_index_batches(source.count, batch_size, seed, start_step, shard)
    flip_key = stream_key(seed, _FLIP) if spec.horizontal_flip else None
    crop_key = stream_key(seed, _CROP) if spec.crop == "random" else None
    return _image_batches(index_batches, source, spec, stream_key(seed, _TRAINING_BINARIZATION), flip_key, crop_key)


def evaluation_batches(
    source: ImageSource, spec: DataSpec, batch_size: int, seed: int, numbers: Sequence[int] | None = None
) -> tf.data.Dataset:
    """Every image of a split once and in order, never flipped: float32 `[up to batch_size, height, width, channels]`.

    The binarization of an image depends on (seed, its number in the split) alone. With `numbers` only these batches
    come, in this order, counted from 0. With `spec.labels` the elements are pairs, as in training.
    """
    check(batch_size >= 1, f"The batch size is {batch_size}; it must be 1 or above.")
    count = source.count
    numbers = range(-(-count // batch_size)) if numbers is None else numbers
    starts = tf.data.Dataset.from_tensor_slices(batch_size * np.array(numbers, np.int64))
    with_indices = _AS_WRITTEN(lambda start: (start, tf.range(start, tf.minimum(start + batch_size, count))))
    return _image_batches(starts.map(with_indices), source, spec, stream_key(seed, _EVALUATION_BINARIZATION))


def shuffled_index_batches(count: int, batch_size: int, seed: int, start_step: int, shard: Shard) -> tf.data.Dataset:
    """The endless training order, before any image is read: pairs of the position in the stream of the shard's first
    image, an int64 scalar, and the numbers of images, int32 `[batch_size / shard.count]`.
    """
    size, steps = batch_size // shard.count, count // batch_size
    offset, key = shard.index * size, stream_key(seed, _ORDER)

    @_AS_WRITTEN
    def batches_of_epoch(epoch):
        first_step = epoch * steps
        skipped = tf.maximum(start_step - first_step, 0)
        indices = tf.reshape(permutation(key, epoch, count)[: steps * batch_size], [steps, batch_size])
        positions = (first_step + tf.range(steps, dtype=tf.int64)) * batch_size + offset
        return tf.data.Dataset.from_tensor_slices((positions[skipped:], indices[:, offset : offset + size][skipped:]))

    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return tf.data.Dataset.counter(start=start_step // steps).flat_map(batches_of_epoch).apply(endless)


def _image_batches(index_batches, source, spec, binarize_key, flip_key=None, crop_key=None):
    read = source.reader()
    # What is to be binarized keeps its intensities until then.
    bits = 8 if spec.binarize else spec.num_bits
    check(not spec.labels or source.labels is not None, f"data.labels = True, but {spec.name} came without labels.")
    with tf.device("/CPU:0"):
        labels = tf.constant(source.labels) if spec.labels else None

    @_AS_WRITTEN
    def images_of(first_position, indices):
        places = [] if crop_key is None else [uniform(crop_key, first_position, tf.size(indices), (2,))]
        values = tf.ensure_shape(read(indices, *places), [indices.shape[0], *spec.image_shape])
        count = tf.shape(values)[0]
        if flip_key is not None:
            mirrored = uniform(flip_key, first_position, count, (1, 1, 1)) < 0.5
            values = tf.where(mirrored, tf.reverse(values, axis=[2]), values)
        images = intensities(values, bits, spec.range)
        if spec.binarize:
            images = tf.cast(uniform(binarize_key, first_position, count, spec.image_shape) < images, tf.float32)
        return images if labels is None else (images, tf.gather(labels, indices))

    batches = index_batches.map(images_of, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    # Enough to keep a device busy; left to itself, tf.data fills half of the machine's memory with large images.
    return batches.prefetch(4)


def iterate(batches: tf.data.Dataset, source: ImageSource) -> Iterator[tf.Tensor | tuple[tf.Tensor, tf.Tensor]]:
    """Iterates over batches; where an image can't be read, raises what reading raised, not TensorFlow's error."""

    def read():
        known = len(source.failures)
        try:
            yield from batches
        except tf.errors.OpError as error:
            raise (*source.failures[known:], error)[0] from None

    iteration = read()
    _OPEN.add(iteration)
    return iteration


_OPEN: weakref.WeakSet[Generator] = weakref.WeakSet()
# Otherwise threads of tf.data that call Python wait for the interpreter's lock, and it waits for them, forever.
atexit.register(lambda: [iteration.close() for iteration in list(_OPEN)])


def images_alone(spec: DataSpec) -> DataSpec:
    """The data set without its labels: batches are images, not pairs."""
    return dataclasses.replace(spec, labels=False, num_classes=None)


def stored_spec(spec: DataSpec) -> DataSpec:
    """The data set with its images alone, as they are stored: 8 bits at least, neither binarized nor mirrored."""
    alone = images_alone(spec)
    return dataclasses.replace(alone, num_bits=max(8, spec.num_bits), binarize=False, horizontal_flip=False)


def content_digest(source: ImageSource, spec: DataSpec) -> str:
    """The SHA-256 of the count, of 256 images spread evenly, and of all labels: whether kept results still hold."""
    # All images of a large set would take as long as what the result is kept for.
    numbers = spread_numbers(source.count, 256)
    digest = hashlib.sha256(f"{source.count} {spec.image_shape}".encode())
    for image in iterate(evaluation_batches(source, stored_spec(spec), 1, seed=0, numbers=numbers), source):
        digest.update(image.numpy().tobytes())
    if spec.labels:
        digest.update(source.labels.tobytes())
    return digest.hexdigest()


def shown_numbers(source: ImageSource, count: int) -> list[int]:
    """The numbers of `count` images to show, at most all, drawn by a fixed seed; with labels of each class in turn."""
    # RandomState, because NumPy promises never to change its numbers; Generator's may change.
    random = np.random.RandomState(0)
    order = random.permutation(source.count)
    if source.labels is not None:
        labels, classes = source.labels[order], len(source.class_names)
        ends = np.cumsum(np.bincount(labels, minlength=classes))
        images_of_classes = np.split(order[np.argsort(labels, kind="stable")], ends[:-1])
        if classes > count:
            images_of_classes = [images_of_classes[number] for number in random.permutation(classes)]
        rounds = itertools.zip_longest(*images_of_classes)
        order = (number for one_round in rounds for number in one_round if number is not None)
    return [int(number) for number in itertools.islice(order, count)]


def chosen_images(
    source: ImageSource,
    spec: DataSpec,
    split: str,
    indices: Sequence[int] | None = None,
    count: int | None = None,
    at_most: int | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Images of a part of a data set as the model sees them, their labels (None without `spec.labels`), their names.

    They are the images of the numbers `indices`; or `count`, or up to `at_most`, of `shown_numbers`; or all in order.
    """
    part, highest = f"the {split} part of {spec.name}", max(indices or (0,))
    check(count is None or count <= source.count, f"count = {count}: {part} has only {source.count} images")
    check(highest < source.count, f"indices = {highest}: {part} has images 0 to {source.count - 1}")
    if indices is None and (count or at_most):
        indices = shown_numbers(source, count or at_most)
    size, batches = (64, None) if indices is None else (1, indices)
    dataset = evaluation_batches(source, images_alone(spec), size, seed, batches)
    images = np.concatenate([batch.numpy() for batch in iterate(dataset, source)])
    indices = list(range(source.count) if indices is None else indices)
    labels = source.labels[indices] if spec.labels else None
    return images, labels, [f"{split}_{index:05d}" for index in indices]


def images_of_files(image_bytes: tf.Tensor, config: ModelConfig) -> tuple[tf.Tensor, tf.Tensor]:
    """Images `[batch, height, width, channels]` in [0, 1], of the model's channels and bits, of PNG files `[batch]`.

    Also which files have the model's size and can be decoded `[batch]`; the images of the others are black.
    """
    shape = config.image_shape
    # From the header, since a small file may be gigabytes when it is decoded.
    header = _PNG_BEGINNING + struct.pack(">II", config.image_width, config.image_height)
    files = tf.where(tf.equal(tf.strings.substr(image_bytes, 0, len(header)), header), image_bytes, "")
    # The operation has no gray with alpha to ask for: 0 takes what the file has.
    channels = config.image_channels if config.image_channels != 2 else 0
    black = tf.data.Dataset.from_tensors((tf.zeros(shape, tf.uint8), False))

    @_AS_WRITTEN
    def decoded(content):
        return tf.ensure_shape(tf.io.decode_png(content, channels, tf.uint8), shape), True

    @_AS_WRITTEN
    def images_of_file(content):
        # An operation that fails would fail the whole batch; a dataset can do without its element.
        return tf.data.Dataset.from_tensors(content).map(decoded).ignore_errors().concatenate(black).take(1)

    images = tf.data.Dataset.from_tensor_slices(files).flat_map(images_of_file)
    pixels, is_right = images.batch(tf.size(files, tf.int64)).get_single_element()
    # The number of files, where it is known.
    pixels, is_right = tf.ensure_shape(pixels, [*files.shape, *shape]), tf.ensure_shape(is_right, files.shape)
    return intensities(pixels, config.num_bits), is_right


def eight_bit_pixels(image: tf.Tensor) -> tf.Tensor:
    """uint8 pixels of images of any shape in [0, 1]."""
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 1.0) * 255.0), tf.uint8)


def files_of_pixels(pixels: tf.Tensor) -> tf.Tensor:
    """PNG files `[batch]` of 8-bit pixels `[batch, height, width, 1 to 4]`."""
    return tf.map_fn(tf.io.encode_png, pixels, fn_output_signature=tf.TensorSpec((), tf.string))
