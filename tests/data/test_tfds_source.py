"""Sets from TensorFlow Datasets: prepared before, prepared from files on disk, and not to be had."""

import dataclasses
import hashlib
import io
import socket
import tarfile
import urllib.parse

import numpy as np
import pytest
import tensorflow_datasets as tfds

from nvae_tf.data import data_spec
from nvae_tf.data import tfds as tfds_source
from nvae_tf.data.pipeline import evaluation_batches, training_batches
from nvae_tf.data.sources import load_split
from tests.data.stored_sets import store_known_set

MNIST, CIFAR10 = data_spec("mnist"), data_spec("cifar10")
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"


def load(spec, split, folder):
    return load_split(dataclasses.replace(spec, path=str(folder)), split)


@pytest.fixture
def network(monkeypatch):
    """A network on which every host answers, whether this machine has one or not."""
    monkeypatch.setattr(tfds_source, "unreachable_hosts", lambda urls: {})


@pytest.fixture
def no_network(monkeypatch):
    """A machine that can't find any host, whether this machine has a network or not."""

    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", fail)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("spec", [MNIST, CIFAR10], ids=lambda spec: spec.name)
def test_a_prepared_set_through_to_a_batch_without_network(spec, no_network, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, [40, *spec.image_shape], dtype=np.uint8)
    store_known_set(tmp_path, spec.source_name, train=images, test=images[:3])
    source = load(spec, "train", tmp_path)
    np.testing.assert_array_equal(source.images, images)
    np.testing.assert_array_equal(load(spec, "test", tmp_path).images, images[:3])
    batch = next(iter(training_batches(source, spec, batch_size=8, seed=1))).numpy()
    assert batch.shape == (8, *spec.image_shape) and batch.dtype == np.float32
    if spec.binarise:
        assert set(np.unique(batch)) == {0.0, 1.0}
    else:
        np.testing.assert_array_equal(np.rint(batch * 255) / np.float32(255), batch)
        assert len(np.unique(batch)) > 200


def test_stacked_mnist_is_made_of_mnist(no_network, tmp_path):
    spec = data_spec("stacked_mnist")
    images = np.random.default_rng(0).integers(0, 256, [40, 28, 28, 1], dtype=np.uint8)
    store_known_set(tmp_path, "mnist", train=images, test=images[:10])
    for split, digits in (("train", images), ("test", images[:10])):
        source = load(spec, split, tmp_path)
        assert (source.count, source.image_shape) == (len(digits), (28, 28, 3))
        stacks = np.concatenate(list(evaluation_batches(source, spec, batch_size=16, seed=0)))
        for channel in np.moveaxis(stacks, -1, 0):
            found = {image.tobytes() for image in np.rint(channel * 255).astype(np.uint8)}
            assert found == {digit.tobytes() for digit in digits}


def cifar10_records(count, seed):
    """Labels, images [count, 32, 32, 3], and the bytes of a CIFAR-10 file that holds them."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count, dtype=np.uint8)
    images = random.integers(0, 256, [count, 32, 32, 3], dtype=np.uint8)
    rows = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(count, -1)], axis=1)
    return labels, images, rows.tobytes()


@pytest.fixture
def cifar10_in_manual_folder(tmp_path, monkeypatch):
    """A small archive of CIFAR-10's form where a user puts the real one; its test images."""
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    _, test_images, test_bytes = cifar10_records(4, seed=9)
    contents = {f"data_batch_{number}.bin": cifar10_records(3, seed=number)[2] for number in range(1, 6)}
    contents["test_batch.bin"] = test_bytes
    contents["batches.meta.txt"] = "\n".join(f"class{number}" for number in range(10)).encode()
    with tarfile.open(manual / CIFAR10_ARCHIVE, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    archive_bytes = (manual / CIFAR10_ARCHIVE).read_bytes()
    builder_class = tfds.builder_cls("cifar10")
    (url,) = builder_class.url_infos
    checksum = hashlib.sha256(archive_bytes).hexdigest()
    info = tfds.download.checksums.UrlInfo(len(archive_bytes), checksum, CIFAR10_ARCHIVE)
    monkeypatch.setattr(builder_class, "url_infos", {url: info})
    return test_images


def test_files_in_the_manual_folder_are_prepared_and_reused_without_network(
    cifar10_in_manual_folder, no_network, tmp_path
):
    images = cifar10_in_manual_folder
    assert load(CIFAR10, "train", tmp_path).count == 15
    (tmp_path / "downloads" / "manual" / CIFAR10_ARCHIVE).unlink()

    prepared = load(CIFAR10, "test", tmp_path)
    order = [next(i for i, image in enumerate(images) if (image == loaded).all()) for loaded in prepared.images]
    assert sorted(order) == [0, 1, 2, 3]
    (batch,) = evaluation_batches(prepared, CIFAR10, batch_size=4, seed=0)
    np.testing.assert_array_equal(batch, images[order].astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("spec", [MNIST, CIFAR10], ids=lambda spec: spec.name)
def test_without_network_the_error_has_the_cause_and_the_manual_way(spec, no_network, tmp_path):
    with pytest.raises(ConnectionError) as caught:
        load(spec, "train", tmp_path)
    message = str(caught.value)
    for url in tfds.builder_cls(spec.source_name).url_infos:
        assert url in message
        assert f"{urllib.parse.urlsplit(url).hostname}:443: [Errno -2] Name or service not known" in message
    assert str(tmp_path / "downloads" / "manual") in message
    assert f"tfds.builder('{spec.source_name}'" in message and str(tmp_path / spec.source_name) in message


def test_a_download_that_breaks_off_tells_the_manual_way_too(network, monkeypatch, tmp_path):
    def break_off(builder):
        raise tfds.download.DownloadError("Failed to get url. HTTP code: 404.")

    monkeypatch.setattr(tfds_source.tfds.core.DatasetBuilder, "download_and_prepare", break_off)
    with pytest.raises(ConnectionError, match="(?s)HTTP code: 404.*downloads/manual"):
        load(MNIST, "train", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "data.source_name = 'mnits': TensorFlow Datasets .* no such set; did you mean 'mnist'"),
        ("mnits/3d", "data.source_name = 'mnits/3d': TensorFlow Datasets .* no such set; did you mean 'mnist'"),
        (
            "downsampled_imagenet/16x16",
            "'downsampled_imagenet' has no configuration '16x16', only 32x32, 64x64; did you mean",
        ),
    ],
)
def test_an_unknown_set_is_answered_with_the_nearest(name, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        load(dataclasses.replace(CIFAR10, source_name=name), "train", tmp_path)
    assert len(str(caught.value)) < 200


def test_a_missing_name_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="data.source_name is not set: .*--config.data.source_name="):
        load(dataclasses.replace(CIFAR10, source_name=None), "train", tmp_path)


def test_a_wrong_split_is_answered_with_those_that_there_are(no_network, tmp_path):
    images = np.zeros([10, 32, 32, 3], np.uint8)
    store_known_set(tmp_path, "cifar10", train=images, test=images[:4])
    for setting, split in (("train_split", "train"), ("test_split", "test")):
        spec = dataclasses.replace(CIFAR10, **{setting: "validation"})
        with pytest.raises(ValueError) as caught:
            load(spec, split, tmp_path)
        message = str(caught.value)
        assert message.startswith(f"data.{setting} = 'validation': ")
        assert r"the splits train (10 images), test (4 images)" in message
        assert "--config.data.train_split='train[:90%]'" in message
    for split in ("train[:", "train[20:10]"):
        with pytest.raises(ValueError, match="has the splits train"):
            load(dataclasses.replace(CIFAR10, train_split=split), "train", tmp_path)


def test_a_part_of_a_split(no_network, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, [10, 32, 32, 3], dtype=np.uint8)
    store_known_set(tmp_path, "cifar10", train=images)
    spec = dataclasses.replace(CIFAR10, train_split="train[:80%]", test_split="train[80%:]")
    np.testing.assert_array_equal(load(spec, "train", tmp_path).images, images[:8])
    np.testing.assert_array_equal(load(spec, "test", tmp_path).images, images[8:])


def test_a_set_without_images_is_refused(network, tmp_path):
    with pytest.raises(ValueError, match="'iris' has no feature 'image', only features, label"):
        load(dataclasses.replace(MNIST, source_name="iris"), "train", tmp_path)
