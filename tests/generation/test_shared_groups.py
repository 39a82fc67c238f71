"""Samples that share their upper groups."""

import keras
import numpy as np
import pytest

import nvae_tf
from nvae_tf.generation.shared_groups import numbers_of_shared_groups, samples_sharing_groups
from tests.tiny_model import tiny_config


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return nvae_tf.NVAE(tiny_config(num_groups_per_scale=2))


def test_none_shared_are_plain_samples_and_all_shared_are_one(model):
    plain = model.generate(5, 0.8, seed=2).numpy()
    np.testing.assert_allclose(samples_sharing_groups(model, 0, 5, 0.8, seed=2), plain, atol=1e-6)
    shared = samples_sharing_groups(model, 4, 5, 0.8, seed=2)
    np.testing.assert_allclose(shared, np.repeat(plain[:1], 5, axis=0), atol=1e-6)


def test_the_first_is_the_same_in_every_row_and_more_groups_leave_less_to_differ(model):
    rows = [samples_sharing_groups(model, number, 5, seed=2) for number in range(5)]
    for row in rows[1:]:
        np.testing.assert_allclose(row[0], rows[0][0], atol=1e-6)
    spread = [row.std(axis=0).mean() for row in rows]
    assert min(spread[:4]) > 1e-6 > spread[4]


def test_which_numbers_are_shown():
    assert [numbers_of_shared_groups(groups) for groups in (1, 2, 4)] == [[0], [0, 1], [0, 1, 2, 3]]
    assert numbers_of_shared_groups(30) == [0, 1, 2, 4, 8, 16, 29]


@pytest.mark.parametrize("number", [-1, 5])
def test_other_numbers_are_refused(model, number):
    with pytest.raises(ValueError, match=f"shared_groups = {number}: must be from 0 to 4"):
        samples_sharing_groups(model, number, 2)
