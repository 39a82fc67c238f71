import dataclasses
import hashlib
import pathlib
import tarfile

import numpy as np
import pytest
import requests
import tensorflow as tf
import tensorflow_datasets as tfds

from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split
from nvae_tf.data.spec import complete_spec
from tests import refuses
from tests.data.picture_factory import random_pixels, stored_pixels, write_files

MNIST, CIFAR10 = data_spec("mnist"), data_spec("cifar10")


def store_known_set(folder, name, **parts):
    """Prepares a set of TFDS' catalog: `parts` are arrays or lists of images; all else that an example has is 0.

    A label is the image's first value modulo 10.
    """
    builder = tfds.builder(name, data_dir=folder)
    pathlib.Path(builder.data_dir).mkdir(parents=True)
    writer = tfds.core.SequentialWriter(builder.info, max_examples_per_shard=1000)
    writer.initialize_splits(list(parts))
    for part, images in parts.items():
        examples = [empty(builder.info.features) | {"image": image} for image in images]
        for example in examples:
            example |= {"label": int(example["image"].flat[0]) % 10} if "label" in example else {}
        writer.add_examples({part: examples})
    writer.close_all()


def empty(feature):
    if isinstance(feature, tfds.features.FeaturesDict):
        return {name: empty(part) for name, part in feature.items()}
    return "" if isinstance(feature, tfds.features.Text) else 0


@pytest.fixture
def own_set(tmp_path):
    """`own_set(images, **how_to_store)` stores a set that no catalog has, and gives its spec."""

    def store(images, folder="tfds"):
        shape, dtype = (None, None, 3), np.uint8
        signature = {"image": tf.TensorSpec(shape, dtype)}
        examples = [{"image": image} for image in images]
        training = tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=signature)
        how = {"split_datasets": {"train": training}, "data_dir": str(tmp_path / folder), "disable_shuffling": True}
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=shape, dtype=dtype)})
        tfds.dataset_builders.store_as_tfds_dataset("own", "1.0.0", features=features, **how)
        height, width, channels = images[0].shape
        size = {"height": height, "width": width, "channels": channels}
        return dataclasses.replace(CIFAR10, source_name="own", path=str(tmp_path / folder), **size)

    return store


def load(spec, split, folder):
    return load_split(dataclasses.replace(spec, path=str(folder)), split)


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "head", fail)


def test_a_prepared_set_and_parts_of_its_splits_without_network(no_network, free_memory, tmp_path):
    images = random_pixels(40, 32, 32, 3)
    store_known_set(tmp_path, "cifar10", train=images, test=images[:3])
    np.testing.assert_array_equal(load(CIFAR10, "train", tmp_path).images, images)
    np.testing.assert_array_equal(load(CIFAR10, "test", tmp_path).images, images[:3])
    spec = dataclasses.replace(CIFAR10, train_split="train[:80%]", test_split="train[80%:]")
    np.testing.assert_array_equal(load(spec, "train", tmp_path).images, images[:32])
    np.testing.assert_array_equal(load(spec, "test", tmp_path).images, images[32:])
    free_memory(3 * images.size - 1)
    refuses("cifar10: 40 images of .* name a folder .*, --config.data.cache=FOL", load, CIFAR10, "train", tmp_path)


def test_labels_go_with_their_images(no_network, tmp_path):
    images = random_pixels(40, 32, 32, 3)
    store_known_set(tmp_path / "tfds", "cifar10", train=images, test=images[:3])
    # As TFDS keeps the names of classes that it found in the files of a set.
    (prepared,) = (tmp_path / "tfds" / "cifar10").iterdir()
    (prepared / "label.labels.txt").write_text("\n".join("abcdefghij"))
    spec = dataclasses.replace(CIFAR10, path=str(tmp_path / "tfds"), labels=True, test_split="train[80%:]")
    assert complete_spec(spec).num_classes == 10
    cached = dataclasses.replace(spec, cache=str(tmp_path / "cache"))
    # The cache is written, then read.
    for asked in (spec, cached, cached):
        source = load_split(asked, "test")
        np.testing.assert_array_equal(source.labels, images[32:, 0, 0, 0] % 10)
        assert source.class_names == tuple("abcdefghij")


def test_files_in_the_manual_folder_are_prepared_and_reused_without_network(no_network, tmp_path, monkeypatch):
    """An archive of CIFAR-10's form where a user puts the real one."""
    images, archive = random_pixels(4, 32, 32, 3), tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    # A label, then the image channel by channel.
    content = np.insert(images.transpose(0, 3, 1, 2).reshape(4, -1), 0, 7, axis=1).tobytes()
    files = {f"data_batch_{number}.bin": content for number in range(1, 6)} | {"test_batch.bin": content}
    files["batches.meta.txt"] = "\n".join(f"class{number}" for number in range(10)).encode()
    write_files(tmp_path / "cifar-10-batches-bin", files)
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    builder_class, checksum = tfds.builder_cls("cifar10"), hashlib.sha256(archive.read_bytes()).hexdigest()
    info = tfds.download.checksums.UrlInfo(archive.stat().st_size, checksum, archive.name)
    monkeypatch.setattr(builder_class, "url_infos", {url: info for url in builder_class.url_infos})
    assert load(CIFAR10, "train", tmp_path).count == 20
    archive.unlink()
    prepared = load(CIFAR10, "test", tmp_path).images
    assert sorted(image.tobytes() for image in prepared) == sorted(image.tobytes() for image in images)


@pytest.mark.parametrize(
    ("name", "host", "files"),
    [
        ("mnist", "storage.googleapis.com", ["train-images-idx3-ubyte.gz from https://storage.googleapis.com/"]),
        ("celeba64", "drive.google.com", ["img_align_celeba.zip from https://drive.google.com/uc?export=download&id="]),
        ("imagenet32", "image-net.org", [f"{part}_32x32.tar from http://" for part in ("train", "valid")]),
    ],
)
def test_without_network_the_error_has_the_cause_and_the_manual_way(name, host, files, no_network, tmp_path):
    manual = tmp_path / "downloads" / "manual"
    # Of another set.
    write_files(manual, {"cifar-10-binary.tar.gz": b""})
    text = refuses("", load, data_spec(name), "train", tmp_path, error=ConnectionError)
    message, set_name = text, data_spec(name).source_name
    assert f"{host}: no route" in message and f"\n    {manual}\n" in message and "64x64" not in message
    assert all(f"\n    {file}" in message for file in files)
    assert f"tfds build {set_name} --data_dir=tfds_data" in message and str(tmp_path / set_name) in message


def test_an_unknown_set_is_answered_with_the_nearest(tmp_path):
    for name, message in (
        ("mnits/3d", "data.source_name = 'mnits/3d': .*Dataset mnits not found.*; did you mean 'mnist'"),
        ("downsampled_imagenet/16x16", "BuilderConfig 16x16 not found"),
        ("iris", "'iris': it must have a feature 'image' of uint8 or uint16, and has features, label"),
    ):
        text = refuses(message, load, dataclasses.replace(CIFAR10, source_name=name), "train", tmp_path)
        assert len(text) < 400 and "\n" not in text


def test_a_wrong_split_is_answered_with_those_that_there_are(tmp_path):
    images = np.zeros([10, 32, 32, 3], np.uint8)
    store_known_set(tmp_path, "cifar10", train=images, test=images[:4])
    for split in ("validation", "train[:", "train[20:10]"):
        message = r"data.train_split = .*: .*has the splits train \(10 images\), test \(4 images\)"
        refuses(message, load, dataclasses.replace(CIFAR10, train_split=split), "train", tmp_path)


def test_celeba_is_cut_around_the_face_and_scaled(tmp_path):
    faces = random_pixels(10, 218, 178, 3)
    store_known_set(tmp_path, "celeb_a", train=faces, test=faces[:2])
    source = load(data_spec("celeba64"), "train", tmp_path)
    assert source.images.shape == (10, 64, 64, 3)
    # They were stored as JPEG.
    stored = tfds.builder("celeb_a", data_dir=tmp_path).as_dataset("train", shuffle_files=False)
    whole = np.stack([example["image"] for example in stored.as_numpy_iterator()])
    faces = tf.image.resize(whole[:, 40:188, 15:163], [64, 64], antialias=True).numpy()
    # Pillow rounds to whole numbers twice, once for each direction.
    assert np.abs(source.images - faces).max() <= 1.01


def test_images_of_different_sizes_need_a_rule(own_set):
    colors = [40, 120, 200]
    sizes = [(20, 30), (24, 18), (16, 16)]
    pictures = [np.full([*size, 3], color, np.uint8) for size, color in zip(sizes, colors, strict=True)]
    spec = dataclasses.replace(own_set(pictures), height=16)
    refuses("^own/1.0.0: an image is 2.* not 16x30: --config.data.resize=crop", load_split, spec, "train")
    source = load_split(dataclasses.replace(spec, width=12, resize="crop"), "train")
    np.testing.assert_array_equal(source.images, np.array(colors)[:, None, None, None] * np.ones([1, 16, 12, 3]))
    with pytest.raises(ValueError, match=r"an image is 20x30 .*too small for data.crop_box \(3, 2, 31, 20\)"):
        load_split(dataclasses.replace(spec, crop_box=(3, 2, 31, 20)), "train")


def test_another_set_of_the_same_name_is_decoded_again(own_set, tmp_path):
    images = random_pixels(5, 8, 8, 3)
    sets = [own_set(list(images)), own_set(list(255 - images), folder="elsewhere")]
    caches = [dataclasses.replace(spec, cache=str(tmp_path / "cache")) for spec in sets]
    one, other = (stored_pixels(load_split(spec, "train")) for spec in caches)
    np.testing.assert_array_equal(one, 255 - other)
