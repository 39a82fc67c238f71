"""How a picture of any size becomes one of the model's size."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from nvae_tf.data.picture_files import as_eight_bits
from nvae_tf.data_spec import DataSpec


class WrongSize(ValueError):
    """A picture does not have the size that was said, or is too small to be cut."""


class Geometry(NamedTuple):
    """Cut out a box, then resize.

    Attributes:
      height: of the result, in pixels.
      width: of the result.
      crop_box: `(left, top, right, bottom)`, or None.
      resize: "none", "crop" or "stretch", see `DataSpec`.
    """

    height: int
    width: int
    crop_box: tuple[int, int, int, int] | None = None
    resize: str = "none"

    @property
    def changes_nothing(self) -> bool:
        """Whether pictures must come with the right size and leave as they came."""
        return self.crop_box is None and self.resize == "none"

    def apply(self, picture: Image.Image) -> Image.Image:
        """The picture at `height` x `width`. Scaling is bilinear and antialiased.

        Raises:
          WrongSize: the picture has another size, or is smaller than the box that is to be cut out of it.
        """
        self.check_size(picture.height, picture.width)
        if self.crop_box is not None:
            picture = picture.crop(self.crop_box)
        if self.resize == "crop" and min(picture.height / self.height, picture.width / self.width) == 1.0:
            # Nothing to scale: cut whole pixels, where ImageOps.fit would cut halves and blur.
            left, top = (picture.width - self.width) // 2, (picture.height - self.height) // 2
            return picture.crop((left, top, left + self.width, top + self.height))
        if self.resize == "crop":
            return ImageOps.fit(picture, (self.width, self.height), Image.Resampling.BILINEAR)
        if self.resize == "stretch":
            return picture.resize((self.width, self.height), Image.Resampling.BILINEAR)
        return picture

    def check_size(self, height: int, width: int) -> None:
        """Whether a picture of this size can be taken.

        Raises:
          WrongSize: it can't.
        """
        if self.crop_box is not None:
            left, top, right, bottom = self.crop_box
            if right > width or bottom > height:
                raise WrongSize(
                    f"is {height}x{width} (height x width), too small for data.crop_box {self.crop_box} "
                    "(left, top, right, bottom): make the box smaller"
                )
            height, width = bottom - top, right - left
        if self.resize == "none" and (height, width) != (self.height, self.width):
            raise WrongSize(
                f"is {height}x{width} (height x width), not {self.height}x{self.width}: to bring all to one size set "
                f"--config.data.resize=crop (or stretch) --config.data.height={self.height} "
                f"--config.data.width={self.width}"
            )


def geometry(spec: DataSpec) -> Geometry:
    """The geometry that a data set asks for."""
    return Geometry(spec.height, spec.width, spec.crop_box, spec.resize)


def check_array(images: np.ndarray, spec: DataSpec, where: object) -> None:
    """Whether an array of images can be taken as the spec says; `where` names it in messages.

    Args:
      images: uint8, uint16 or bool `[count, height, width, channels]`.
      spec: the data set, complete.
      where: the file.

    Raises:
      ValueError: the images have another size, other channels or other bits.
    """
    height, width, channels = images.shape[1:]
    bits = 16 if images.dtype.itemsize == 2 else 8
    try:
        geometry(spec).check_size(height, width)
    except WrongSize as error:
        raise ValueError(f"{where}: each image {error}") from None
    if bits != spec.file_bits and not spec.convert:
        raise ValueError(
            f"{where}: the images have {bits} bits a channel, but data.file_bits is {spec.file_bits}: set it to "
            f"{bits}, they are brought to data.num_bits = {spec.num_bits} bits"
        )
    if channels != spec.channels and not spec.convert:
        raise ValueError(
            f"{where}: the images have {channels} channels, but data.channels is {spec.channels}; "
            "--config.data.convert=True converts them when they are read"
        )


def fit_array(images: np.ndarray, spec: DataSpec) -> np.ndarray:
    """What `fit_pixels` does, for an array uint8 `[count, height, width, channels]`."""
    if geometry(spec).changes_nothing and images.shape[1:] == spec.image_shape:
        return images
    return np.stack([fit_pixels(image, spec) for image in images])


def fit_pixels(pixels: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Does to an image of an array what is done to pictures: `[height, width, channels]` -> the spec's image shape.

    But each channel is scaled by itself, while pictures with alpha are scaled as they look.

    Args:
      pixels: uint8, 1 to 4 channels.
      spec: the data set.

    Raises:
      WrongSize: see `Geometry.apply`.
    """
    if pixels.shape[-1] != spec.channels:
        picture = as_eight_bits(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), spec.channels)
        pixels = np.asarray(picture).reshape(*pixels.shape[:2], spec.channels)
    # Each channel by itself: Pillow would take the last of 2 or 4 for an alpha channel and multiply the others by it.
    channels = [geometry(spec).apply(Image.fromarray(channel)) for channel in np.moveaxis(pixels, -1, 0)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)
