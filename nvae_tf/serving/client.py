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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nvae_tf.config import LARGEST_SEED, check, did_you_mean
from nvae_tf.data.pictures import as_eight_bits
from nvae_tf.errors import start_tensorflow_quietly, wrap_read_errors
from nvae_tf.generation.image_grid import pixels_of, pixels_of_files, png_files
from nvae_tf.serving.outputs import PNG_SUFFIX

STRING = "string"
# A request that finds no server is sent again after a random part of 0.2 s, 0.4 s, and so on; gRPC's own policy allows
# no more attempts.
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 5, 0.2, 5.0
# What is sent for inputs of some models alone where a call names none: no class, no guidance, the model's own prior.
_OPTIONAL = {"label": -1, "guidance": 1.0, "proposals": 1}
_DTYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_STRING": STRING, "DT_BOOL": "bool"} | {
    f"DT_{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)
}

Arrays = dict[str, np.ndarray]
# uint8 in 0 to 255 or float in [0, 1], [count, height, width, channels], or Pillow's.
Images = np.ndarray | Sequence[Image.Image]


class ServingError(OSError):
    """Base of the errors between a client and a server; one line: the server, model, signature, reason and fix."""


class ModelNotFound(ServingError):
    """The server has no such model, version or label."""


class ServerNotReady(ServingError):
    """Nothing answers. The only error after which a request is sent again."""


class BadRequest(ServingError):
    """The inputs don't fit the signature, or the model refuses their values."""


class TooLarge(ServingError):
    """A message or a number of rows over a limit of the server or of the client."""


class DeadlineExceeded(ServingError):
    """The answer did not come in time."""


class ServerFailed(ServingError):
    """Everything else: an error inside the server, a broken connection, an invalid answer."""


# The kind of error and the fix for each of gRPC's codes with a meaning of its own.
_ERRORS = {
    "NOT_FOUND": (ModelNotFound, "look at the server's models and versions"),
    "UNAVAILABLE": (ServerNotReady, "is it running, is this the protocol's port, and has it loaded the model?"),
    "INVALID_ARGUMENT": (BadRequest, "correct the inputs"),
    "FAILED_PRECONDITION": (BadRequest, "look at the model's signatures"),
    "OUT_OF_RANGE": (BadRequest, "correct the inputs"),
    "RESOURCE_EXHAUSTED": (TooLarge, "send fewer rows at once"),
    "DEADLINE_EXCEEDED": (DeadlineExceeded, "send fewer rows at once or allow more time"),
    "UNIMPLEMENTED": (ServerFailed, "is it a TensorFlow Serving of this model?"),
}


def error_of(code: str, reason: str, advice: str = "") -> ServingError:
    """The error for one of gRPC's codes, with the first line of the server's reason, shortened if it is long."""
    kind, usual_advice = _ERRORS.get(code, (ServerFailed, "look at the server's log"))
    first = (reason.strip().splitlines() or ["no reason given"])[0].strip()
    first = first if len(first) <= 400 else first[:400] + " ..."
    return kind(f"{first} [{code}]; {advice or usual_advice}")


class TensorSpec(NamedTuple):
    """One input or output: a NumPy dtype or `string`, and a shape whose unknown sizes are None (None: any shape)."""

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = "..." if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype}[{sizes}]"

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an array may have this shape."""
        pairs = zip(shape, self.shape or (), strict=False)
        return self.shape is None or len(shape) == len(self.shape) and all(size in (None, own) for own, size in pairs)


class SignatureSpec(NamedTuple):
    """The inputs and outputs of one signature, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


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


def signature_specs(definitions: Mapping[str, Any]) -> dict[str, SignatureSpec]:
    """The signatures of a server's metadata, SignatureDefs as JSON, without `__saved_model_init_op` and the like."""

    def tensor_spec(info: Mapping[str, Any]) -> TensorSpec:
        shape = info.get("tensor_shape", {})
        sizes = [int(dimension.get("size", 0)) for dimension in shape.get("dim", ())]
        sizes = None if shape.get("unknown_rank") else tuple(None if size < 0 else size for size in sizes)
        # Types that models here don't use keep TensorFlow's name.
        return TensorSpec(_DTYPES.get(info.get("dtype"), info.get("dtype", "DT_INVALID")), sizes)

    specs = {}
    for name, definition in sorted(definitions.items()):
        if not name.startswith("__"):
            sides = (sorted(definition.get(side, {}).items()) for side in ("inputs", "outputs"))
            specs[name] = SignatureSpec(*({key: tensor_spec(info) for key, info in side} for side in sides))
    return specs


def version_statuses(answer: Mapping[str, Any]) -> list[VersionStatus]:
    """The versions of a GetModelStatusResponse as JSON, newest first."""
    statuses = []
    for found in answer["model_version_status"]:
        status = found.get("status", {})
        code, reason = status.get("error_code", "OK"), status.get("error_message", "")
        error = "" if code == "OK" else f"{code}: {reason}"
        statuses.append(VersionStatus(int(found["version"]), found["state"], error))
    return sorted(statuses, reverse=True)


def check_inputs(arrays: Mapping[str, np.ndarray], spec: SignatureSpec) -> None:
    """Raises ValueError for wrong names, dtypes or shapes, and for inputs of different numbers of rows."""
    for name in arrays:
        check(name in spec.inputs, f"no input {name!r}{did_you_mean(name, spec.inputs)}")
    for name, wanted in spec.inputs.items():
        check(name in arrays, f"input {name!r} is missing; give {wanted}")
        dtype = STRING if arrays[name].dtype == object else arrays[name].dtype.name
        given = TensorSpec(dtype, arrays[name].shape)
        check(dtype == wanted.dtype, f"input {name!r} is {given}; give {wanted}, e.g. array.astype({wanted.dtype!r})")
        check(wanted.takes(given.shape), f"input {name!r} is {given}; give {wanted}")
    if all(wanted.shape and wanted.shape[0] is None for wanted in spec.inputs.values()):
        rows = {name: len(array) for name, array in arrays.items()}
        counts = ", ".join(f"{name} {count}" for name, count in rows.items())
        check(len(set(rows.values())) <= 1, f"inputs of different numbers of rows: {counts}")


def as_array(name: str, value: Any, wanted: TensorSpec | None) -> np.ndarray:
    """An input as an array: lists of numbers get the signature's dtype, strings become object arrays of bytes.

    NumPy's own strings lose zero bytes at the end.
    """
    with wrap_read_errors(f"input {name!r} is no array (", ")"):
        if wanted and wanted.dtype == STRING:
            array = np.array(value, object)
            for place, text in np.ndenumerate(array):
                array[place] = text.encode() if isinstance(text, str) else memoryview(text).tobytes()
            return array
        array = np.asarray(value)
        if wanted and not isinstance(value, np.ndarray) and np.can_cast(array.dtype, wanted.dtype, "same_kind"):
            array = array.astype(wanted.dtype)
    # TensorFlow wants the machine's own order of bytes; IDX files have the other.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


class ServedModel(contextlib.AbstractContextManager):
    """A model on a server; a context manager, and may be used from many threads.

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
        check(bool(server and model), "name a server and a model")
        check(version is None or label is None, f"version {version} and label {label!r}: give one of them")
        check(version is None or version >= 0, f"version {version}: versions are whole numbers from 0")
        check(batch_rows >= 1 and in_flight >= 1, f"batch_rows={batch_rows}, in_flight={in_flight}: must be 1 or more")
        check(timeout > 0 and total_timeout > 0, f"timeout={timeout}, total_timeout={total_timeout}: must be above 0")
        chosen = f" version {version}" if version is not None else f" label {label!r}" if label is not None else ""
        self._what = f"{server}, model {model!r}{chosen}"
        self._seconds, self._total_seconds = timeout, total_timeout
        self._batch_rows, self._in_flight, self._progress = batch_rows, in_flight, progress
        self._known: ModelMetadata | None = None
        if "://" in server:
            from nvae_tf.serving.rest import RestTransport as Transport
        else:
            start_tensorflow_quietly()
            from nvae_tf.serving.grpc_client import GrpcTransport as Transport
        self._transport = Transport(server, model, version, label)

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; requests in flight end with an error."""
        self._transport.close()

    def sample(
        self,
        count: int,
        seed: int = 0,
        temperature: float = 1.0,
        labels: Any = None,
        proposals: Any = None,
        as_pixels: bool = False,
    ) -> np.ndarray:
        """Images `[count, H, W, C]` from the prior: float32 in [0, 1], or uint8 with `as_pixels`."""
        check(count >= 1, f"count={count}: must be above 0")
        inputs = {"seed": row_seeds(seed, count), "temperature": np.full(count, temperature, np.float32)}
        return self._images("sample", inputs, {"label": labels, "proposals": proposals}, as_pixels)

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
        """Images of latents `[count, total]` whose groups are kept where `keep` is 1, and otherwise drawn.

        `keep` and `temperature` are `[count, groups]`, the top group first, or what broadcasts to it. A group that is
        drawn comes from the prior given the groups above. Exports of before this signature don't have it.
        """
        inputs = {"latent": np.asarray(latents), "seed": row_seeds(seed, len(latents))}
        specs, shape = self._spec("compose").inputs, [len(latents), self._spec("compose").inputs["keep"].shape[1]]
        for name, value in (("keep", keep), ("temperature", temperature)):
            inputs[name] = np.broadcast_to(_as_numbers(name, value, specs[name]), shape)
        output = "image_uint8" if as_pixels else "image"
        found = self._run("compose", inputs, {"label": labels, "guidance": guidance, "proposals": proposals})
        return Composed(found[output], found["latent"])

    def encode(self, images: Images, seed: int = 0, labels: Any = None) -> np.ndarray:
        """Latents `[count, total]` drawn from the posterior, group after group, the top one first."""
        return self._values("encode", images, seed, labels)["latent"]

    def decode(self, latents: np.ndarray, labels: Any = None, as_pixels: bool = False) -> np.ndarray:
        """Images `[count, H, W, C]` of latents `[count, total]`."""
        return self._images("decode", {"latent": np.asarray(latents)}, {"label": labels}, as_pixels)

    def reconstruct(self, images: Images, seed: int = 0, labels: Any = None, as_pixels: bool = False) -> np.ndarray:
        """The model's reconstructions of images, `[count, H, W, C]`."""
        arrays = image_arrays(images, self.image_shape("reconstruct"))
        inputs = {"image": arrays, "seed": row_seeds(seed, len(arrays))}
        return self._images("reconstruct", inputs, {"label": labels}, as_pixels)

    def score(self, images: Images, seed: int = 0, labels: Any = None) -> Scores:
        """The negative evidence lower bound of images: in Python `model.score(images, per_group=True)`."""
        found = self._values("score", images, seed, labels)
        return Scores(*(found[name] for name in Scores._fields))

    def predict(self, signature: str, /, **inputs: Any) -> Arrays:
        """All outputs of any signature by name, of one request; strings are object arrays of bytes.

        The inputs have the batch first. What doesn't fit the signature is a BadRequest, found before it is sent.
        """
        return self._ask(signature, inputs, time.monotonic() + self._total_seconds)

    def signatures(self) -> dict[str, SignatureSpec]:
        """The signatures by name, asked once; another version may have others, `metadata` asks again."""
        return (self._known or self.metadata()).signatures

    def metadata(self) -> ModelMetadata:
        """The version that answers and its signatures, asked now."""
        with self._errors_named():
            self._known = found = self._transport.metadata(self._seconds)
            return found

    def model_status(self) -> list[VersionStatus]:
        """All versions that the server knows, newest first."""
        with self._errors_named():
            return self._transport.status(self._seconds)

    def image_shape(self, signature: str = "score") -> tuple[int, int, int]:
        """Height, width and channels of the images that a signature takes."""
        return self._spec(signature).inputs["image"].shape[1:]

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
            hint = did_you_mean(signature, known) or f"; it has {', '.join(known) or 'none'}"
            check(signature in known, f"the model has no such signature{hint}")
            return known[signature]

    def _ask(self, signature: str, inputs: Mapping[str, Any], end: float, first: int = 0) -> Arrays:
        """The outputs of one request, whose rows are those of the call from `first`."""

        def fitted() -> Arrays:
            spec = self._spec(signature)
            arrays = {name: as_array(name, value, spec.inputs.get(name)) for name, value in inputs.items()}
            check_inputs(arrays, spec)
            return arrays

        with self._errors_named(signature):
            try:
                arrays = fitted()
            except (BadRequest, ValueError):
                # Since it was asked the server may have loaded a version with other signatures.
                self._known = None
                arrays = fitted()
            left = end - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"the {self._total_seconds:g} s for the whole call are over; allow more")
            spec = self._spec(signature)
            found = self._transport.predict(signature, arrays, spec, min(left, self._seconds))
            check_rows(found, first)
            return found

    def _values(self, signature: str, images: Images, seed: int, labels: Any) -> Arrays:
        arrays = image_arrays(images, self.image_shape(signature))
        inputs = {"image": arrays, "seed": row_seeds(seed, len(arrays))}
        # The model quantizes the pixels of files.
        by_files = arrays.dtype == np.uint8 and f"{signature}{PNG_SUFFIX}" in self.signatures()
        return self._run(signature + (PNG_SUFFIX if by_files else ""), inputs, {"label": labels})

    def _images(
        self, signature: str, inputs: dict[str, np.ndarray], optional: Mapping[str, Any], as_pixels: bool
    ) -> np.ndarray:
        # The pixels of files are far fewer bytes than numbers, as JSON above all.
        takes_pixels = "image" not in inputs or inputs["image"].dtype == np.uint8
        if as_pixels and takes_pixels and f"{signature}{PNG_SUFFIX}" in self.signatures():
            return pixels_of_files(self._run(f"{signature}{PNG_SUFFIX}", inputs, optional)["image_bytes"])
        images = self._run(signature, inputs, optional)["image"]
        return pixels_of(images) if as_pixels else images

    def _run(self, signature: str, inputs: dict[str, np.ndarray], optional: Mapping[str, Any]) -> Arrays:
        """The outputs of all rows, cut into requests of which several run at once."""
        count, wanted = len(next(iter(inputs.values()))), self._spec(signature).inputs
        check(count > 0, "no rows: give one image or latent at least")
        for name, otherwise in _OPTIONAL.items():
            value = optional.get(name)
            if value is not None or name in wanted:
                of_rows = _as_numbers(name, otherwise if value is None else value, wanted.get(name))
                fits = of_rows.shape in ((), (count,))
                check(fits, f"{name} of shape {of_rows.shape}: give one, or one for each of {count}")
                inputs = inputs | {name: np.broadcast_to(of_rows, [count])}
        end = time.monotonic() + self._total_seconds

        def ask(first: int) -> Arrays:
            batch = {name: array[first : first + self._batch_rows] for name, array in inputs.items()}
            if "image" in batch and "image" not in wanted:
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


def _as_numbers(name: str, value: Any, wanted: TensorSpec | None) -> np.ndarray:
    """Numbers of the signature's dtype; ValueError where they are others, as 0.7 of a whole one."""
    array = np.asarray(value)
    if wanted is None:
        return array
    found = array.astype(wanted.dtype)
    check(np.allclose(found, array.astype(float), equal_nan=True), f"{name} = {value}: must be {wanted.dtype}")
    return found


def check_rows(outputs: Mapping[str, np.ndarray], first: int = 0) -> None:
    """Raises BadRequest for rows that the model has refused: `valid` is false there, or a number is NaN.

    With TensorFlow Serving's batching a graph can't end with an error for one row without failing its neighbors, which
    may be of others.
    """
    for name, array in outputs.items():
        if array.ndim and array.size and (name == "valid" or array.dtype.kind == "f"):
            wrong = ~array if name == "valid" else np.isnan(array)
            rows = (first + np.flatnonzero(wrong.reshape(len(array), -1).any(axis=1))).tolist()
            check(not rows, f"the model refuses rows {rows[:5]}: an input is out of range")


def status_text(model: ServedModel) -> str:
    """The versions on the server and the signatures of the model, for people."""
    lines = [f"version {found.version}: {found.state} {found.error}".rstrip() for found in model.model_status()]
    metadata = model.metadata()
    width = max(map(len, metadata.signatures), default=0)
    lines.append(f"signatures of version {metadata.version}:")
    for name, spec in metadata.signatures.items():
        sides = (", ".join(f"{key} {value}" for key, value in side.items()) for side in spec)
        lines.append(f"  {name:{width}}  {' -> '.join(sides)}")
    return "\n".join(lines)


def row_seeds(seed: int, count: int) -> np.ndarray:
    """Seeds int64 `[count]` of images 0, 1, ... of a series: the low word is the series, the high word the image."""
    check(0 <= seed <= LARGEST_SEED, f"seed={seed}: must be from 0 to {LARGEST_SEED}")
    return np.int64(seed) + (np.arange(count, dtype=np.int64) << 32)


def image_arrays(images: Images, shape: tuple[int | None, ...]) -> np.ndarray:
    """Images as uint8 in 0 to 255 or float32 in [0, 1], `[count, *shape]`; Pillow's are converted to its channels."""
    if not isinstance(images, np.ndarray):
        pixels = []
        for number, image in enumerate(images):
            odd = f"a picture of Pillow's mode {image.mode!r}: save it with 8 or 16 bits a channel"
            check(image.mode not in ("I", "F"), odd)
            # Of 16 bits the upper ones, as a model's graph reads such files; Pillow would clip at 255.
            pixels.append(np.atleast_3d(np.asarray(as_eight_bits(image, shape[-1]))))
            check_size(getattr(image, "filename", "") or f"picture {number}", pixels[-1].shape, shape)
        return np.stack(pixels) if pixels else np.zeros([0, *(size or 0 for size in shape)], np.uint8)
    check_size("an array's image", images.shape[1:], shape)
    known = images.dtype == np.uint8 or images.dtype.kind == "f"
    check(known, f"images of dtype {images.dtype}: give uint8 in 0 to 255 or float in [0, 1]")
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def check_size(what: str, found: tuple[int, ...], wanted: tuple[int | None, ...]) -> None:
    """Raises ValueError unless `found` is the shape `wanted` of images."""
    sizes, model = ("x".join("?" if size is None else str(size) for size in shape) for shape in (found, wanted))
    fits = TensorSpec("", tuple(wanted)).takes(found)
    check(fits, f"{what} is {sizes}, the model takes {model} (height x width x channels); resize it")
