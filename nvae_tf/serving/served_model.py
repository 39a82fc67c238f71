"""A served NVAE with NumPy arrays and images in and out, whichever client asks the server; and files of these.

    with ServingClient("localhost:8500", "digits") as client:
        model = ServedModel(client)
        images = pil_images(model.sample(64, seed=1, temperature=0.7, as_pixels=True))
        latents = model.encode([Image.open("seven.png")])

Row i of a job with seed s is requested with the seed `s + i * 2**32` (`nvae_tf.serving.signatures`), so it is image i
of the same series as in the library's own `generate`, `encode` and so on, however the job is cut into batches.
"""

import collections
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from nvae_tf.config import LARGEST_SEED, check
from nvae_tf.data.pictures import SUFFIXES, as_eight_bits, read_picture
from nvae_tf.files import atomic_write, check_writable, write_arrays
from nvae_tf.generation.image_grid import image_grid, write_png
from nvae_tf.serving.client import BadRequest, Cancelled, ModelClient, SignatureSpec, fits, nearest

FOLDER = "/"
# The ending of signatures whose images are the bytes of PNG files.
_FILES = "_png"
_LATENT = "latent"
_MOST_CHANNELS = 4

# uint8 in 0 to 255 or float in [0, 1], [count, height, width, channels], or Pillow's.
Images = np.ndarray | Sequence[Image.Image]
# Is called with the number of rows done so far, after each batch.
Progress = Callable[[int], None]


class Scores(NamedTuple):
    """The negative evidence lower bound of each image."""

    nats: np.ndarray  # [count]
    bits_per_dim: np.ndarray  # [count], the same in bits for each value of the image
    kl_per_group: np.ndarray  # [count, groups], in nats, the top group first


class ServedModel:
    """A model on a server. At most `batch_rows` rows are in a request, and `in_flight` requests run at once.

    All methods raise `ServingError`, and ValueError for arguments that make no sense.

    Pillow's images and uint8 arrays are quantized to the bits of the model's data, as in training, where the model has
    signatures for PNG files (except for `reconstruct` without `as_pixels`); float images are used as they are.
    """

    def __init__(self, client: ModelClient, batch_rows: int = 32, in_flight: int = 2, progress: Progress | None = None):
        if batch_rows < 1 or in_flight < 1:
            raise ValueError(f"batch_rows={batch_rows}, in_flight={in_flight}: must be 1 or more")
        self.client, self.batch_rows, self.in_flight, self.progress = client, batch_rows, in_flight, progress

    def sample(self, count: int, seed: int = 0, temperature: float = 1.0, as_pixels: bool = False) -> np.ndarray:
        """Images `[count, H, W, C]` from the prior: float32 in [0, 1], or uint8 with `as_pixels`."""
        if count < 1:
            raise ValueError(f"count={count}: must be above 0")
        inputs = {"seed": row_seeds(seed, count), "temperature": np.full(count, temperature, np.float32)}
        return self._images("sample", inputs, as_pixels)

    def encode(self, images: Images, seed: int = 0) -> np.ndarray:
        """Latents `[count, total]` drawn from the posterior, group after group, the top one first."""
        return self._values("encode", self._images_and_seeds("encode", images, seed), ["latent"])["latent"]

    def decode(self, latents: np.ndarray, as_pixels: bool = False) -> np.ndarray:
        """Images `[count, H, W, C]` of latents `[count, total]`."""
        return self._images("decode", {"latent": np.asarray(latents)}, as_pixels)

    def decode_upper_groups(
        self, latents: np.ndarray, num_groups: int, seed: int = 0, temperature: float = 1.0, as_pixels: bool = False
    ) -> np.ndarray:
        """Images `[count, H, W, C]` that share the latents' upper groups; the others are drawn."""
        count = len(latents)
        inputs = {
            "latent": np.asarray(latents),
            "num_groups": np.full(count, num_groups, np.int32),
            "seed": row_seeds(seed, count),
            "temperature": np.full(count, temperature, np.float32),
        }
        return self._images("decode_upper_groups", inputs, as_pixels)

    def reconstruct(self, images: Images, seed: int = 0, as_pixels: bool = False) -> np.ndarray:
        """The model's reconstructions of images, `[count, H, W, C]`."""
        return self._images("reconstruct", self._images_and_seeds("reconstruct", images, seed), as_pixels)

    def score(self, images: Images, seed: int = 0) -> Scores:
        """The negative evidence lower bound of images."""
        return Scores(**self._values("score", self._images_and_seeds("score", images, seed), Scores._fields))

    def image_shape(self, signature: str = "score") -> tuple[int, int, int]:
        """Height, width and channels of the images that a signature takes."""
        return self._spec(signature).inputs["image"].shape[1:]

    def _spec(self, signature: str) -> SignatureSpec:
        known = self.client.signatures()
        if signature not in known:
            hint = f"did you mean {nearest(signature, known)!r}?" if known else "it has none"
            where = f"{self.client.server}, model {self.client.model!r}"
            raise BadRequest(f"{where}: the model has no signature {signature!r}; {hint}")
        return known[signature]

    def _images_and_seeds(self, signature: str, images: Images, seed: int) -> dict[str, np.ndarray]:
        arrays = image_arrays(images, self.image_shape(signature))
        return {"image": arrays, "seed": row_seeds(seed, len(arrays))}

    def _images(self, signature: str, inputs: dict[str, np.ndarray], as_pixels: bool) -> np.ndarray:
        spec = self._spec(signature)
        if as_pixels and self._by_files(signature, inputs):
            signature, output = f"{signature}{_FILES}", "image_bytes"
        else:
            # Pixels are a quarter of the bytes, where the model has them.
            output = "image_uint8" if as_pixels and "image_uint8" in spec.outputs else "image"
        return self._run(signature, inputs, [output], as_pixels)[output]

    def _values(self, signature: str, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        by_files = self._by_files(signature, inputs)
        return self._run(f"{signature}{_FILES}" if by_files else signature, inputs, outputs)

    def _by_files(self, signature: str, inputs: dict[str, np.ndarray]) -> bool:
        """Whether to send PNG files: the model quantizes their pixels, and as text they are shorter than numbers."""
        if f"{signature}{_FILES}" not in self.client.signatures():
            return False
        return inputs["image"].dtype == np.uint8 if "image" in inputs else self.client.numbers_are_text

    def _run(
        self, signature: str, inputs: dict[str, np.ndarray], outputs: Sequence[str], as_pixels: bool = False
    ) -> dict[str, np.ndarray]:
        """The outputs of all rows; images of PNG files, and all images with `as_pixels`, as 8-bit pixels."""
        if not len(next(iter(inputs.values()))):
            raise ValueError("no rows: give one image or latent at least")
        wanted = self._spec(signature).inputs

        def batches() -> Iterator[dict[str, np.ndarray]]:
            """The rows in batches, images as the signature takes them: PNG files, or floats."""
            for first in range(0, len(next(iter(inputs.values()))), self.batch_rows):
                batch = {name: array[first : first + self.batch_rows] for name, array in inputs.items()}
                if "image" in batch and "image" not in wanted:
                    batch["image_bytes"] = png_files(batch.pop("image"))
                elif "image" in batch and batch["image"].dtype == np.uint8:
                    batch["image"] = batch["image"] / np.float32(255.0)
                yield batch

        def received(array: np.ndarray) -> np.ndarray:
            if array.dtype == object:
                return pixels_of_files(array)
            return pixels_of(array) if as_pixels and array.dtype != np.uint8 else array

        asked = predict_batches(self.client, signature, batches(), outputs, self.in_flight, self.progress)
        results = [{name: received(result[name]) for name in outputs} for result in asked]
        return {name: np.concatenate([result[name] for result in results]) for name in outputs}


def status_text(client: ModelClient) -> str:
    """The versions on the server and the signatures of the model, for people."""
    lines = [f"version {found.version}: {found.state} {found.error}".rstrip() for found in client.model_status()]
    metadata = client.metadata()
    width = max(map(len, metadata.signatures), default=0)
    lines.append(f"signatures of version {metadata.version}:")
    for name, spec in metadata.signatures.items():
        sides = (", ".join(f"{key} {value}" for key, value in side.items()) for side in spec)
        lines.append(f"  {name:{width}}  {' -> '.join(sides)}")
    return "\n".join(lines)


def row_seeds(seed: int, count: int) -> np.ndarray:
    """Seeds int64 `[count]` of images 0, 1, ... of a series: the low word is the series, the high word the image."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed={seed}: must be from 0 to {LARGEST_SEED}")
    return np.int64(seed) + (np.arange(count, dtype=np.int64) << 32)


def predict_batches(
    client: ModelClient,
    signature: str,
    batches: Iterable[Mapping[str, np.ndarray]],
    outputs: Collection[str] = (),
    in_flight: int = 4,
    progress: Progress | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The results of batches, in the order of the batches, while the next ones are on their way.

    At most `in_flight` requests run and as many results wait to be taken, so `batches` may be an endless generator. If
    one fails, or the caller stops, the rest is canceled and the first error raised. The `total` of the client's
    patience is for all batches together; without `outputs` all outputs are given.
    """
    job, failures, done = client.new_job(), [], 0
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="prediction")

    def ask(batch: Mapping[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray]]:
        try:
            return len(next(iter(batch.values()))), client.predict_in(job, signature, batch, outputs)
        except BaseException as error:
            failures.append(error)
            job.cancel()
            raise

    def results() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        waiting = collections.deque()
        for batch in batches:
            waiting.append(pool.submit(ask, batch))
            if len(waiting) >= 2 * in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        for rows, result in results():
            done += rows
            if progress:
                progress(done)
            yield result
    except Cancelled:
        # An earlier batch that was given up because a later one failed.
        raise failures[0] from None
    finally:
        job.cancel()
        pool.shutdown(wait=True, cancel_futures=True)


def _check_channels(channels: int | None) -> None:
    check(channels in range(1, _MOST_CHANNELS + 1), f"pictures for a model of {channels} channels: give arrays")


def image_arrays(images: Images, shape: tuple[int | None, ...]) -> np.ndarray:
    """Images as uint8 in 0 to 255 or float32 in [0, 1], `[count, *shape]`; Pillow's are converted to its channels."""
    if not isinstance(images, np.ndarray):
        _check_channels(shape[-1])
        pixels = []
        for number, image in enumerate(images):
            if image.mode in ("I", "F"):
                raise ValueError(f"a picture of Pillow's mode {image.mode!r}: save it with 8 or 16 bits a channel")
            # Of 16 bits the upper ones, as a model's graph reads such files; Pillow would clip at 255.
            pixels.append(_with_channels(np.asarray(as_eight_bits(image, shape[-1]))))
            _check_size(f"picture {number}", pixels[-1].shape, shape)
        return np.stack(pixels) if pixels else np.zeros([0, *(size or 0 for size in shape)], np.uint8)
    _check_size("an array's image", images.shape[1:], shape)
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(f"images of dtype {images.dtype}: give uint8 in 0 to 255 or float in [0, 1]")
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def _check_size(what: str, found: tuple[int, ...], wanted: tuple[int | None, ...]) -> None:
    if not fits(found, wanted):
        shapes = ["x".join("?" if size is None else str(size) for size in sizes) for sizes in (found, wanted)]
        raise ValueError(f"{what} is {shapes[0]}, the model takes {shapes[1]} (height x width x channels); resize it")


def _with_channels(image: np.ndarray) -> np.ndarray:
    """`[height, width]` as `[height, width, 1]`."""
    return image[..., np.newaxis] if image.ndim == 2 else image


def pixels_of(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8."""
    return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def pil_images(images: np.ndarray) -> list[Image.Image]:
    """Images `[count, height, width, 1 to 4]`, uint8 or float in [0, 1], as Pillow's."""
    pixels = images if images.dtype == np.uint8 else pixels_of(images)
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


def png_files(pixels: np.ndarray) -> np.ndarray:
    """The bytes of a PNG file for each of uint8 images `[count, height, width, 1 to 4]`: an object array `[count]`."""
    files = np.empty(len(pixels), object)
    for number, image in enumerate(pil_images(pixels)):
        written = io.BytesIO()
        image.save(written, format="PNG")
        files[number] = written.getvalue()
    return files


def pixels_of_files(files: np.ndarray) -> np.ndarray:
    """The inverse of `png_files`."""
    return np.stack([_with_channels(np.asarray(Image.open(io.BytesIO(file)))) for file in files])


def check_output(output: str, endings: Sequence[str]) -> None:
    """Raises ValueError, before any work, for another ending, or an output that can't be written or is not empty."""
    if not output.endswith(tuple(endings)):
        wanted = " or ".join("DIR/" if ending == FOLDER else f"a name in {ending}" for ending in endings)
        raise ValueError(f"--output={output}: give {wanted}")
    path = pathlib.Path(output)
    if output.endswith(FOLDER):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"--output={output}: exists and is not empty; name a new folder")
    elif path.is_dir():
        raise ValueError(f"--output={output}: is a folder; name a file")
    check_writable(path.parent, f"--output={output}")


def picture_files(places: Sequence[str]) -> list[pathlib.Path]:
    """All picture files of the files and folders given, those of a folder in the order of their names."""
    files = []
    for place in map(pathlib.Path, places):
        if not place.exists():
            raise FileNotFoundError(f"--images={place}: no such file or folder")
        found = [place]
        if place.is_dir():
            found = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(f"--images={place}: no pictures in it ({', '.join(SUFFIXES)})")
        files += found
    return files


def read_pictures(files: Sequence[pathlib.Path], height: int, width: int, channels: int) -> list[Image.Image]:
    """The images of picture files; raises ValueError for a file that can't be used, or of another size."""
    _check_channels(channels)
    images = []
    for file in files:
        image = read_picture(file, channels)
        if (image.height, image.width) != (height, width):
            size = f"{image.height}x{image.width} (height x width)"
            raise ValueError(f"--images={file}: is {size}, the model takes {height}x{width}; resize it")
        images.append(image)
    return images


def write_images(output: str, images: np.ndarray, names: Sequence[str]) -> None:
    """Writes uint8 images `[count, height, width, channels]` as one grid, or into a new folder, each by its name."""
    path = pathlib.Path(output)
    if not output.endswith(FOLDER):
        write_png(path, image_grid(images / np.float32(255.0), enlarge=None))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The folder appears with all of its files or not at all.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        for name, image in zip(names, pil_images(images), strict=True):
            image.save(partial / f"{name}.png")
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def numbered_names(files: Sequence[pathlib.Path]) -> list[str]:
    """A name for the result of each file: its own, with its number where two have the same."""
    stems = [file.stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{number:05d}_{stem}" for number, stem in enumerate(stems)]


def write_latents(output: str, latents: np.ndarray) -> None:
    """Writes latents `[count, total]` as the array `latent` of an .npz file."""
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_arrays(pathlib.Path(output), {_LATENT: latents})


def read_latents(path: str) -> np.ndarray:
    """The latents `[count, total]` of a file that `write_latents` or `nvae-generate encode` wrote."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"--latents={path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            if _LATENT in file:
                return file[_LATENT]
            # A file of `nvae-generate encode` has an array for each group, the top group first.
            groups = [file[name] for name in sorted(file.files) if name.startswith("group_")]
            return np.concatenate([group.reshape(len(group), -1) for group in groups], axis=1)
    # For damaged files zipfile, zlib and NumPy raise errors of many kinds.
    except Exception as error:
        raise ValueError(f"--latents={path}: no file of latents as `encode` writes it ({error})") from None


def write_scores(output: str, scores: Scores, files: Sequence[pathlib.Path]) -> None:
    """Writes the score of each file as JSON."""
    rows = [
        {"file": str(file), "nats": float(nats), "bits_per_dim": float(bits), "kl_per_group": kl.tolist()}
        for file, nats, bits, kl in zip(files, *scores, strict=True)
    ]
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(pathlib.Path(output), json.dumps(rows, indent=2) + "\n")


def scores_table(scores: Scores, files: Sequence[pathlib.Path]) -> str:
    """The scores for people, a line each, and their mean."""
    rows = [(str(file), *pair) for file, *pair in zip(files, scores.nats, scores.bits_per_dim, strict=True)]
    rows.append(("mean", scores.nats.mean(), scores.bits_per_dim.mean()))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'':{width}}  {'nats':>12}  {'bits per dim':>12}"]
    return "\n".join(lines + [f"{name:{width}}  {nats:12.3f}  {bits:12.4f}" for name, nats, bits in rows])
