"""The Fréchet inception distance of samples from the training images (Heusel et al. 2017): `fid` and `frechet`.

`fid` is in the features pool 3 of TensorFlow's published Inception graph of 2015: other weights or another resizing
give other numbers. The graph takes pixels from 0 to 255 at `ExpandDims:0` `[batch, height, width, 3]`, resizes them to
299 x 299 (with no aligned corners, half-pixel centers or antialiasing), and gives `pool_3:0` `[batch, 1, 1, 2048]`.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import pathlib
import sys
import tarfile
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import requests
import tensorflow as tf

from nvae_tf.config import check
from nvae_tf.data.pipeline import content_digest, evaluation_batches, iterate, stored_spec
from nvae_tf.data.sources import load_split
from nvae_tf.errors import wrap_read_errors
from nvae_tf.evaluation.batch_norm_statistics import readjusted
from nvae_tf.evaluation.task import EvaluationTask
from nvae_tf.files import atomic_file, cache_folder, file_sha256
from nvae_tf.generation.sampling import ImageGenerator
from nvae_tf.models.latents import Temperature, image_seeds, temperatures_of_groups
from nvae_tf.models.reweighted_prior import check_prior
from nvae_tf.progress import ImageProgress
from nvae_tf.replicas import divided, joined
from nvae_tf.schemas import Field, read_arrays, write_arrays

NUM_FEATURES = 2048
GRAPH_NAME = "classify_image_graph_def.pb"
URL = "https://storage.googleapis.com/download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz"
_HELP = f"download {URL} where there is a network, and name that file, or the {GRAPH_NAME} in it, with --inception=PATH"
# From listings of the archive, and from one public project; a file of another size or sum is accepted, with a note.
_PUBLISHED = 95_673_916, "e6bb154e85f5d4331c22abcddb5dcf31"
_IMAGES_AT_ONCE = 32  # each takes some tens of megabytes
_SAMPLES_AT_ONCE = 256  # a multiple of the generator's own batches


class FeatureStatistics(NamedTuple):
    """The mean and the covariance of the features of `count` images, in float64."""

    mean: np.ndarray  # `[features]`
    covariance: np.ndarray  # unbiased, `[features, features]`
    count: int


def statistics_of(batches: Iterable[np.ndarray]) -> FeatureStatistics:
    """The statistics of features in batches `[images, features]`; ValueError for fewer than 2 images, or NaN."""
    # Batches are merged by the difference of their means (Chan, Golub & LeVeque 1983), not by sums of squares.
    total, mean, scatter = 0, 0.0, 0.0
    for batch in batches:
        features = np.asarray(batch, np.float64)
        if features.ndim != 2 or (total and features.shape[1] != len(mean)) or not np.isfinite(features).all():
            raise ValueError(f"features {features.shape} are not [images, features] as those before, or not all finite")
        if count := len(features):
            difference, centered = features.mean(axis=0) - mean, features - features.mean(axis=0)
            between = np.outer(difference, difference) * (total * count / (total + count))
            scatter = centered.T @ centered + (scatter + between)
            mean = mean + difference * (count / (total + count))
            total += count
    check(total >= 2, f"the covariance of features needs at least 2 images, there are {total}")
    return FeatureStatistics(mean, scatter / (total - 1), total)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """`|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))` (Heusel et al. 2017, eq. 6), in the features' unit squared."""
    # The trace of the root is the sum of the singular values of `C1^(1/2) C2^(1/2)`: the root of a nearly singular
    # `C1 C2` itself may be complex.
    if len(one.mean) != len(other.mean):
        raise ValueError(f"the sets have {len(one.mean)} and {len(other.mean)} features, of different extractors")
    difference = one.mean - other.mean
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    roots = np.linalg.svd(_root(one.covariance).T @ _root(other.covariance), compute_uv=False)
    return max(float(difference @ difference + traces - 2.0 * float(roots.sum())), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """`R [features, rank]` with `R R^T` equal to the covariance, without the directions that have no variance."""
    values, vectors = np.linalg.eigh(covariance)
    # A smaller eigenvalue may be rounding: the root of 1e-16 is 1e-8, and there can be thousands of them.
    kept = values > len(values) * np.finfo(np.float64).eps * np.abs(values).max(initial=0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def named_extractor(name: str) -> Any:
    """Makes the extractor of "module:function"; statistics are kept under its name, with a digest of the module."""
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # in an installed command the first entry is the command's own folder
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError) as error:
        raise ValueError(f"--extractor={name}: name it as MODULE:FUNCTION, as my_features:make ({error})") from None
    make = getattr(module, function_name, None)
    check(callable(make), f"--extractor={name}: {module_name} has no function {function_name!r}")
    extractor = make()
    if not (isinstance(getattr(extractor, "name", None), str) and callable(getattr(extractor, "features", None))):
        needed = "a string `name` and a method `features(images)`, see docs/evaluation.md"
        raise ValueError(f"--extractor={name} gives {type(extractor).__name__}; it must have {needed}")
    file = getattr(module, "__file__", None)
    digest = file_sha256(pathlib.Path(file))[:8] if file else "no file"
    return types.SimpleNamespace(name=f"{extractor.name} ({module_name}, {digest})", features=extractor.features)


@dataclasses.dataclass(frozen=True)
class FidSettings:
    """How samples are drawn and compared."""

    samples: int = 50_000  # as for published distances
    temperature: Temperature = 1.0  # multiplies the priors' sigma
    inception: str | None = None  # the graph's file; None to download it once
    extractor: str | None = None  # an extractor other than Inception, see `named_extractor`
    batch_norm_iterations: int = 0  # for readjusting batch-norm statistics before samples are drawn; 0: not readjusted
    prior: str = "model"  # or "reweighted", see `NVAE.generate`


def load_extractor(task: EvaluationTask, settings: FidSettings) -> Any:
    """Loads Inception, or the user's own extractor; ValueError for settings that do not fit the model."""
    temperatures_of_groups(settings.temperature, task.trained.model.plan)
    check_prior(settings.prior, task.trained.model)
    if settings.extractor:
        return named_extractor(settings.extractor)
    extractor = Inception(settings.inception, task.strategy)
    if not extractor.is_published:
        task.status.print("Note: this is probably not the published Inception graph: compare the distance with care.")
    return extractor


def measure_fid(task: EvaluationTask, settings: FidSettings, extractor: Any) -> dict[str, Any] | None:
    """The entry of the evaluation file: the distance of samples from the training images; None but on the chief."""
    model, shift, temperature, prior = task.trained.model, None, settings.temperature, settings.prior
    if settings.batch_norm_iterations:
        # Every worker by itself, with the same result; the copy is on all replicas, as the model is.
        with task.strategy.scope():
            model, shift = readjusted(model, temperature, settings.batch_norm_iterations, seed=task.seed, prior=prior)
        task.status.print(shift)
    generator = ImageGenerator(model, task.strategy)

    def batch_seeds(numbers: Sequence[int]) -> list[tf.Tensor]:
        seeds = image_seeds(task.seed, settings.samples)
        return [seeds[number * _SAMPLES_AT_ONCE :][:_SAMPLES_AT_ONCE] for number in numbers]

    def compute(seeds: tf.Tensor, *_: Any) -> dict[str, np.ndarray]:
        images = generator.generate(len(seeds), temperature, seeds, prior=prior)
        images = np.rint(images * np.float32(255.0)) / np.float32(255.0)  # as they would be in a PNG file
        return {"features": np.asarray(extractor.features(images))}

    work = f"{temperature} {settings.batch_norm_iterations} {prior} {extractor.name}"
    batches = task.shared_batches(work, settings.samples, _SAMPLES_AT_ONCE, batch_seeds, compute)
    samples = statistics_of(batch["features"] for batch in batches)
    if not task.workers.is_chief:
        return None
    real = _real_statistics(task, extractor)
    return {
        "value": frechet_distance(real, samples),
        "samples": settings.samples,
        "temperature": temperature,
        "prior": prior,
        "real_images": real.count,
        "extractor": extractor.name,
        "extractor_is_published": isinstance(extractor, Inception) and extractor.is_published,
        "batch_norm_iterations": settings.batch_norm_iterations,
        "batch_norm_shift": shift,
    }


def _real_statistics(task: EvaluationTask, extractor: Any) -> FeatureStatistics:
    """The statistics of the training images, kept in the user's cache folder."""
    spec = stored_spec(task.spec)
    source = load_split(spec, "train", task.status.report())
    fingerprint = f"train, {content_digest(source, spec)}, {extractor.name}"
    file = cache_folder() / "feature_statistics" / f"{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}.npz"
    schema = {"mean": Field("number", ("features",)), "covariance": Field("number", ("features", "features"))}
    with contextlib.suppress(FileNotFoundError, ValueError):  # made again where the file is damaged
        arrays = read_arrays(file, schema | {"count": Field("whole number", (), 2)})
        return FeatureStatistics(arrays["mean"], arrays["covariance"], int(arrays["count"]))
    task.status.print(f"features of the {source.count:,} training images, to be kept in {file}")
    progress = ImageProgress(task.status.show_if_due, source.count)

    def features() -> Iterator[np.ndarray]:
        for images in iterate(evaluation_batches(source, spec, batch_size=64, seed=0), source):
            yield extractor.features(images.numpy())
            progress.add(len(images))

    statistics = statistics_of(features())
    write_arrays(file, statistics._asdict())
    return statistics


class Inception:
    """The extractor of published distances, from the graph's file or the archive that it is in, or a download."""

    def __init__(self, path: str | pathlib.Path | None = None, strategy: tf.distribute.Strategy | None = None):
        file = downloaded_inception(cache_folder()) if path is None else pathlib.Path(path).expanduser()
        content = graph_content(file)
        pool = _batch_function(content, str(file))
        self._strategy = strategy or tf.distribute.get_strategy()
        self._pool = tf.function(lambda pixels: self._strategy.run(pool, [pixels]), autograph=False)
        self.name = f"inception-2015-12-05 {hashlib.sha256(content).hexdigest()[:16]}"
        # Distances may not be comparable where this is False.
        self.is_published = (len(content), hashlib.md5(content, usedforsecurity=False).hexdigest()) == _PUBLISHED

    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 `[batch, 2048]` of images as `rgb_pixels` takes them, whatever the batch, but for the last bits."""
        pixels, replicas = rgb_pixels(images), self._strategy.num_replicas_in_sync
        padded = np.pad(pixels, [(0, -len(pixels) % replicas), (0, 0), (0, 0), (0, 0)])
        size, rows = _IMAGES_AT_ONCE * replicas, [np.zeros((0, NUM_FEATURES), np.float32)]
        for first in range(0, len(padded), size):
            parts = divided(self._strategy, tf.constant(padded[first : first + size]))
            rows.append(joined(self._strategy, self._pool(parts)).numpy().reshape(-1, NUM_FEATURES))
        return np.concatenate(rows)[: len(pixels)]


def rgb_pixels(images: np.ndarray) -> np.ndarray:
    """Images `[batch, height, width, 1 or 3]` in [0, 1] as float32 0 ... 255 of three channels, else a ValueError."""
    images = np.asarray(images)
    is_image = images.ndim == 4 and images.shape[-1] in (1, 3) and images.dtype.kind == "f"
    if not is_image or not np.all((images >= 0.0) & (images <= 1.0)):
        rule = "Inception takes gray or RGB images, floats in [0, 1] [batch, height, width, 1 or 3]"
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; {rule}")
    pixels = np.rint(images.astype(np.float32) * np.float32(255.0))
    return np.repeat(pixels, 3, axis=-1) if images.shape[-1] == 1 else pixels


def _batch_function(content: bytes, where: str) -> tf.types.experimental.ConcreteFunction:
    """The frozen graph, built for one decoded image, as a function of a batch; messages begin with `where`."""
    graph = tf.compat.v1.GraphDef()
    with wrap_read_errors(f"{where}: not a frozen graph of TensorFlow, or cut off (", "); download it again"):
        graph.ParseFromString(content)
    # With the graph's old version number some operations are read by rules that functions don't know.
    graph.versions.producer = tf.version.GRAPH_DEF_VERSION
    for node in list(graph.node):
        node.attr.pop("_output_shapes", None)  # of one image
        if node.op != "BatchNormWithGlobalNormalization":
            continue
        # An old batch norm, which TensorFlow does not allow in functions.
        inputs, mean, variance, beta, gamma, *others = node.input
        name, epsilon = node.name, node.attr["variance_epsilon"].f
        if not node.attr["scale_after_normalization"].b:  # its gamma is not used
            ones = graph.node.add(name=f"{name}/no_scale", op="OnesLike", input=[gamma])
            ones.attr["T"].type = tf.float32.as_datatype_enum
            gamma = ones.name
        node.Clear()
        node.name, node.op = name, "FusedBatchNormV3"
        node.input.extend([inputs, gamma, beta, mean, variance, *others])
        node.attr["T"].type = node.attr["U"].type = tf.float32.as_datatype_enum
        node.attr["epsilon"].f, node.attr["is_training"].b = epsilon, False

    def pool(images: tf.Tensor) -> tf.Tensor:
        (features,) = tf.graph_util.import_graph_def(graph, {"ExpandDims:0": images}, ["pool_3:0"], name="")
        return tf.ensure_shape(features, [None, 1, 1, NUM_FEATURES])

    needed = f"[batch, 1, 1, {NUM_FEATURES}] at pool_3 can't be computed from ExpandDims"
    with wrap_read_errors(f"{where}: not the Inception of 2015: {needed} (", ")"):
        wrapped = tf.compat.v1.wrap_function(pool, [tf.TensorSpec([None, None, None, 3])])
        return wrapped.prune(wrapped.inputs[0], wrapped.outputs[0])


def downloaded_inception(folder: pathlib.Path, url=URL, size=88_931_400, timeout_seconds=8.0) -> pathlib.Path:
    """The archive of `size` bytes in a folder, downloaded if it is not there; a ConnectionError says how to by hand."""
    file = folder / url.rpartition("/")[2]
    if file.exists() and file.stat().st_size == size:
        return file
    with atomic_file(file) as partial:
        try:
            with requests.get(url, stream=True, timeout=timeout_seconds) as response, partial.open("wb") as target:
                response.raise_for_status()
                target.writelines(response.iter_content(2**20))
        except requests.RequestException as error:
            raise ConnectionError(f"Inception can't be downloaded ({error}): {_HELP}") from None
        if partial.stat().st_size != size:
            raise ConnectionError(f"{url} gave {partial.stat().st_size:,} bytes, not {size:,}: try again, or {_HELP}")
    return file


def graph_content(file: pathlib.Path) -> bytes:
    """The graph's file as bytes, from itself or from the archive that it is in."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; {_HELP}")
    # Any file of zeros is a tar archive, so its name decides.
    if not file.name.endswith((".tgz", ".tar.gz", ".tar")):
        return file.read_bytes()
    damaged = f"{file}: a damaged archive, or without {GRAPH_NAME} ("
    with wrap_read_errors(damaged, f"); {_HELP}"), tarfile.open(file) as archive:
        files = [member for member in archive if member.isfile()]
        (member,) = (file for file in files if pathlib.PurePosixPath(file.name).name == GRAPH_NAME)
        return archive.extractfile(member).read()
