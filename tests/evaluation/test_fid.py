import functools
import http.server
import io
import socket
import sys
import tarfile
import threading
import types

import numpy as np
import pytest
import scipy.linalg

from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split
from nvae_tf.evaluation import fid
from nvae_tf.evaluation.fid import GRAPH_NAME, Inception, downloaded_inception, graph_content, rgb_pixels
from nvae_tf.progress import Report
from tests import refuses
from tests.evaluation.inception_stand_in import NUM_FEATURES, features_of, stand_in


def test_uneven_batches_give_what_numpy_gives_for_all():
    features = np.random.RandomState(0).normal(size=(50, 6)) * [1, 2, 3, 4, 5, 6] + np.arange(6)
    features = features.astype(np.float32)
    actual = fid.statistics_of(np.split(features, [1, 20, 20, 49]))
    np.testing.assert_allclose(actual.mean, features.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(actual.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12)
    assert actual.count == 50 and actual.mean.dtype == actual.covariance.dtype == np.float64
    # Sums of squares would lose all digits of a variance of 1.
    features = np.random.RandomState(0).normal(size=(4000, 3))
    far = fid.statistics_of(np.split(features + 1e8, 40))
    np.testing.assert_allclose(far.covariance, np.cov(features, rowvar=False), atol=1e-7)


def gaussian(mean, covariance, count=1000):
    return fid.FeatureStatistics(np.asarray(mean, np.float64), np.asarray(covariance, np.float64), count)


def sample(seed, images, features, scale=1.0):
    values = np.random.RandomState(seed).normal(size=(images, features))
    mixed = scale * values @ np.random.RandomState(seed + 50).normal(size=(features, features))
    return gaussian(mixed.mean(axis=0), np.cov(mixed, rowvar=False), images)


def test_full_covariances_agree_with_scipy_and_are_symmetric():
    one, other = sample(1, 100, 30), sample(2, 80, 30, scale=1.5)
    root = scipy.linalg.sqrtm(one.covariance @ other.covariance)
    expected = np.sum((one.mean - other.mean) ** 2) + np.trace(one.covariance + other.covariance - 2.0 * root.real)
    assert fid.frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert fid.frechet_distance(other, one) == pytest.approx(expected, rel=1e-9)
    assert 0.0 <= fid.frechet_distance(one, one) < 1e-9 * np.trace(one.covariance)
    still = gaussian(one.mean + 1.0, np.zeros((30, 30)))
    assert fid.frechet_distance(one, still) == pytest.approx(30.0 + np.trace(one.covariance))


def test_fewer_images_than_features():
    features, directions = 40, np.linalg.qr(np.random.RandomState(3).normal(size=(40, 40)))[0]

    def within(columns, variances):
        basis = directions[:, columns]
        return gaussian(np.zeros(features), basis @ np.diag(variances) @ basis.T, len(columns) + 1)

    # Common directions count by their roots, the others with their whole variance.
    one, other = within([0, 1, 2], [4.0, 9.0, 16.0]), within([1, 2, 3, 4], [25.0, 1.0, 7.0, 0.5])
    expected = (3.0 - 5.0) ** 2 + (4.0 - 1.0) ** 2 + 4.0 + 7.0 + 0.5
    assert fid.frechet_distance(one, other) == pytest.approx(expected, rel=1e-10)
    few = sample(4, 12, features)
    # Rounding counted as variance would show as sqrt(1e-16) of it here.
    assert fid.frechet_distance(few, few) < 1e-10 * np.trace(few.covariance)


def test_statistics_of_training_images_are_kept_and_damaged_ones_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen, kept, shown = [], [], []

    def features(images):
        # Images that are reported as done have been computed.
        assert len(shown) == len(seen)
        seen.append(len(images))
        return images[:, 2, 2:5, 0]

    extractor = types.SimpleNamespace(name="mean", features=features)
    status = types.SimpleNamespace(print=kept.append, show_if_due=lambda *line: shown.append(line), report=Report)
    task = types.SimpleNamespace(spec=data_spec("digits"), status=status)
    images = load_split(task.spec, "train").images[:, 2, 2:5, 0] / 255
    for damage in (None, None, lambda content: content[:-99], lambda content: b""):
        del seen[:], shown[:]
        file = next(tmp_path.rglob("*.npz"), None)
        if damage:
            file.write_bytes(damage(file.read_bytes()))
        statistics = fid._real_statistics(task, extractor)
        np.testing.assert_allclose(statistics.covariance, np.cov(images, rowvar=False), rtol=1e-5)
        assert statistics.count == 1437 and sum(seen) == (0 if file and not damage else 1437)
    assert len(kept) == 3


def test_what_is_wrong_is_named(tmp_path, monkeypatch):
    first, not_fitting = np.zeros((1, 3)), r"features \({}\) are not \[images, features\] as those before, or not all"
    for features, message in (
        ([], "at least 2 images, there are 1"),
        ([np.zeros((1, 4))], not_fitting.format("1, 4")),
        ([np.zeros(3)], not_fitting.format("3,")),
        ([np.full((1, 3), np.nan)], not_fitting.format("1, 3")),
    ):
        refuses(message, fid.statistics_of, [first, *features])
    with pytest.raises(ValueError, match="2 and 3 features"):
        fid.frechet_distance(gaussian(np.zeros(2), np.eye(2)), gaussian(np.zeros(3), np.eye(3)))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_features.py").write_text("import json\njson.lods")
    for name, kind, message in (
        ("no_such_module:make", ValueError, "name it as MODULE:FUNCTION.*No module named 'no_such_module'"),
        ("json:Circles", ValueError, "--extractor=json:Circles: json has no function 'Circles'"),
        ("json:__name__", ValueError, "json has no function '__name__'"),
        ("json:JSONDecoder", ValueError, "gives JSONDecoder; it must have a string `name`"),
        # A fault of the user's module is shown with its place.
        ("broken_features:make", AttributeError, "'lods'"),
    ):
        refuses(message, fid.named_extractor, name, error=kind)
    features = types.ModuleType("features_without_a_file")
    features.make = lambda: types.SimpleNamespace(name="mean", features=np.mean)
    monkeypatch.setitem(sys.modules, features.__name__, features)
    assert fid.named_extractor("features_without_a_file:make").name == "mean (features_without_a_file, no file)"


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
        refuses("Inception takes gray or RGB images, floats in", rgb_pixels, images)


def test_a_wrong_file(graph, tmp_path):
    wrong = tmp_path / "wrong.pb"
    refuses("--inception=PATH", Inception, wrong, error=FileNotFoundError)

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
        refuses(message, Inception, wrong)


def test_the_archive_gives_the_same_graph_and_a_wrong_one_is_named(folder, extractor, tmp_path):
    assert Inception(folder / "archive.tgz").name == extractor.name and not extractor.is_published
    damaged = tmp_path / "damaged.tgz"
    damaged.write_bytes((folder / "archive.tgz").read_bytes()[:5000])
    refuses("a damaged archive", graph_content, damaged)
    with tarfile.open(damaged, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("other.pb"), io.BytesIO())
        archive.add(tmp_path, arcname=GRAPH_NAME, recursive=False)
    refuses(f"without {GRAPH_NAME}", graph_content, damaged)


def test_a_download_is_kept_whole_and_checked_and_a_silent_or_missing_host_given_up(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    content = (folder / "archive.tgz").read_bytes()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/archive.tgz"
        with pytest.raises(ConnectionError, match=f"gave {len(content):,} bytes, not {len(content) + 1:,}"):
            downloaded_inception(tmp_path, url, len(content) + 1)
        refuses("404 .*--inception=PATH", downloaded_inception, tmp_path, f"{url}.other", 1, error=ConnectionError)
        assert list(tmp_path.iterdir()) == []
        assert downloaded_inception(tmp_path, url, len(content)).read_bytes() == content
        server.shutdown()
    assert downloaded_inception(tmp_path, url, len(content)) == tmp_path / "archive.tgz"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/archive.tgz"
        with pytest.raises(ConnectionError, match="timed out.*--inception=PATH"):
            downloaded_inception(tmp_path, url, 1, timeout_seconds=0.2)
