"""Random numbers by position."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.data.pipeline import RandomStream, permutation, stream_key, uniform

KEY = stream_key(3, RandomStream.TRAINING_BINARIZATION)


def numbers(first_position, batch_size, shape, key=KEY):
    return uniform(key, tf.constant(first_position, tf.int64), batch_size, shape).numpy()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (8, 8, 1), (5, 3, 3)])
def test_numbers_depend_on_the_position_and_not_on_the_batch(shape):
    whole = numbers(10, 12, shape)
    parts = [numbers(10, 5, shape), numbers(15, 1, shape), numbers(16, 6, shape)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert len(np.unique(whole)) == whole.size


def test_numbers_are_uniform():
    sample = numbers(0, 1000, (8, 8, 1)).ravel()
    assert sample.min() >= 0 and sample.max() < 1
    counts, _ = np.histogram(sample, bins=64, range=(0, 1))
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_squared < 63 + 5 * np.sqrt(2 * 63)


def test_numbers_go_on_far_into_the_stream():
    far = numbers(2**40, 2, (8, 8, 1))
    assert not np.array_equal(far, numbers(0, 2, (8, 8, 1)))
    np.testing.assert_array_equal(far[1:], numbers(2**40 + 1, 1, (8, 8, 1)))


def test_seeds_and_streams_have_keys_of_their_own():
    keys = {int(stream_key(seed, stream)[0]) for seed in range(50) for stream in RandomStream}
    assert len(keys) == 50 * len(RandomStream)
    with pytest.raises(ValueError, match="seed is -1"):
        stream_key(-1, RandomStream.ORDER)


def test_permutations_are_all_different_and_unbiased():
    epochs, count = 2000, 4
    permute = tf.function(lambda epoch: permutation(KEY, epoch, count))
    drawn = [tuple(permute(tf.constant(epoch, tf.int64)).numpy()) for epoch in range(epochs)]
    _, frequencies = np.unique(drawn, axis=0, return_counts=True)
    assert len(frequencies) == 24
    expected = epochs / 24
    assert ((frequencies - expected) ** 2 / expected).sum() < 23 + 5 * np.sqrt(2 * 23)


def test_epochs_never_repeat_a_permutation():
    permute = tf.function(lambda epoch: permutation(KEY, epoch, 60))
    drawn = {tuple(permute(tf.constant(epoch, tf.int64)).numpy()) for epoch in range(600)}
    assert len(drawn) == 600
