"""What several processes take of the batches: together exactly the batches of one process."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.data import data_spec
from nvae_tf.data.pipeline import Shard, evaluation_batches, training_batches
from nvae_tf.data.sources import ArraySource

SOURCE = ArraySource(np.random.default_rng(0).integers(0, 256, [100, 5, 4, 3], dtype=np.uint8))
FLIPPED = dataclasses.replace(data_spec("cifar10"), height=5, width=4, num_bits=5)
BINARIZED = dataclasses.replace(
    data_spec("mnist"), height=5, width=4, channels=3, padded_height=None, padded_width=None, horizontal_flip=True
)
SPECS = pytest.mark.parametrize("spec", [FLIPPED, BINARIZED], ids=["flipped", "flipped and binarized"])
# Four steps an epoch of 100 images: an epoch drops 4.
BATCH_SIZE = 24


def shards_of(count):
    return [Shard(index, count) for index in range(count)]


def training(spec, shard, steps, start_step=0, source=SOURCE):
    batches = training_batches(source, spec, BATCH_SIZE, seed=7, start_step=start_step, shard=shard)
    return np.stack([batch.numpy() for batch in batches.take(steps)])


@SPECS
@pytest.mark.parametrize("processes", [2, 4])
def test_the_shards_of_a_batch_are_the_batch_of_one_process(spec, processes):
    whole = training(spec, Shard(0, 1), steps=10)
    shards = [training(spec, shard, steps=10) for shard in shards_of(processes)]
    assert all(shard.shape == (10, BATCH_SIZE // processes, 5, 4, 3) for shard in shards)
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), whole)


def test_one_shard_is_the_default():
    whole = training_batches(SOURCE, FLIPPED, BATCH_SIZE, seed=7).take(3)
    np.testing.assert_array_equal(training(FLIPPED, Shard(0, 1), steps=3), np.stack(list(whole.as_numpy_iterator())))


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_shards_of_an_epoch_are_disjoint_and_complete(processes):
    spec = dataclasses.replace(FLIPPED, height=1, width=1, channels=1, num_bits=8)
    numbered = ArraySource(np.arange(96, dtype=np.uint8).reshape(96, 1, 1, 1))
    epochs = [training(spec, shard, steps=8, source=numbered).reshape(2, -1) for shard in shards_of(processes)]
    for epoch in range(2):
        taken = [set(np.rint(shard[epoch] * 255).astype(int)) for shard in epochs]
        assert sum(map(len, taken)) == 96 and set().union(*taken) == set(range(96))


@SPECS
def test_a_shard_goes_on_where_it_was_interrupted(spec):
    shard = Shard(1, 2)
    whole = training(spec, shard, steps=11)
    # In the first epoch, at its end, and in the second.
    for start_step in (1, 4, 6):
        np.testing.assert_array_equal(training(spec, shard, 5, start_step), whole[start_step : start_step + 5])


@SPECS
@pytest.mark.parametrize("numbers", [[], [6], [5, 0, 3], range(7)])
def test_evaluation_batches_can_be_had_by_number(spec, numbers):
    # Seven batches, the last of four images.
    whole = [batch.numpy() for batch in evaluation_batches(SOURCE, spec, batch_size=16, seed=1)]
    assert len(whole) == 7 and len(whole[-1]) == 4
    found = evaluation_batches(SOURCE, spec, batch_size=16, seed=1, numbers=numbers)
    assert found.cardinality() == len(numbers)
    for number, batch in zip(numbers, found, strict=True):
        np.testing.assert_array_equal(batch, whole[number])


def test_the_shape_of_a_shard_is_static():
    batches = training_batches(SOURCE, FLIPPED, BATCH_SIZE, seed=7, shard=Shard(1, 4))
    assert batches.element_spec == tf.TensorSpec([6, 5, 4, 3], tf.float32)
    assert batches.cardinality() == tf.data.INFINITE_CARDINALITY


@pytest.mark.parametrize(("index", "count"), [(-1, 2), (2, 2), (0, 0)])
def test_there_is_no_such_shard(index, count):
    with pytest.raises(ValueError, match=f"no shard {index} of {count}"):
        Shard(index, count)


@pytest.mark.parametrize("processes", [5, 7, 48])
def test_a_batch_that_can_not_be_shared_evenly_is_refused(processes):
    with pytest.raises(ValueError, match=f"batch of 24 can't be shared evenly by {processes} processes: .* multiple"):
        training_batches(SOURCE, FLIPPED, BATCH_SIZE, seed=7, shard=Shard(0, processes))
