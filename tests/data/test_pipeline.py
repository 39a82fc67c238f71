"""Batches as a function of (seed, step)."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from nvae_tf.data import data_spec
from nvae_tf.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from nvae_tf.data.sources import ArraySource

# Gray digits of 8x8 pixels, binarized at every access.
DIGITS = dataclasses.replace(data_spec("mnist"), name="gray_digits", height=8, width=8, padded_height=8, padded_width=8)
# The file's intensities are from 0 to 16.
GREY = ArraySource(np.minimum(load_digits().images * 16, 255).astype(np.uint8)[:360, ..., np.newaxis])
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


@pytest.mark.parametrize("start_step", [1, 2, 3, 5, 7, 31])
def test_starting_late_gives_the_same_batches_bit_for_bit(start_step):
    # 3 steps an epoch: starts inside, at the end and at the start of an epoch; binarized and flipped.
    source = ArraySource(GREY.images[:100])
    spec = dataclasses.replace(DIGITS, horizontal_flip=True)
    whole = take(training_batches(source, spec, batch_size=33, seed=4), start_step + 8)
    late = take(training_batches(source, spec, batch_size=33, seed=4, start_step=start_step), 8)
    np.testing.assert_array_equal(late, whole[start_step:])


def test_every_epoch_is_a_new_permutation_and_drops_the_last_partial_batch():
    epochs, count, batch_size = 4, 50, 8
    steps = steps_per_epoch(count, batch_size)
    assert steps == 6
    batches = take(training_batches(numbered_source(count), NUMBERED, batch_size, seed=0), epochs * steps)
    order = example_numbers(batches).reshape(epochs, steps * batch_size)
    for epoch in order:
        assert len(set(epoch)) == 48 and set(epoch) <= set(range(count))
    for one, other in itertools.combinations(order, 2):
        assert (one != other).mean() > 0.8


def test_whole_epochs_hold_every_example():
    batches = take(training_batches(numbered_source(48), NUMBERED, 8, seed=0), 12)
    for epoch in example_numbers(batches).reshape(2, 48):
        assert sorted(epoch) == list(range(48))


def test_another_seed_gives_another_order():
    one, other = (example_numbers(take(training_batches(numbered_source(50), NUMBERED, 50, seed=s), 1)) for s in (1, 2))
    assert (one != other).mean() > 0.8


def test_training_binarization_follows_the_intensities_and_is_fresh_every_epoch():
    image = GREY.images[:1]
    source = ArraySource(np.repeat(image, 100, axis=0))
    epochs = take(training_batches(source, DIGITS, batch_size=100, seed=2), 50)
    assert set(np.unique(epochs)) == {0.0, 1.0}
    p = image[0].astype(np.float64) / 255
    frequency = epochs.mean(axis=(0, 1))
    assert (np.abs(frequency - p) <= 4.5 * np.sqrt(p * (1 - p) / 5000)).all()
    unsure = (p > 0.2) & (p < 0.8)
    for one, other in itertools.pairwise(epochs):
        assert (one != other)[:, unsure].mean() > 0.2


def test_flips_happen_in_training_only_and_about_half_of_the_time():
    spec = dataclasses.replace(NUMBERED, horizontal_flip=True)
    source = numbered_source(200)
    training = take(training_batches(source, spec, batch_size=200, seed=0), 4)
    mirrored = (training[..., 0, 0] == 1).mean(axis=-1)
    assert set(np.unique(mirrored)) == {0.0, 1.0}
    assert 0.4 < mirrored.mean() < 0.6
    assert (mirrored[0] != mirrored[1]).any()
    (evaluation,) = evaluation_batches(source, spec, batch_size=200, seed=0)
    np.testing.assert_array_equal(example_numbers(evaluation.numpy()), np.arange(200))


def test_fewer_bits_reach_the_batch():
    source = ArraySource(np.arange(256, dtype=np.uint8).reshape(32, 4, 2, 1))
    (batch,) = evaluation_batches(source, dataclasses.replace(NUMBERED, num_bits=5), batch_size=32, seed=0)
    np.testing.assert_array_equal(batch.numpy().ravel(), np.float32(np.arange(256) // 8) / np.float32(31))


def test_evaluation_gives_every_example_once_in_order():
    dataset = evaluation_batches(numbered_source(50), NUMBERED, batch_size=16, seed=0)
    batches = [batch.numpy() for batch in dataset]
    assert [len(batch) for batch in batches] == [16, 16, 16, 2]
    assert dataset.cardinality() == 4
    np.testing.assert_array_equal(example_numbers(np.concatenate(batches)), np.arange(50))
    (single,) = evaluation_batches(numbered_source(50), NUMBERED, batch_size=500, seed=0)
    assert len(single) == 50


def test_evaluation_binarizes_by_seed_and_number_whatever_the_batch_size():
    def images(batch_size, seed):
        return np.concatenate(list(evaluation_batches(GREY, DIGITS, batch_size, seed).as_numpy_iterator()))

    first = images(7, seed=1)
    np.testing.assert_array_equal(first, images(360, seed=1))
    again = images(7, seed=2)
    assert first.shape == (360, 8, 8, 1) and (first != again).any(axis=(1, 2, 3)).all()
    for fixed, value in ((GREY.images == 0, 0), (GREY.images == 255, 1)):
        assert (first[fixed] == value).all() and (again[fixed] == value).all()


def test_evaluation_does_not_repeat_the_noise_of_training():
    source = ArraySource(np.full([64, 8, 8, 1], 128, np.uint8))
    (training,) = take(training_batches(source, DIGITS, batch_size=64, seed=1), 1)
    (evaluation,) = evaluation_batches(source, DIGITS, batch_size=64, seed=1)
    assert 0.45 < (training != evaluation.numpy()).mean() < 0.55


def test_shapes_are_static_and_training_is_endless():
    source = GREY
    training = training_batches(source, DIGITS, batch_size=32, seed=0)
    assert training.element_spec == tf.TensorSpec([32, 8, 8, 1], tf.float32)
    assert training.cardinality() == tf.data.INFINITE_CARDINALITY
    assert evaluation_batches(source, DIGITS, 32, seed=0).element_spec == tf.TensorSpec([None, 8, 8, 1], tf.float32)


def test_impossible_requests_are_refused():
    source = numbered_source(50)
    with pytest.raises(ValueError, match="batch of 64 is larger than the training split of 50 images.*50 or less"):
        training_batches(source, NUMBERED, batch_size=64, seed=0)
    with pytest.raises(ValueError, match="batch size is 0"):
        evaluation_batches(source, NUMBERED, batch_size=0, seed=0)
    with pytest.raises(ValueError, match="start step is -1"):
        training_batches(source, NUMBERED, batch_size=8, seed=0, start_step=-1)
    with pytest.raises(ValueError, match="seed is -3"):
        evaluation_batches(source, NUMBERED, batch_size=8, seed=-3)
    with pytest.raises(ValueError, match=r"are \[4, 2, 1\] .* says \[8, 8, 1\]"):
        training_batches(source, DIGITS, batch_size=8, seed=0)
