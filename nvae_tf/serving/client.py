"""A model on a server (TensorFlow Serving, or nvae-serve), with NumPy arrays and images in and out.

    from nvae_tf.generation.image_grid import pil_images

    with ServedModel("localhost:8500", "digits") as model:  # gRPC; "http://localhost:8501" is REST
        images = pil_images(model.sample(64, seed=1, temperature=0.7, as_pixels=True))
        latents = model.encode([Image.open("seven.png")])

Row i of a call with seed s is requested with the seed `s + i * 2**32` (`nvae_tf.serving.signatures`), so it is image i
of the same series as in the library's own `generate`, `encode` and so on, however the call is cut into requests.

Over REST numbers travel as text, so images are several times larger than with gRPC, less so as PNG files. REST starts
no TensorFlow; gRPC does, for the messages of `tensorflow_serving.apis`.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nvae_tf.config import LARGEST_SEED, did_you_mean
from nvae_tf.data.pictures import as_eight_bits
from nvae_tf.errors import wrap_read_errors
from nvae_tf.generation.image_grid import pixels_of, pixels_of_files, png_files
from nvae_tf.serving import wire
from nvae_tf.serving.outputs import PNG_SUFFIX
from nvae_tf.serving.transports import (  # noqa: F401  (the errors are names of this module too)
    BadRequest,
    DeadlineExceeded,
    GrpcTransport,
    ModelNotFound,
    RestTransport,
    ServerFailed,
    ServerNotReady,
    ServingError,
    TooLarge,
)
from nvae_tf.serving.wire import Arrays, SignatureSpec, TensorSpec

# A request that finds no server is sent again after a random part of 0.2 s, 0.4 s, and so on.
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 5, 0.2, 5.0
# The values of inputs that only some models have, for calls that name none: no class, no guidance, the model's prior.
_OPTIONAL = {"label": -1, "guidance": 1.0, "proposals": 1}

# uint8 in 0 to 255 or float in [0, 1], [count, height, width, channels], or Pillow's.
Images = np.ndarray | Sequence[Image.Image]


class ModelMetadata(NamedTuple):
    """A served model: the version that answered, and its signatures by name."""

    version: int
    signatures: dict[str, SignatureSpec]


class VersionStatus(NamedTuple):
    """One version on a server: its state (`LOADING`, `AVAILABLE`, ...), and the error of one that failed, or ''."""

    version: int
    state: str
    error: str


class Scores(NamedTuple):
    """The negative evidence lower bound of each image, at one draw of its latents."""

    nats: np.ndarray  # [count]
    bits_per_dim: np.ndarray  # [count], the same in bits for each value of the image
    kl_per_group: np.ndarray  # [count, groups], in nats, the top group first


class Composed(NamedTuple):
    """Images of latents of which some groups were given and the others drawn."""

    images: np.ndarray  # [count, height, width, channels]
    latents: np.ndarray  # [count, total], those that were given and those that were drawn


class ServedModel(contextlib.AbstractContextManager):
    """A model on a server; a context manager that many threads may use.

    Pillow's images and uint8 arrays are quantized to the bits of the model's data, as in training, where the model has
    signatures for PNG files; float images are used as they are. `labels`, for models with classes, are one class for
    all rows or one each, -1 for none; `guidance` and `proposals`, see `nvae_tf.serving.signatures`, likewise.

    Args:
      server: `HOST:PORT` for gRPC (TensorFlow Serving's `--port`, 8500), a URL as `http://HOST:PORT` for REST
        (`--rest_api_port`, 8501).
      model: its name on the server.
      version: one version's number; the newest one that is served, if neither this nor a label is given.
      label: the label of a version instead, e.g. `stable`.
      timeout: seconds for one request, its repetitions included.
      total_timeout: seconds for one call, which may be many requests.
      batch_rows: the most rows in a request; servers usually take up to 64.
      in_flight: how many requests run at once.
      progress: is called with the number of rows done so far, after each request.

    Raises:
      ServingError: from all methods, whatever goes wrong between client and server.
      ValueError: for arguments that make no sense.
    """

    def __init__(
        self,
        server: str,
        model: str,
        version: int | None = None,
        label: str | None = None,
        *,
        timeout: float = 60.0,
        total_timeout: float = 3600.0,
        batch_rows: int = 32,
        in_flight: int = 2,
        progress: Callable[[int], object] | None = None,
    ):
        if not server or not model:
            raise ValueError("name a server and a model")
        if version is not None and label is not None:
            raise ValueError(f"version {version} and label {label!r}: give one of them")
        if version is not None and version < 0:
            raise ValueError(f"version {version}: versions are whole numbers from 0")
        if batch_rows < 1 or in_flight < 1:
            raise ValueError(f"batch_rows={batch_rows}, in_flight={in_flight}: must be 1 or more")
        if not (timeout > 0 and total_timeout > 0):
            raise ValueError(f"timeout={timeout}, total_timeout={total_timeout}: must be above 0")
        chosen = f" version {version}" if version is not None else f" label {label!r}" if label is not None else ""
        self._what = f"{server}, model {model!r}{chosen}"
        self._seconds, self._total_seconds = timeout, total_timeout
        self._batch_rows, self._in_flight, self._progress = batch_rows, in_flight, progress
        self._known: ModelMetadata | None = None
        self.transport = (RestTransport if "://" in server else GrpcTransport)(server, model, version, label)

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; requests in flight end with an error."""
        self.transport.close()

    def sample(
        self,
        count: int,
        seed: int = 0,
        temperature: float = 1.0,
        labels: Any = None,
        proposals: Any = None,
        as_pixels: bool = False,
    ) -> np.ndarray:
        """Returns images `[count, H, W, C]` from the prior: float32 in [0, 1], or uint8 with `as_pixels`."""
        if count < 1:
            raise ValueError(f"count={count}: must be above 0")
        inputs = {"seed": row_seeds(seed, count), "temperature": np.full(count, temperature, np.float32)}
        return self._run("sample", inputs, as_pixels, label=labels, proposals=proposals)["image"]

    def compose(
        self,
        latents: np.ndarray,
        keep: Any,
        seed: int = 0,
        temperature: Any = 1.0,
        labels: Any = None,
        guidance: Any = None,
        proposals: Any = None,
        as_pixels: bool = False,
    ) -> Composed:
        """Returns images of latents `[count, total]` whose groups are kept where `keep` is 1, and otherwise drawn.

        `keep` and `temperature` are `[count, groups]`, the top group first, or what broadcasts to it. A group that is
        drawn comes from the prior given the groups above. Old exports lack this signature.
        """
        inputs, specs = {"latent": np.asarray(latents), "seed": row_seeds(seed, len(latents))}, self._inputs("compose")
        for name, value in (("keep", keep), ("temperature", temperature)):
            numbers = _as_numbers(name, value, specs[name])
            inputs[name] = np.broadcast_to(numbers, [len(latents), specs["keep"].shape[1]])
        outputs = self._run("compose", inputs, as_pixels, label=labels, guidance=guidance, proposals=proposals)
        return Composed(outputs["image"], outputs["latent"])

    def encode(self, images: Images, seed: int = 0, labels: Any = None) -> np.ndarray:
        """Returns latents `[count, total]` drawn from the posterior, group after group, the top one first."""
        return self._run("encode", self._pictures("encode", images, seed), label=labels)["latent"]

    def decode(self, latents: np.ndarray, labels: Any = None, as_pixels: bool = False) -> np.ndarray:
        """Returns images `[count, H, W, C]` of latents `[count, total]`."""
        return self._run("decode", {"latent": np.asarray(latents)}, as_pixels, label=labels)["image"]

    def reconstruct(self, images: Images, seed: int = 0, labels: Any = None, as_pixels: bool = False) -> np.ndarray:
        """Returns the model's reconstructions of images, `[count, H, W, C]`."""
        return self._run("reconstruct", self._pictures("reconstruct", images, seed), as_pixels, label=labels)["image"]

    def score(self, images: Images, seed: int = 0, labels: Any = None) -> Scores:
        """Returns the negative evidence lower bound of images: `model.score(images, per_group=True)` in Python."""
        outputs = self._run("score", self._pictures("score", images, seed), label=labels)
        return Scores(*(outputs[name] for name in Scores._fields))

    def predict(self, signature: str, /, **inputs: Any) -> Arrays:
        """Returns all outputs of any signature by name, from one request; strings are object arrays of bytes.

        The inputs have the batch first. What doesn't fit the signature is a BadRequest before anything is sent.
        """
        return self._ask(signature, inputs, time.monotonic() + self._total_seconds)

    def signatures(self) -> dict[str, SignatureSpec]:
        """Returns the signatures by name, asked once; another version may have others, `metadata` asks again."""
        return (self._known or self.metadata()).signatures

    def metadata(self) -> ModelMetadata:
        """Returns the version that answers and its signatures, asked now."""
        with self._errors_named():
            answer = self._call(self.transport.metadata)
            with wrap_read_errors("no metadata of a model (", ")", ServerFailed):
                definitions = answer["metadata"][wire.SIGNATURE_DEF][wire.SIGNATURE_DEF]
                self._known = ModelMetadata(int(answer["model_spec"]["version"]), wire.signature_specs(definitions))
            return self._known

    def model_status(self) -> list[VersionStatus]:
        """Returns all versions that the server knows, newest first."""
        statuses = []
        with self._errors_named():
            answer = self._call(self.transport.status)
            with wrap_read_errors("no status of a model (", ")", ServerFailed):
                for version in answer["model_version_status"]:
                    status = version.get("status", {})
                    code, reason = status.get("error_code", "OK"), status.get("error_message", "")
                    error = "" if code == "OK" else f"{code}: {reason}"
                    statuses.append(VersionStatus(int(version["version"]), version["state"], error))
        return sorted(statuses, reverse=True)

    def image_shape(self, signature: str = "score") -> tuple[int, int, int]:
        """Returns the height, width and channels of the images that a signature takes."""
        return self._inputs(signature)["image"].shape[1:]

    @contextlib.contextmanager
    def _errors_named(self, signature: str = "") -> Iterator[None]:
        """Makes errors begin with the server, the model and the signature."""
        try:
            yield
        except (ServingError, ValueError) as error:
            if str(error).startswith(self._what):
                raise
            kind = type(error) if isinstance(error, ServingError) else BadRequest
            raise kind(f"{self._what}{signature and f', signature {signature!r}'}: {error}") from None

    def _spec(self, signature: str) -> SignatureSpec:
        with self._errors_named(signature):
            known = self.signatures()
            if signature not in known:
                hint = did_you_mean(signature, known) or f"; it has {', '.join(known) or 'none'}"
                raise BadRequest(f"the model has no such signature{hint}")
            return known[signature]

    def _inputs(self, signature: str) -> dict[str, TensorSpec]:
        return self._spec(signature).inputs

    def _pictures(self, signature: str, images: Images, seed: int) -> Arrays:
        arrays = image_arrays(images, self.image_shape(signature))
        return {"image": arrays, "seed": row_seeds(seed, len(arrays))}

    def _ask(self, signature: str, inputs: Mapping[str, Any], end: float, first: int = 0) -> Arrays:
        """Returns the outputs of one request, whose first row is row `first` of the call."""

        def fitting_arrays() -> Arrays:
            specs = self._inputs(signature)
            arrays = {name: as_array(name, value, specs.get(name)) for name, value in inputs.items()}
            wire.check_inputs(arrays, self._spec(signature))
            return arrays

        with self._errors_named(signature):
            try:
                arrays = fitting_arrays()
            except (BadRequest, ValueError):
                # The server may have loaded a version with other signatures since it was asked.
                self._known = None
                arrays = fitting_arrays()
            if time.monotonic() >= end:
                raise DeadlineExceeded(f"the {self._total_seconds:g} s for the whole call are over; allow more")
            outputs = self._call(self.transport.predict, signature, arrays, self._spec(signature), end=end)
            check_rows(outputs, first)
            return outputs

    def _call(self, method: Callable[..., Any], *arguments: Any, end: float = float("inf")) -> Any:
        """Returns what a method of the transport returns; the request is sent again while no server is ready."""
        end = min(end, time.monotonic() + self._seconds)
        for attempt in range(ATTEMPTS):
            # Random, so that many clients don't come back at once.
            wait = random.uniform(0.0, min(FIRST_WAIT * 2**attempt, LONGEST_WAIT))
            try:
                return method(*arguments, max(end - time.monotonic(), 1e-3))
            except ServerNotReady:
                if attempt == ATTEMPTS - 1 or time.monotonic() + wait > end:
                    raise
            time.sleep(wait)

    def _run(self, signature: str, inputs: Arrays, as_pixels: bool = True, **optional: Any) -> Arrays:
        """Returns the outputs of all rows, cut into requests of which several run at once; images as uint8 or float."""
        # PNG files are far fewer bytes than numbers, as JSON above all; and the model quantizes their pixels itself.
        takes_pixels = "image" not in inputs or inputs["image"].dtype == np.uint8
        if as_pixels and takes_pixels and f"{signature}{PNG_SUFFIX}" in self.signatures():
            signature += PNG_SUFFIX
        count, wanted = len(next(iter(inputs.values()))), self._inputs(signature)
        if not count:
            raise ValueError("no rows: give one image or latent at least")
        for name, default in _OPTIONAL.items():
            value = optional.get(name)
            if value is not None or name in wanted:
                numbers = _as_numbers(name, default if value is None else value, wanted.get(name))
                if numbers.shape not in ((), (count,)):
                    raise ValueError(f"{name} of shape {numbers.shape}: give one, or one for each of {count}")
                inputs = inputs | {name: np.broadcast_to(numbers, [count])}
        outputs = self._ask_in_batches(signature, inputs, count)
        if "image_bytes" in outputs:
            outputs["image"] = pixels_of_files(outputs["image_bytes"])
        elif "image" in outputs and as_pixels:
            outputs["image"] = pixels_of(outputs["image"])
        return outputs

    def _ask_in_batches(self, signature: str, inputs: Arrays, count: int) -> Arrays:
        end = time.monotonic() + self._total_seconds

        def ask(first: int) -> Arrays:
            batch = {name: array[first : first + self._batch_rows] for name, array in inputs.items()}
            if "image" in batch and signature.endswith(PNG_SUFFIX):
                batch["image_bytes"] = png_files(batch.pop("image"))
            elif "image" in batch and batch["image"].dtype == np.uint8:
                batch["image"] = batch["image"] / np.float32(255.0)
            return self._ask(signature, batch, end, first)

        pool = ThreadPoolExecutor(self._in_flight, thread_name_prefix="prediction")
        try:
            asked = [pool.submit(ask, first) for first in range(0, count, self._batch_rows)]
            for done, future in enumerate(as_completed(asked), 1):
                future.result()
                if self._progress:
                    self._progress(min(done * self._batch_rows, count))
        finally:
            # After an error no further request is sent.
            pool.shutdown(wait=True, cancel_futures=True)
        results = [future.result() for future in asked]
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def as_array(name: str, value: Any, wanted: TensorSpec | None) -> np.ndarray:
    """Returns an input as an array: lists of numbers get the signature's dtype, strings become objects, bytes.

    NumPy's own strings lose zero bytes at the end.
    """
    with wrap_read_errors(f"input {name!r} is no array (", ")"):
        if wanted and wanted.dtype == wire.STRING:
            array = np.array(value, object)
            for place, text in np.ndenumerate(array):
                array[place] = text.encode() if isinstance(text, str) else memoryview(text).tobytes()
            return array
        array = np.asarray(value)
        if wanted and not isinstance(value, np.ndarray) and np.can_cast(array.dtype, wanted.dtype, "same_kind"):
            array = array.astype(wanted.dtype)
    # TensorFlow wants the machine's own order of bytes; IDX files have the other.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _as_numbers(name: str, value: Any, wanted: TensorSpec | None) -> np.ndarray:
    """Returns numbers of the signature's dtype; ValueError for a value that it can't hold, as 0.7 as a whole number."""
    array = np.asarray(value)
    numbers = array.astype(wanted.dtype if wanted else array.dtype)
    if not np.allclose(numbers, array.astype(float), equal_nan=True):
        raise ValueError(f"{name} = {value}: must be {wanted.dtype}")
    return numbers


def check_rows(outputs: Mapping[str, np.ndarray], first: int = 0) -> None:
    """Raises ValueError for rows that the model has refused: `valid` is false there, or a number is NaN.

    With TensorFlow Serving's batching a graph can't end with an error for one row without failing its neighbors, which
    may be of others.
    """
    for name, array in outputs.items():
        if array.ndim and array.size and (name == "valid" or array.dtype.kind == "f"):
            is_wrong = ~array if name == "valid" else np.isnan(array)
            rows = (first + np.flatnonzero(is_wrong.reshape(len(array), -1).any(axis=1))).tolist()
            if rows:
                raise ValueError(f"the model refuses rows {rows[:5]}: an input is out of range")


def row_seeds(seed: int, count: int) -> np.ndarray:
    """Returns seeds int64 `[count]` of images 0, 1, ...: the low word is the series, the high word the image."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed={seed}: must be from 0 to {LARGEST_SEED}")
    return np.int64(seed) + (np.arange(count, dtype=np.int64) << 32)


def image_arrays(images: Images, shape: tuple[int | None, ...]) -> np.ndarray:
    """Returns images `[count, *shape]`, uint8 or float32 in [0, 1]; Pillow's are converted to the model's channels."""
    if not isinstance(images, np.ndarray):
        pixels = []
        for number, image in enumerate(images):
            if image.mode in ("I", "F"):
                raise ValueError(f"a picture of Pillow's mode {image.mode!r}: save it with 8 or 16 bits a channel")
            # The upper 8 of 16 bits, as a model's graph reads such files; Pillow would clip at 255.
            pixels.append(np.atleast_3d(np.asarray(as_eight_bits(image, shape[-1]))))
            check_size(getattr(image, "filename", "") or f"picture {number}", pixels[-1].shape, shape)
        return np.stack(pixels) if pixels else np.zeros([0, *(size or 0 for size in shape)], np.uint8)
    check_size("an array's image", images.shape[1:], shape)
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(f"images of dtype {images.dtype}: give uint8 in 0 to 255 or float in [0, 1]")
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def check_size(what: str, shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> None:
    """Raises ValueError unless `shape` is the shape `wanted` of the model's images."""
    if not TensorSpec("", tuple(wanted)).takes(shape):
        sizes, model = ("x".join("?" if size is None else str(size) for size in each) for each in (shape, wanted))
        raise ValueError(f"{what} is {sizes}, the model takes {model} (height x width x channels); resize it")
