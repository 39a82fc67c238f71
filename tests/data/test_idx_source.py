"""Images in IDX files, the format of MNIST: packed or not, several sets in a folder, and damaged ones."""

import dataclasses
import gzip
import tracemalloc

import numpy as np
import pytest

from nvae_tf.data import data_spec
from nvae_tf.data.pipeline import evaluation_batches
from nvae_tf.data.sources import load_split
from tests.data.picture_factory import idx, own_images, random_pixels, stored_pixels, write_files

TRAIN, TEST = random_pixels(9, 6, 8), random_pixels(4, 6, 8, seed=1)
TRAIN_LABELS, TEST_LABELS = np.arange(9) % 3, np.arange(4)
MNIST_FILES = {
    "train-images-idx3-ubyte": idx(TRAIN),
    "train-labels-idx1-ubyte": idx(TRAIN_LABELS),
    "t10k-images-idx3-ubyte": idx(TEST),
    "t10k-labels-idx1-ubyte": idx(TEST_LABELS),
}


def packed(contents):
    return {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}


def prefixed(prefix, contents):
    """The names that EMNIST has: its test part is called that."""
    return {f"{prefix}-{name.replace('t10k', 'test')}": content for name, content in contents.items()}


def assert_is_the_set(spec):
    assert spec.source == "idx" and spec.image_shape == (6, 8, 1) and spec.file_bits == 8
    for split, images in (("train", TRAIN), ("test", TEST)):
        source = load_split(spec, split)
        np.testing.assert_array_equal(stored_pixels(source), images[..., np.newaxis])


@pytest.mark.parametrize("contents", [MNIST_FILES, packed(MNIST_FILES), MNIST_FILES | packed(MNIST_FILES)])
def test_both_parts(contents, tmp_path):
    assert_is_the_set(own_images(write_files(tmp_path, contents | {"readme.txt": b"train images"})))


def test_labels_are_not_needed(tmp_path):
    spec = own_images(write_files(tmp_path, {name: MNIST_FILES[name] for name in MNIST_FILES if "images" in name}))
    write_files(tmp_path, {"train-labels-idx1-ubyte": b"damaged"})
    assert load_split(spec, "train").count == 9 and load_split(spec, "test").count == 4


def test_one_of_several_sets_by_its_name(tmp_path):
    other = {name: idx(random_pixels(3, 5, 5)) for name in MNIST_FILES if "images" in name}
    write_files(tmp_path, prefixed("emnist-letters", packed(MNIST_FILES)) | prefixed("emnist-digits", packed(other)))
    assert_is_the_set(own_images(tmp_path, source_name="emnist-letters"))
    assert own_images(tmp_path, source_name="emnist-digits").image_shape == (5, 5, 1)
    message = (
        f"{tmp_path}: several files could be the train images: emnist-digits-train-images-idx3-ubyte.gz, "
        "emnist-letters-train-images-idx3-ubyte.gz; set --config.data.source_name"
    )
    with pytest.raises(ValueError, match=message):
        own_images(tmp_path)
    with pytest.raises(ValueError, match="several files could be the train images"):
        own_images(tmp_path, source_name="kmnist")


def test_a_name_of_another_source_does_not_matter_where_there_is_one_set(tmp_path):
    write_files(tmp_path, MNIST_FILES)
    assert_is_the_set(dataclasses.replace(own_images(tmp_path), source_name="mnist"))


def test_fashion_mnist_through_to_a_batch(tmp_path):
    images = random_pixels(5, 28, 28)
    names = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
    write_files(tmp_path, {name: gzip.compress(idx(images)) for name in names})
    spec = dataclasses.replace(data_spec("fashion_mnist"), path=str(tmp_path))
    (batch,) = evaluation_batches(load_split(spec, "test"), spec, batch_size=5, seed=0)
    np.testing.assert_array_equal(batch, images[..., np.newaxis].astype(np.float32) / np.float32(255))


def test_images_are_scaled_on_demand(tmp_path):
    spec = own_images(write_files(tmp_path, MNIST_FILES), resize="crop", height=6)
    np.testing.assert_array_equal(stored_pixels(load_split(spec, "train")), TRAIN[:, :, 1:-1, np.newaxis])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte: each image is 6x8 .*, not 7x7: .*resize=crop"):
        load_split(own_images(tmp_path, height=7), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(TRAIN)[:-1], "has 431 values, but its header says 9 x 6 x 8: it was cut off; download it again"),
        (idx(TRAIN) + b"\0", "has more than the 432 values of its header, 9 x 6 x 8: damaged; download it again"),
        (idx(TRAIN[:0]), "has no images; its header says 0 x 6 x 8"),
        (idx(TRAIN)[:4] + b"\xff" * 12 + bytes(99), "its images, 4294967295 x .* GB of memory"),
        (idx(TRAIN)[:4] + b"\0\0\x01\0" * 3 + bytes(99), "too short for 256 x 256 x 256 values"),
        (idx(TRAIN)[:15], "not an IDX file of bytes with 3 dimensions"),
        (idx(TRAIN_LABELS), "not an IDX file of bytes with 3 dimensions"),
        (b"\0\0\x0d" + idx(TRAIN)[3:], "not an IDX file of bytes"),
        (b"Dear diary, and so on", "not an IDX file of bytes"),
        (b"", "not an IDX file of bytes"),
    ],
)
def test_damaged_images_are_refused(content, message, tmp_path):
    name = "train-images-idx3-ubyte"
    write_files(tmp_path, MNIST_FILES | {name: content})
    with pytest.raises(ValueError, match=f"^{tmp_path / name}: {message}"):
        own_images(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.98])
def test_a_damaged_gzip_file_is_refused(kept, tmp_path):
    name = "train-images-idx3-ubyte.gz"
    content = gzip.compress(idx(TRAIN))
    write_files(tmp_path, packed(MNIST_FILES) | {name: content[: int(len(content) * kept)]})
    with pytest.raises(ValueError, match=f"^{tmp_path / name}: ") as caught:
        own_images(tmp_path)
    assert "\n" not in str(caught.value)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0x55
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(ValueError, match=f"^{tmp_path / name}: a damaged gzip file .*download it again"):
        own_images(tmp_path)


def test_of_a_packed_file_no_more_is_unpacked_than_its_header_says(tmp_path):
    """What comes behind unpacks to 300 MB."""
    zeros = gzip.compress(bytes(30_000_000))
    write_files(tmp_path, {"train-images-idx3-ubyte.gz": gzip.compress(idx(TRAIN)) + zeros * 10})
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="idx3-ubyte.gz: has more than the 432 values of its header, 9 x 6 x 8"):
            own_images(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("train-images-idx3-ubyte", "no file is the train images in IDX format; it is called like train-images-idx3"),
        ("t10k-images-idx3-ubyte", "no file is the test images in IDX format; it is called like t10k-images-idx3"),
    ],
)
def test_a_missing_part_is_told(missing, message, tmp_path):
    write_files(tmp_path, {name: content for name, content in MNIST_FILES.items() if name != missing})
    with pytest.raises(ValueError, match=f"^{tmp_path}: {message}"):
        load_split(own_images(tmp_path), "test")
