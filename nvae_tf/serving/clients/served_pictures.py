"""Images between NumPy, Pillow and PNG, for the clients of model servers."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Images as uint8 in 0 to 255 or float in [0, 1], [count, height, width, channels], or pictures of Pillow.
Images = np.ndarray | Sequence[Image.Image]

# Pillow's name for pictures of so many channels.
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def image_arrays(images: Images, shape: tuple[int | None, ...]) -> np.ndarray:
    """Images as uint8 in 0 to 255 or float32 in [0, 1], `[count, *shape]`; pictures get as many channels.

    Raises:
      ValueError: another size, or arrays that are neither uint8 nor float.
    """
    if not isinstance(images, np.ndarray):
        mode = _MODES.get(shape[-1])
        if mode is None:
            raise ValueError(f"pictures for a model of {shape[-1]} channels: give arrays")
        images = [_with_channels(np.asarray(_eight_bits(image).convert(mode))) for image in images]
        for number, image in enumerate(images):
            _check_size(f"picture {number}", image.shape, shape)
        return np.stack(images) if images else np.zeros([0, *(size or 0 for size in shape)], np.uint8)
    _check_size("an array's image", images.shape[1:], shape)
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(f"images of dtype {images.dtype}: give uint8 in 0 to 255 or float in [0, 1]")
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def png_files(pixels: np.ndarray) -> np.ndarray:
    """The bytes of a PNG file for each of uint8 images `[count, height, width, 1 to 4]`: an object array `[count]`."""
    files = np.empty(len(pixels), object)
    for number, picture in enumerate(pil_images(pixels)):
        written = io.BytesIO()
        picture.save(written, format="PNG")
        files[number] = written.getvalue()
    return files


def pixels_of_files(files: np.ndarray) -> np.ndarray:
    """The inverse of `png_files`."""
    return np.stack([_with_channels(np.asarray(Image.open(io.BytesIO(file)))) for file in files])


def _check_size(what: str, found: tuple[int, ...], wanted: tuple[int | None, ...]) -> None:
    if len(found) != len(wanted) or any(b is not None and a != b for a, b in zip(found, wanted, strict=True)):
        told = ["x".join("?" if size is None else str(size) for size in sizes) for sizes in (found, wanted)]
        raise ValueError(f"{what} is {told[0]}, the model takes {told[1]} (height x width x channels); resize it")


def pixels_of(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8."""
    return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def pil_images(images: np.ndarray) -> list[Image.Image]:
    """Pictures of images `[count, height, width, 1 to 4]`, uint8 or float in [0, 1]."""
    pixels = images if images.dtype == np.uint8 else pixels_of(images)
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 bits with the upper ones, as a model's graph reads such files; Pillow would cut at 255.

    Raises:
      ValueError: a picture of floats, or of 32 bits.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"a picture of Pillow's mode {image.mode!r}: save it with 8 or 16 bits a channel")
    return image


def _with_channels(image: np.ndarray) -> np.ndarray:
    """`[height, width]` as `[height, width, 1]`."""
    return image[..., np.newaxis] if image.ndim == 2 else image
