"""What becomes of the images of TensorFlow Datasets: their form, the crop, the memory, the cache."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from nvae_tf.data import data_spec
from nvae_tf.data import tfds as tfds_source
from nvae_tf.data.pipeline import evaluation_batches
from nvae_tf.data.sources import first_image, load_split
from tests.data.stored_sets import store_known_set, store_own_set

CIFAR10, CELEBA64 = data_spec("cifar10"), data_spec("celeba64")


def random_images(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.fixture
def own_set(tmp_path):
    """`own_set(images, **how_to_store)` stores a set and gives its spec."""

    def store(images, **form):
        store_own_set(tmp_path / "tfds", "own", images, **form)
        height, width, channels = images[0].shape
        return dataclasses.replace(
            CIFAR10,
            source_name="own",
            path=str(tmp_path / "tfds"),
            height=height,
            width=width,
            channels=channels,
        )

    return store


@pytest.fixture
def celeba64(tmp_path):
    """The spec of a CelebA of ten faces in the training part."""
    faces = random_images(10, 218, 178, 3)
    store_known_set(tmp_path / "tfds", "celeb_a", train=faces, test=faces[:2])
    return dataclasses.replace(CELEBA64, path=str(tmp_path / "tfds"))


def test_celeba_is_cut_around_the_face_and_scaled(celeba64):
    source = load_split(celeba64, "train")
    assert source.images.shape == (10, 64, 64, 3)
    # They were stored as JPEG.
    stored = tfds.builder("celeb_a", data_dir=celeba64.path).as_dataset("train", shuffle_files=False)
    whole = np.stack([example["image"] for example in stored.as_numpy_iterator()])
    faces = tf.image.resize(whole[:, 40:188, 15:163], [64, 64], antialias=True).numpy()
    # Pillow rounds to whole numbers twice, once for each direction.
    assert np.abs(source.images - faces).max() <= 1.01
    (batch,) = evaluation_batches(source, celeba64, batch_size=10, seed=0)
    np.testing.assert_array_equal(batch, source.images.astype(np.float32) / np.float32(255))


def test_a_look_at_the_first_image(own_set, celeba64):
    assert first_image(celeba64) == (218, 178, 3, 8)
    assert first_image(own_set(random_images(3, 5, 6, 3))) == (None, None, 3, 8)


def test_images_of_different_sizes_need_a_rule(own_set):
    colors = [40, 120, 200]
    sizes = [(20, 30), (24, 18), (16, 16)]
    pictures = [np.full([*size, 3], color, np.uint8) for size, color in zip(sizes, colors, strict=True)]
    spec = own_set(pictures)
    with pytest.raises(ValueError) as caught:
        load_split(dataclasses.replace(spec, height=16, width=16), "train")
    message = str(caught.value)
    assert message.startswith("own/1.0.0: an image is 2") and "not 16x16" in message
    assert "--config.data.resize=crop" in message and "--config.data.height=16" in message
    assert "\n" not in message and caught.value.__suppress_context__
    source = load_split(dataclasses.replace(spec, height=16, width=12, resize="crop"), "train")
    np.testing.assert_array_equal(source.images, np.array(colors)[:, None, None, None] * np.ones([1, 16, 12, 3]))


def test_a_box_that_is_too_large_is_told(own_set):
    spec = own_set(random_images(3, 20, 30, 3))
    source = load_split(dataclasses.replace(spec, crop_box=(3, 2, 30, 20), height=18, width=27), "train")
    np.testing.assert_array_equal(source.images, random_images(3, 20, 30, 3)[:, 2:, 3:])
    with pytest.raises(ValueError, match=r"an image is 20x30 .*too small for data.crop_box \(3, 2, 31, 20\)"):
        load_split(dataclasses.replace(spec, crop_box=(3, 2, 31, 20), height=18, width=28), "train")


def test_of_sixteen_bits_the_upper_eight_are_taken(own_set):
    images = random_images(4, 8, 6, 1, dtype=np.uint16)
    spec = own_set(images, dtype=np.uint16, shape=(8, 6, 1))
    assert first_image(spec) == (8, 6, 1, 16)
    with pytest.raises(ValueError, match="data.file_bits is 8, but TFDS has 16; --config.data.convert=True"):
        load_split(spec, "train")
    for change in ({"file_bits": 16}, {"convert": True}):
        source = load_split(dataclasses.replace(spec, **change), "train")
        np.testing.assert_array_equal(source.images, images // 256)


def test_other_channels_are_converted_only_when_asked(own_set):
    images = random_images(4, 8, 6, 1)
    spec = dataclasses.replace(own_set(images, shape=(8, 6, 1)), channels=3)
    with pytest.raises(ValueError, match="data.channels is 3, but TFDS has 1; --config.data.convert=True"):
        load_split(spec, "train")
    source = load_split(dataclasses.replace(spec, convert=True), "train")
    np.testing.assert_array_equal(source.images, images.repeat(3, axis=-1))


def test_a_set_too_large_for_the_memory_names_the_cache(celeba64, monkeypatch, tmp_path):
    size = 10 * 64 * 64 * 3
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * size - 1))
    with pytest.raises(ValueError, match=r"celeb_a: 10 images of \(64, 64, 3\) need .*--config.data.cache=FOLDER"):
        load_split(celeba64, "train")
    assert load_split(dataclasses.replace(celeba64, cache=str(tmp_path / "cache")), "train").count == 10
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * size))
    assert load_split(celeba64, "train").count == 10


def batches_of(spec, split):
    source = load_split(spec, split)
    return np.concatenate(list(evaluation_batches(source, spec, batch_size=4, seed=0)))


def test_decoded_images_are_written_once_and_read_from_then_on(celeba64, tmp_path):
    cached = dataclasses.replace(celeba64, cache=str(tmp_path / "cache"))
    expected = {split: batches_of(celeba64, split) for split in ("train", "test")}
    for split, images in expected.items():
        np.testing.assert_array_equal(batches_of(cached, split), images)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert len(files) == 2
    # What is decoded needs the records no longer.
    for file in (tmp_path / "tfds").rglob("*.tfrecord*"):
        file.unlink()
    for split, images in expected.items():
        np.testing.assert_array_equal(batches_of(cached, split), images)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == files


def test_another_set_of_the_same_name_is_decoded_again(own_set, tmp_path):
    first = own_set(list(random_images(5, 8, 8, 3)))
    store_own_set(tmp_path / "elsewhere", "own", list(255 - random_images(5, 8, 8, 3)))
    sets = [
        dataclasses.replace(first, path=path, cache=str(tmp_path / "cache"))
        for path in (first.path, str(tmp_path / "elsewhere"))
    ]
    one, other = (batches_of(spec, "train") for spec in sets)
    np.testing.assert_allclose(one, 1 - other, atol=1e-6)


def test_other_settings_are_other_decoded_images(celeba64, tmp_path):
    spec = dataclasses.replace(celeba64, cache=str(tmp_path / "cache"))
    whole = dataclasses.replace(spec, crop_box=None)
    assert (batches_of(spec, "train") != batches_of(whole, "train")).any()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_failed_decoding_leaves_nothing_behind(own_set, tmp_path):
    spec = own_set([np.zeros([8, 8, 3], np.uint8)] * 300 + [np.zeros([8, 9, 3], np.uint8)])
    with pytest.raises(ValueError, match="an image is 8x9"):
        load_split(dataclasses.replace(spec, cache=str(tmp_path / "cache")), "train")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_mocked_set_through_to_a_batch(monkeypatch, tmp_path):
    monkeypatch.setattr("nvae_tf.data.tfds.unreachable_hosts", lambda urls: {})
    spec = dataclasses.replace(data_spec("celeba64"), path=str(tmp_path))
    with tfds.testing.mock_data(num_examples=12):
        source = load_split(spec, "train")
    assert source.count == 12
    assert batches_of_source(source, spec).shape == (12, 64, 64, 3)


def test_tfds_own_folders_of_pictures(monkeypatch, tmp_path):
    images = random_images(6, 20, 30, 3)
    for part, numbers in (("train", range(4)), ("test", range(4, 6))):
        for number in numbers:
            file = tmp_path / part / "class" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number]).save(file)
    folder = tfds.folder_dataset.ImageFolder(str(tmp_path))
    monkeypatch.setattr(tfds_source.tfds, "builder", lambda name, data_dir: folder)
    spec = dataclasses.replace(CIFAR10, source_name="pictures", path=str(tmp_path), height=20, width=30)
    for part, numbers in (("train", range(4)), ("test", range(4, 6))):
        source = load_split(spec, part)
        found = {image.tobytes() for image in source.images}
        assert found == {images[number].tobytes() for number in numbers}


def batches_of_source(source, spec):
    return np.concatenate(list(evaluation_batches(source, spec, batch_size=5, seed=0)))
