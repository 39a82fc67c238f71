"""Images held in memory."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.data.array_source import ArraySource


def test_reader_gives_the_images_asked_for():
    images = np.arange(5 * 2 * 3 * 1, dtype=np.uint8).reshape(5, 2, 3, 1)
    source = ArraySource(images)
    read = tf.function(source.reader())
    np.testing.assert_array_equal(read(tf.constant([4, 0, 4])), images[[4, 0, 4]])
    assert source.count == 5 and source.image_shape == (2, 3, 1)


def test_reader_does_not_copy_the_images_into_the_graph():
    source = ArraySource(np.zeros([1000, 8, 8, 1], np.uint8))
    graph = tf.function(source.reader()).get_concrete_function(tf.TensorSpec([4], tf.int32)).graph
    assert graph.as_graph_def().ByteSize() < 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros([2, 8, 8, 1], np.float32)}, r"not float32 \[2, 8, 8, 1\]"),
        ({"images": np.zeros([2, 8, 8], np.uint8)}, r"not uint8 \[2, 8, 8\]"),
        ({"images": np.zeros([0, 8, 8, 1], np.uint8)}, "non-empty"),
        (
            {"images": np.full([2, 8, 8, 1], 17, np.uint8), "maximum_value": 16},
            "is 17, above the stated maximum 16",
        ),
        (
            {"images": np.zeros([2, 8, 8, 1], np.uint8), "labels": np.zeros([3])},
            r"shape \[3\], but there are 2 images",
        ),
    ],
)
def test_wrong_arrays_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(**arguments)
