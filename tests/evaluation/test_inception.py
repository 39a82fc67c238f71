import functools
import http.server
import io
import socket
import tarfile
import threading

import numpy as np
import pytest

from nvae_tf.evaluation.fid import GRAPH_NAME, Inception, downloaded_inception, graph_content, rgb_pixels
from tests.evaluation.inception_stand_in import NUM_FEATURES, features_of, stand_in


@pytest.fixture(scope="module")
def graph():
    return stand_in()


@pytest.fixture(scope="module")
def folder(graph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inception")
    (folder / GRAPH_NAME).write_bytes(graph.SerializeToString())
    with tarfile.open(folder / "archive.tgz", "w:gz") as archive:
        archive.add(folder / GRAPH_NAME, arcname=f"./{GRAPH_NAME}")
    return folder


@pytest.fixture(scope="module")
def extractor(folder):
    return Inception(folder / GRAPH_NAME)


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(0).uniform(size=(35, 6, 5, 3)).astype(np.float32)


def test_features_are_those_of_the_graph_whatever_the_batch(graph, extractor, images):
    together = extractor.features(images)
    assert together.shape == (35, NUM_FEATURES)
    expected = [features_of(graph, np.rint(image * 255.0)) for image in images[:2]]
    np.testing.assert_allclose(together[:2], expected, rtol=1e-4, atol=1e-4)
    one_by_one = np.concatenate([extractor.features(image[np.newaxis]) for image in images])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4, atol=1e-5)
    assert np.std(together, axis=0).max() > 0.01  # they are of different images


def test_pixels_are_those_of_8_bit_pictures():
    values = np.array([0.0, 0.4 / 255.0, 0.6 / 255.0, 127.4 / 255.0, 1.0]).reshape(1, 5, 1, 1)
    np.testing.assert_array_equal(rgb_pixels(values)[0, :, 0], np.repeat([[0], [0], [1], [127], [255]], 3, axis=1))
    wrong = np.zeros([2, 4, 4, 3], np.float32)
    for images in (wrong[..., :2], wrong.astype(np.uint8), wrong - 0.1, wrong + np.nan):
        with pytest.raises(ValueError, match="Inception takes gray or RGB images, floats in"):
            rgb_pixels(images)


def test_the_archive_gives_the_same_graph(folder, extractor):
    assert Inception(folder / "archive.tgz").name == extractor.name and not extractor.is_published


def test_a_wrong_file(graph, tmp_path):
    wrong = tmp_path / "wrong.pb"
    with pytest.raises(FileNotFoundError, match="--inception=PATH"):
        Inception(wrong)

    def with_pool_of(source):
        other = graph.__class__.FromString(graph.SerializeToString())
        next(node for node in other.node if node.name == "pool_3").input[0] = source
        return other.SerializeToString()

    for content, message in (
        (b"a page of text", r"wrong\.pb: not a frozen graph"),
        (with_pool_of("Mul"), r"wrong\.pb: not the Inception of 2015: \[batch, 1, 1, 2048\] at pool_3"),
        (with_pool_of("missing"), "can't be computed from ExpandDims .*missing"),
    ):
        wrong.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Inception(wrong)


def test_a_wrong_archive(folder, tmp_path):
    damaged = tmp_path / "damaged.tgz"
    damaged.write_bytes((folder / "archive.tgz").read_bytes()[:5000])
    with pytest.raises(ValueError, match="a damaged archive"):
        graph_content(damaged)
    with tarfile.open(damaged, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("other.pb"), io.BytesIO())
    with pytest.raises(ValueError, match=f"without {GRAPH_NAME}"):
        graph_content(damaged)


def test_a_download_is_kept_whole_and_checked_and_a_silent_or_missing_host_given_up(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    content = (folder / "archive.tgz").read_bytes()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/archive.tgz"
        with pytest.raises(ConnectionError, match=f"gave {len(content):,} bytes, not {len(content) + 1:,}"):
            downloaded_inception(tmp_path, url, len(content) + 1)
        with pytest.raises(ConnectionError, match="404 .*--inception=PATH"):
            downloaded_inception(tmp_path, f"{url}.other", 1)
        assert list(tmp_path.iterdir()) == []
        assert downloaded_inception(tmp_path, url, len(content)).read_bytes() == content
        server.shutdown()
    assert downloaded_inception(tmp_path, url, len(content)) == tmp_path / "archive.tgz"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/archive.tgz"
        with pytest.raises(ConnectionError, match="timed out.*--inception=PATH"):
            downloaded_inception(tmp_path, url, 1, timeout_seconds=0.2)
