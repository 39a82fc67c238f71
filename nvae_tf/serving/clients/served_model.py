"""What a served NVAE can do, with NumPy arrays and pictures in and out, whichever client asks the server.

    with ServingClient("localhost:8500", "digits") as client:
        model = ServedModel(client)
        pictures = pil_images(model.sample(64, seed=1, temperature=0.7, as_pixels=True))
        latents = model.encode([Image.open("seven.png")])

Row i of a job with seed s is asked for with the seed `s + i * 2**32` (`nvae_tf.serving.signatures`), so it is image i
of the same series as in the library's own `generate`, `encode` and so on, however the job is cut into batches.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from nvae_tf.serving.clients.batched_requests import Progress, batches_of, predict_batches
from nvae_tf.serving.clients.model_client import ModelClient
from nvae_tf.serving.clients.served_pictures import Images, image_arrays, pixels_of, pixels_of_files, png_files
from nvae_tf.serving.clients.serving_errors import BadRequest
from nvae_tf.serving.clients.signature_specs import SignatureSpec, nearest

LARGEST_SEED = 2**31 - 1
# The ending of signatures whose pictures are the bytes of PNG files.
_FILES = "_png"


class Scores(NamedTuple):
    """The negative evidence lower bound of each image.

    Attributes:
      nats: `[count]`.
      bits_per_dim: `[count]`, the same in bits for each value of the image.
      kl_per_group: `[count, groups]`, nats, the top group first.
    """

    nats: np.ndarray
    bits_per_dim: np.ndarray
    kl_per_group: np.ndarray


class ServedModel:
    """A model on a server.

    Args:
      client: whom to ask.
      batch_rows: the most rows of one request.
      in_flight: how many requests run at once.
      progress: is called with the number of rows done after each batch.

    All methods raise `ServingError`, and ValueError for arguments that make no sense.

    Pictures and uint8 arrays are brought to the bits of the model's data, as training does it, where the model has
    signatures for files (but for `reconstruct` without `as_pixels`, whose floats files don't hold); float images are
    taken as they are.
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
        """What the model keeps of images, `[count, H, W, C]`."""
        return self._images("reconstruct", self._images_and_seeds("reconstruct", images, seed), as_pixels)

    def score(self, images: Images, seed: int = 0) -> Scores:
        """How well the model explains images."""
        return Scores(**self._values("score", self._images_and_seeds("score", images, seed), Scores._fields))

    def image_shape(self, signature: str = "score") -> tuple[int, int, int]:
        """Height, width and channels of the images that a signature takes."""
        shape = self._spec(signature).inputs["image"].shape
        return shape[1:]

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
        if self._by_files(signature, inputs) and as_pixels:
            return self._run(f"{signature}{_FILES}", inputs, ["image_bytes"])["image_bytes"]
        # Pixels are a quarter of the bytes, where the model has them.
        output = "image_uint8" if as_pixels and "image_uint8" in spec.outputs else "image"
        return self._run(signature, inputs, [output], as_pixels)[output]

    def _values(self, signature: str, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        by_files = self._by_files(signature, inputs)
        return self._run(f"{signature}{_FILES}" if by_files else signature, inputs, outputs)

    def _by_files(self, signature: str, inputs: dict[str, np.ndarray]) -> bool:
        """Whether to ask with the bytes of PNG files.

        The model brings the pixels of files to its own bits; and where numbers are sent as text, files are shorter.
        """
        if f"{signature}{_FILES}" not in self.client.signatures():
            return False
        return inputs["image"].dtype == np.uint8 if "image" in inputs else self.client.numbers_are_text

    def _run(
        self, signature: str, inputs: dict[str, np.ndarray], outputs: Sequence[str], as_pixels: bool = False
    ) -> dict[str, np.ndarray]:
        """The outputs of all rows, those in files or with `as_pixels` as 8-bit pixels."""
        if not len(next(iter(inputs.values()))):
            raise ValueError("no rows: give one image or latent at least")
        wanted = self._spec(signature).inputs
        batches = (_sent(batch, wanted) for batch in batches_of(inputs, self.batch_rows))
        parts = [
            {name: _received(part[name], as_pixels) for name in outputs}
            for part in predict_batches(self.client, signature, batches, outputs, self.in_flight, self.progress)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def _sent(batch: dict[str, np.ndarray], wanted: Collection[str]) -> dict[str, np.ndarray]:
    """A batch whose images are as the signature takes them: bytes of files, or floats."""
    batch = dict(batch)
    if "image" in batch:
        images = batch.pop("image")
        if "image" in wanted:
            batch["image"] = images / np.float32(255.0) if images.dtype == np.uint8 else images
        else:
            batch["image_bytes"] = png_files(images)
    return batch


def _received(array: np.ndarray, as_pixels: bool) -> np.ndarray:
    if array.dtype == object:
        return pixels_of_files(array)
    return pixels_of(array) if as_pixels and array.dtype != np.uint8 else array


def row_seeds(seed: int, count: int) -> np.ndarray:
    """Seeds int64 `[count]` of images 0, 1, ... of a series: the low word is the series, the high word the image.

    Raises:
      ValueError: the seed is outside 0 to 2**31 - 1.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed={seed}: must be from 0 to {LARGEST_SEED}")
    return np.int64(seed) + (np.arange(count, dtype=np.int64) << 32)
