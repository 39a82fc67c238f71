"""Quantization, binarization and flips."""

from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.data.pipeline import RandomStream, binarize, flip_horizontally, intensity_table, stream_key

KEY = stream_key(5, RandomStream.TRAINING_BINARIZATION)
START = tf.constant(0, tf.int64)


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_quantization_is_the_published_formula_in_exact_arithmetic(num_bits):
    table = intensity_table(num_bits)
    assert table.dtype == np.float32 and table.shape == (256,)
    levels = 2**num_bits - 1
    for value in range(256):
        # floor(x * 255 / 2^(8 - b)) / (2^b - 1) of x = value / 255.
        level = (Fraction(value, 255) * 255 / 2 ** (8 - num_bits)).__floor__()
        exact = Fraction(level, levels)
        # The nearest float32: neither neighbor is nearer.
        error = abs(Fraction(float(table[value])) - exact)
        for neighbor in np.nextafter(table[value], np.float32([-1, 2])):
            assert error <= abs(Fraction(float(neighbor)) - exact)
    assert len(np.unique(table)) == 2**num_bits and table[0] == 0 and table[255] == 1


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_quantization_keeps_the_upper_bits(num_bits):
    values = np.arange(256, dtype=np.uint8)
    levels = np.packbits(np.unpackbits(values[:, None], axis=1)[:, :num_bits], axis=1)[:, 0] >> (8 - num_bits)
    np.testing.assert_array_equal(intensity_table(num_bits), levels / np.float32(2**num_bits - 1))


def test_known_values():
    np.testing.assert_array_equal(intensity_table(1), np.float32(np.arange(256) >= 128))
    np.testing.assert_array_equal(intensity_table(8), np.arange(256, dtype=np.float32) / np.float32(255))
    five = intensity_table(5)
    np.testing.assert_array_equal(five[[0, 7, 8, 247, 248, 255]], np.float32([0, 0, 1, 30, 31, 31]) / np.float32(31))


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_sixteen_bits_need_only_their_upper_eight(num_bits):
    values = np.arange(2**16)
    levels = np.rint(intensity_table(num_bits)[values >> 8] * (2**num_bits - 1)).astype(int)
    np.testing.assert_array_equal(levels, values >> (16 - num_bits))


def test_binarization_frequencies_are_the_intensities():
    intensities = np.arange(17, dtype=np.float32).reshape(1, 17, 1, 1) / 16
    trials = 20_000
    drawn = binarize(tf.constant(np.repeat(intensities, trials, axis=0)), KEY, START).numpy()
    assert set(np.unique(drawn)) == {0.0, 1.0} and drawn.dtype == np.float32
    frequency, p = drawn.mean(axis=0).ravel(), intensities.ravel()
    assert (np.abs(frequency - p) <= 4.5 * np.sqrt(p * (1 - p) / trials)).all()
    assert frequency[0] == 0 and frequency[16] == 1


def test_neighboring_pixels_are_drawn_independently():
    drawn = binarize(tf.fill([20_000, 8, 1, 1], 0.5), KEY, START).numpy().reshape(20_000, 8)
    correlation = np.corrcoef(drawn.T) - np.eye(8)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_binarization_is_fresh_at_every_position():
    images = tf.fill([4, 8, 8, 1], 0.5)
    first = binarize(images, KEY, START).numpy()
    np.testing.assert_array_equal(first, binarize(images, KEY, START))
    np.testing.assert_array_equal(first[2:], binarize(images[2:], KEY, START + 2))
    later = binarize(images, KEY, START + 4).numpy()
    assert 0.3 < (first != later).mean() < 0.7


def test_flips_mirror_whole_images_half_of_the_time():
    image = np.arange(2 * 3 * 2, dtype=np.uint8).reshape(2, 3, 2)
    count = 4000
    flipped = flip_horizontally(tf.constant(np.repeat(image[None], count, axis=0)), KEY, START).numpy()
    kept = (flipped == image).all(axis=(1, 2, 3))
    mirrored = (flipped == image[:, ::-1]).all(axis=(1, 2, 3))
    assert (kept ^ mirrored).all() and flipped.dtype == np.uint8
    assert abs(mirrored.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(count)
