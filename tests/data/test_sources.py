import dataclasses
import hashlib
import threading

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits, load_sample_images

from nvae_tf.data import data_spec
from nvae_tf.data.pipeline import evaluation_batches, iterate, training_batches
from nvae_tf.data.sources import ArraySource, ImageSource, first_image, load_split, stacked
from tests import refuses
from tests.command_fixtures import output_of
from tests.data.picture_factory import encoded, write_files

IMAGES = np.random.default_rng(0).integers(0, 256, [50, 4, 3, 1], dtype=np.uint8)
SPEC = dataclasses.replace(data_spec("cifar10"), name="small", height=4, width=3, channels=1)


def test_reader_does_not_copy_the_images_into_the_graph():
    source = ArraySource(np.zeros([1000, 8, 8, 1], np.uint8))
    graph = tf.function(source.reader()).get_concrete_function(tf.TensorSpec([4], tf.int32)).graph
    assert graph.as_graph_def().ByteSize() < 10_000


def test_read_images_make_the_same_batches_as_images_in_memory():
    read_numbers, lock = [], threading.Lock()

    def read(numbers):
        with lock:
            read_numbers.extend(numbers)
        return IMAGES[numbers]

    source = ImageSource(len(IMAGES), IMAGES.shape[1:], read)
    evaluation = evaluation_batches(source, SPEC, batch_size=16, seed=3)
    assert evaluation.element_spec == tf.TensorSpec([None, 4, 3, 1], tf.float32)
    np.testing.assert_array_equal(np.concatenate(list(evaluation)), IMAGES.astype(np.float32) / np.float32(255))
    # Only what was asked for, and once.
    assert sorted(read_numbers) == list(range(50))
    training, expected = (training_batches(s, SPEC, batch_size=16, seed=3) for s in (source, ArraySource(IMAGES)))
    for one, other in zip(training.take(7), expected.take(7), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("error", [ValueError("face.png: not a picture"), OSError(5)])
def test_what_reading_raised_comes_out_of_the_pipeline(error):
    def read(numbers):
        if 37 in numbers:
            raise error
        return IMAGES[numbers]

    source = ImageSource(len(IMAGES), IMAGES.shape[1:], read)
    batches = iterate(evaluation_batches(source, SPEC, batch_size=10, seed=0), source)
    for number in range(3):
        expected = IMAGES[10 * number : 10 * number + 10].astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(next(batches), expected)
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert caught.value is error and source.failures[0] is error
    # Neither TensorFlow's error nor its text is shown before the one that matters.
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None


def test_every_image_is_once_in_each_channel():
    # Digit i is i everywhere.
    digits = ArraySource(np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None, None], [200, 4, 4, 1]))

    def numbers(seed):
        source = stacked(digits, channels=3, seed=seed)
        assert source.count == 200 and source.image_shape == (4, 4, 3)
        return source.reader()(tf.range(200)).numpy()[:, 0, 0]

    for channel in numbers(0).T:
        assert sorted(channel) == list(range(200))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (numbers(0)[:, one] != numbers(0)[:, other]).mean() > 0.9
    assert (numbers(4) != numbers(5)).any(axis=1).mean() > 0.9


@pytest.mark.slow
def test_a_process_ends_while_pictures_are_being_decoded(tmp_path):
    """Threads that wait for the interpreter's lock and an interpreter that waits for them would wait forever."""
    noise = encoded(np.random.default_rng(0).integers(0, 256, [1400, 2000, 3], np.uint8), "JPEG")
    write_files(tmp_path, {f"{number}.jpg": noise for number in range(30)})
    script = """
import dataclasses, faulthandler, os, sys
from nvae_tf.data.pipeline import iterate, training_batches
from nvae_tf.data.sources import load_split
from nvae_tf.data.spec import complete_spec
from nvae_tf.data_sets import data_spec
spec = complete_spec(dataclasses.replace(data_spec("own_images"), path=sys.argv[1], resize="crop", height=16))
# Without closing it hung three times out of four; each of the three ends as a process does that has imported by itself.
for _ in range(3):
    if not os.fork():
        faulthandler.dump_traceback_later(100, exit=True)
        source = load_split(spec, "train")
        batches = iterate(training_batches(source, spec, 4, 0), source)
        next(batches)
        break
    assert os.wait()[1] == 0
"""
    output_of(["-c", script, tmp_path])


DIGITS, PHOTOS = data_spec("digits"), data_spec("photos")
# Of all bitmaps and labels, those for training first.
DIGEST = "9941425a5893da486a4315586eb4d0b397ed22cff67d3962ca273b8e9a389c82"


def test_the_digits_are_divided_by_label_and_the_split_never_changes():
    train, test = load_split(DIGITS, "train"), load_split(DIGITS, "test")
    assert (train.count, test.count) == (1437, 360)
    together = np.concatenate([train.images, test.images])
    # Two pairs of digits have the same bitmap.
    assert len(np.unique(together, axis=0)) == 1795 and set(np.unique(together)) == {0, 255}
    totals = np.bincount(load_digits().target)
    assert np.abs(np.bincount(test.labels) - totals / 5).max() < 1
    np.testing.assert_array_equal(np.bincount(train.labels) + np.bincount(test.labels), totals)
    assert train.labels.dtype == np.int32 and train.class_names == tuple("0123456789")
    labels = [part.labels.astype(np.int64) for part in (train, test)]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in (together, *labels)))
    assert digest.hexdigest() == DIGEST


def test_train_and_test_patches_are_of_different_parts_of_the_photographs():
    size = 96
    spec = dataclasses.replace(PHOTOS, height=size, width=size)
    train, test = load_split(spec, "train"), load_split(spec, "test")
    photographs = load_sample_images().images
    assert train.images.shape == (2 * 42 * 53, size, size, 3) and test.count == 2 * 21 * 3
    np.testing.assert_array_equal(train.images[0], photographs[0][:size, :size])
    # Test patches begin where training patches end.
    np.testing.assert_array_equal(test.images[0], photographs[0][:size, 512 : 512 + size])
    assert (train.images[-1] == photographs[1][328 : 328 + size, 416:512]).all()
    # And a look at the first image.
    assert first_image(DIGITS) == (16, 16, 1, 8)
    assert first_image(dataclasses.replace(PHOTOS, height=None, width=48)) == (32, 48, 3, 8)


def test_what_is_not_in_the_bundle_is_refused():
    for spec, changes, message in (
        (DIGITS, {"path": "here"}, "is bundled: remove data.path, data.crop_box and data.resize"),
        (DIGITS, {"source_name": "digit"}, "data.source_name = 'digit': no bundled set .digits, photos.; did you mean"),
        (PHOTOS, {"channels": 1}, r"are \(32, 32, 3\), .* says \(32, 32, 1\)"),
        (PHOTOS, {"labels": True}, "data.labels = True: bundled photos has 0 classes; set --config.data.labels=False"),
        (PHOTOS, {"height": 97}, r"data.height, data.width = \(97, 32\): must be at most 96"),
    ):
        refuses(message, load_split, dataclasses.replace(spec, **changes), "train")
        refuses("no split 'validation'. Valid: train, test", load_split, spec, "validation")
