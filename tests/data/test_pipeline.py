import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from nvae_tf.data import data_spec, pipeline
from nvae_tf.data.pipeline import chosen_images, shown_numbers
from nvae_tf.data.sources import ArraySource, load_split
from tests import refuses

KEY = pipeline.stream_key(5, 2)


def test_permutations_are_all_different_and_unbiased():
    def drawn(epochs, count):
        permute = tf.function(lambda epoch: pipeline.permutation(KEY, epoch, count))
        return [tuple(permute(tf.constant(epoch, tf.int64)).numpy()) for epoch in range(epochs)]

    _, frequencies = np.unique(drawn(1000, 4), axis=0, return_counts=True)
    assert len(frequencies) == 24
    expected = 1000 / 24
    assert ((frequencies - expected) ** 2 / expected).sum() < 23 + 5 * np.sqrt(2 * 23)
    # More epochs than `tf.random.experimental.index_shuffle` has permutations.
    assert len(set(drawn(600, 60))) == 600


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_quantization_is_the_published_formula(num_bits):
    table = pipeline.intensities(np.arange(256), num_bits).numpy()
    # floor(x * 255 / 2^(8 - b)) / (2^b - 1) of x = value / 255, to the nearest float32.
    exact = [np.float32((value // 2 ** (8 - num_bits)) / (2**num_bits - 1)) for value in range(256)]
    assert table.dtype == np.float32 and table.tolist() == exact


# Gray digits of 8x8 pixels, binarized at every access.
DIGITS = dataclasses.replace(data_spec("mnist"), name="gray_digits", height=8, width=8, padded_height=8, padded_width=8)
# The file's intensities are from 0 to 16.
GRAY = ArraySource(np.minimum(load_digits().images * 16, 255).astype(np.uint8)[:360, ..., np.newaxis])
# Gray images of 4x2 pixels with an asymmetric pair of columns: they show which example they are and whether
# mirrored.
NUMBERED = dataclasses.replace(data_spec("cifar10"), height=4, width=2, channels=1, horizontal_flip=False)


def numbered_source(count):
    """Image i has i in its left column and 255 in its right one."""
    images = np.full([count, 4, 2, 1], 255, np.uint8)
    images[:, :, 0, 0] = np.arange(count)[:, None]
    return ArraySource(images)


def take(dataset, count):
    return np.stack([batch.numpy() for batch in dataset.take(count)])


def example_numbers(batches):
    return np.rint(batches[..., 0, 0, 0] * 255).astype(int)


def test_every_epoch_is_a_new_permutation_and_drops_the_last_partial_batch():
    epochs, count, batch_size = 4, 50, 8
    steps = pipeline.steps_per_epoch(count, batch_size)
    assert steps == 6
    batches = take(pipeline.training_batches(numbered_source(count), NUMBERED, batch_size, seed=0), epochs * steps)
    order = example_numbers(batches).reshape(epochs, steps * batch_size)
    for epoch in order:
        assert len(set(epoch)) == 48 and set(epoch) <= set(range(count))
    for one, other in itertools.combinations(order, 2):
        assert (one != other).mean() > 0.8


def test_training_binarization_follows_the_intensities_and_is_fresh_every_epoch():
    image = GRAY.images[:1]
    source = ArraySource(np.repeat(image, 100, axis=0))
    epochs = take(pipeline.training_batches(source, DIGITS, batch_size=100, seed=2), 50)
    p = image[0].astype(np.float64) / 255
    assert set(np.unique(epochs)) == {0.0, 1.0}
    assert (np.abs(epochs.mean(axis=(0, 1)) - p) <= 4.5 * np.sqrt(p * (1 - p) / 5000)).all()
    unsure = (p > 0.2) & (p < 0.8)
    for one, other in itertools.pairwise(epochs):
        assert (one != other)[:, unsure].mean() > 0.2


def test_flips_happen_in_training_only_and_about_half_of_the_time():
    spec, source = dataclasses.replace(NUMBERED, horizontal_flip=True), numbered_source(200)
    mirrored = (take(pipeline.training_batches(source, spec, batch_size=200, seed=0), 4)[..., 0, 0] == 1).mean(axis=-1)
    assert set(np.unique(mirrored)) == {0.0, 1.0} and 0.4 < mirrored.mean() < 0.6
    assert (mirrored[0] != mirrored[1]).any()
    evaluation = [*pipeline.evaluation_batches(source, spec, batch_size=64, seed=0)]
    assert [len(batch) for batch in evaluation] == [64, 64, 64, 8]
    np.testing.assert_array_equal(example_numbers(np.concatenate(evaluation)), np.arange(200))


def test_evaluation_binarizes_by_seed_and_number_whatever_the_batch_size():
    def images(batch_size, seed):
        return np.concatenate(list(pipeline.evaluation_batches(GRAY, DIGITS, batch_size, seed).as_numpy_iterator()))

    first = images(7, seed=1)
    np.testing.assert_array_equal(first, images(360, seed=1))
    again = images(7, seed=2)
    assert first.shape == (360, 8, 8, 1) and (first != again).any(axis=(1, 2, 3)).all()
    for fixed, value in ((GRAY.images == 0, 0), (GRAY.images == 255, 1)):
        assert (first[fixed] == value).all() and (again[fixed] == value).all()
    # Not the noise of training.
    half = ArraySource(np.full([64, 8, 8, 1], 128, np.uint8))
    (training,) = take(pipeline.training_batches(half, DIGITS, batch_size=64, seed=1), 1)
    (evaluation,) = pipeline.evaluation_batches(half, DIGITS, batch_size=64, seed=1)
    assert 0.45 < (training != evaluation.numpy()).mean() < 0.55


def test_impossible_requests_are_refused():
    train, evaluate = pipeline.training_batches, pipeline.evaluation_batches
    for request_, message in (
        (
            lambda s: train(s, NUMBERED, 64, 0),
            "batch size is 64, and there are 50 training images: it .* must be from 1 to 50",
        ),
        (lambda s: evaluate(s, NUMBERED, 0, 0), "batch size is 0"),
        (lambda s: train(s, DIGITS, 8, 0), r"\[8,8,8,1\] and \[8,4,2,1\]"),
        (lambda s: train(s, NUMBERED, 24, 7, shard=pipeline.Shard(0, 5)), "24 can't be shared evenly by 5 processes"),
    ):
        refuses(message, request_, numbered_source(50))


SOURCE = ArraySource(np.random.default_rng(0).integers(0, 256, [100, 5, 4, 3], dtype=np.uint8))
FLIPPED = dataclasses.replace(data_spec("cifar10"), height=5, width=4, num_bits=5)
BINARIZED = dataclasses.replace(
    data_spec("mnist"), height=5, width=4, channels=3, padded_height=None, padded_width=None, horizontal_flip=True
)
SPECS = pytest.mark.parametrize("spec", [FLIPPED, BINARIZED], ids=["flipped", "flipped and binarized"])
# Four steps an epoch of 100 images: an epoch drops 4.
BATCH_SIZE = 24


def training(spec, shard, steps, start_step=0, source=SOURCE):
    batches = pipeline.training_batches(source, spec, BATCH_SIZE, seed=7, start_step=start_step, shard=shard)
    return np.stack([batch.numpy() for batch in batches.take(steps)])


@SPECS
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_shards_of_a_batch_are_the_batch_of_one_process(spec, processes):
    whole = training(spec, pipeline.ALL, steps=10)
    shards = [training(spec, pipeline.Shard(index, processes), steps=10) for index in range(processes)]
    assert all(shard.shape == (10, BATCH_SIZE // processes, 5, 4, 3) for shard in shards)
    batches = pipeline.training_batches(SOURCE, spec, BATCH_SIZE, seed=7, shard=pipeline.Shard(1, processes))
    assert batches.element_spec == tf.TensorSpec(shards[1].shape[1:], tf.float32)
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), whole)
    # A shard goes on where it was interrupted: in the first epoch, at its end, and in the second.
    for start_step in (1, 4, 6):
        late = training(spec, pipeline.Shard(1, processes), 4, start_step)
        np.testing.assert_array_equal(late, shards[1][start_step : start_step + 4])


LABELED = dataclasses.replace(NUMBERED, labels=True, num_classes=5)


def labeled_source(count):
    """Image i is of class i % 5."""
    return numbered_source(count).labeled(np.arange(count) % 5, tuple("abcde"))


@pytest.mark.parametrize("start_step", [0, 7])
def test_labels_go_with_their_training_images(start_step):
    for index in range(2):
        settings = (8, 3, start_step, pipeline.Shard(index, 2))
        batches = pipeline.training_batches(labeled_source(50), LABELED, *settings)
        assert batches.element_spec == (tf.TensorSpec([4, 4, 2, 1], tf.float32), tf.TensorSpec([4], tf.int32))
        images, labels = (np.stack(parts) for parts in zip(*batches.take(9), strict=True))
        np.testing.assert_array_equal(labels, example_numbers(images) % 5)
        alone = pipeline.training_batches(labeled_source(50), NUMBERED, *settings)
        np.testing.assert_array_equal(images, take(alone, 9))


def test_labels_go_with_their_evaluation_images():
    batches = [*pipeline.evaluation_batches(labeled_source(50), LABELED, 16, seed=0, numbers=[3, 0])]
    for (images, labels), numbers in zip(batches, ((48, 50), (0, 16)), strict=True):
        np.testing.assert_array_equal(example_numbers(images.numpy()), range(*numbers))
        np.testing.assert_array_equal(labels, np.arange(*numbers) % 5)
    with pytest.raises(ValueError, match="data.labels = True, but cifar10 came without labels"):
        pipeline.evaluation_batches(numbered_source(50), LABELED, 16, seed=0)


def test_the_digest_is_of_the_stored_images():
    spec = dataclasses.replace(data_spec("cifar10"), height=3, width=2)
    images = np.random.default_rng(0).integers(0, 256, [300, 3, 2, 3], dtype=np.uint8)
    expected = pipeline.content_digest(ArraySource(images), spec)
    assert len(expected) == 64
    binarized = dataclasses.replace(spec, num_bits=1, binarize=True, likelihood="bernoulli")
    assert pipeline.content_digest(ArraySource(images.copy()), binarized) == expected
    first, last = images.copy(), images.copy()
    first[0, 0, 0, 0] ^= 1
    last[-1, 0, 0, 0] ^= 1
    for others in (images[:-1], images[::-1], first, last):
        assert pipeline.content_digest(ArraySource(others), spec) != expected
    source, labeled = ArraySource(images), dataclasses.replace(spec, labels=True)
    digests = {pipeline.content_digest(source.labeled(np.arange(300) % n, ()), labeled) for n in (2, 3)}
    assert len(digests | {expected}) == 3


def test_images_of_the_data_set_are_chosen_by_number():
    spec = dataclasses.replace(data_spec("digits"), labels=True)
    source = load_split(spec, "test")
    test = source.images / np.float32(255)

    def assert_chosen(numbers, **values):
        images, labels, names = chosen_images(source, spec, "test", **values)
        np.testing.assert_array_equal(images, test[numbers])
        np.testing.assert_array_equal(labels, source.labels[numbers])
        assert names == [f"test_{number:05d}" for number in numbers]

    assert_chosen([17, 3], indices=[17, 3])
    assert_chosen(range(360))
    assert_chosen(shown_numbers(source, 70), count=70, at_most=5)
    assert_chosen(shown_numbers(source, 360), at_most=500)
    for values, message in (({"indices": [0, 360]}, "has images 0 to 359"), ({"count": 361}, "has only 360 images")):
        refuses(f"the test part of digits {message}", chosen_images, source, spec, "test", **values)


def test_shown_images_are_spread_over_the_set_and_its_classes():
    source = ArraySource(np.zeros([1000, 1, 1, 1], np.uint8))
    numbers = shown_numbers(source, 40)
    # A quarter of the set has none of 40 with a probability of 1e-5.
    assert len(set(numbers)) == 40 and np.bincount(np.array(numbers) // 250, minlength=4).min() > 4
    assert shown_numbers(source, 12) == numbers[:12] and sorted(shown_numbers(source, 2000)) == [*range(1000)]
    # Sorted by class, as in a folder: of one class there are three images, of another none.
    labels = np.repeat(np.array([0, 1, 2, 4]), [400, 3, 300, 297])
    source.labeled(labels, tuple("abcde"))
    shown = labels[shown_numbers(source, 22)].tolist()
    assert shown == [0, 1, 2, 4] * 3 + [0, 2, 4] * 3 + [0]
    assert len({*labels[shown_numbers(source, 3)]}) == 3 and sorted(shown_numbers(source, 1000)) == [*range(1000)]
