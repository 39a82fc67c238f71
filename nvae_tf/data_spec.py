"""What a data set is: where its images lie, what is made of them, and which likelihood suits them (no TensorFlow)."""

import dataclasses

from nvae_tf.setting_checks import check, check_choice

LIKELIHOODS = ("bernoulli", "logistic_mixture", "normal")
RESIZE_RULES = ("none", "crop", "stretch")
BAD_FILE_RULES = ("stop", "skip")
MAX_PIXELS = 64_000_000
# Pillow opens no larger picture.
_LARGEST_MAX_PIXELS = 178_956_970


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """One data set: the group `data` of a run's settings.

    What is None is looked up in the data, by `nvae_tf.data.spec`, before a run starts.

    Attributes:
      name: the name by which reports call the set. Nothing else depends on it.
      source: the kind of source, a key of `nvae_tf.data.sources.SOURCES`, or "auto": what lies at `path`.
      source_name: the set's name within its source, for a source that has several (a TFDS name: `name/config`).
      path: the file or folder with the images; for TFDS its data folder, None for TFDS' default.
      train_split: the source's own name of the training part: a TFDS split such as `train[:90%]`, a sub-folder.
      test_split: the source's own name of the test part.
      test_fraction: the part of the images that is held out for testing where the source has no test part.
      split_seed: decides which images these are.
      height: height of the images that the model gets, in pixels.
      width: their width in pixels.
      channels: their channels, 1 to 4.
      file_bits: bits per channel of the stored images, 8 or 16.
      convert: whether pictures that have other channels or bits than these are converted, rather than refused.
      crop_box: `(left, top, right, bottom)` in pixels, cut out of every image first; None cuts nothing.
      resize: how images come to `height` and `width`: "none" (they have this size), "crop" (the shorter side is
        scaled to fit and the longer one cut evenly at both ends), "stretch". Bilinear, antialiased.
      stacked_images: how many images of one channel, drawn at random, make one image, as its channels.
      num_bits: bits per channel that the model sees and the likelihood resolves, 1 to 8.
      binarise: whether each pixel is drawn afresh from Bernoulli(intensity) at every access, to 1 bit.
      horizontal_flip: whether training images are mirrored at random.
      likelihood: "bernoulli", "logistic_mixture" or "normal"; None: the first for 1 bit, else the second.
      padded_height: height of the frame of zeros in which the network sees the images; None: the smallest that
        its hierarchy can halve. The likelihood counts the real pixels only.
      padded_width: width of that frame.
      on_bad_file: "stop" at a picture that can't be used, or "skip" it and say so.
      max_pixels: height times width of the largest picture file that is decoded; a larger one, as its header says,
        can't be used. Up to 178,956,970.
      cache: folder for images that are decoded once and then read from there; None decodes at every access.

    Raises:
      ValueError: a value is impossible; the message says which and what is allowed.
    """

    name: str = "cifar10"
    source: str = "tfds"
    source_name: str | None = "cifar10"
    path: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    test_fraction: float = 0.1
    split_seed: int = 0
    height: int | None = 32
    width: int | None = 32
    channels: int | None = 3
    file_bits: int | None = 8
    convert: bool = False
    crop_box: tuple | None = None
    resize: str = "none"
    stacked_images: int = 1
    num_bits: int = 8
    binarise: bool = False
    horizontal_flip: bool = True
    likelihood: str | None = "logistic_mixture"
    padded_height: int | None = None
    padded_width: int | None = None
    on_bad_file: str = "stop"
    cache: str | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        for name in ("height", "width", "padded_height", "padded_width", "stacked_images"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"data.{name} = {value}: must be at least 1")
        check(self.channels in (None, 1, 2, 3, 4), f"data.channels = {self.channels}: must be from 1 to 4")
        check(self.file_bits in (None, 8, 16), f"data.file_bits = {self.file_bits}: must be 8 or 16")
        check(1 <= self.num_bits <= 8, f"data.num_bits = {self.num_bits}: must be from 1 to 8")
        check(0.0 < self.test_fraction < 1.0, f"data.test_fraction = {self.test_fraction}: must lie between 0 and 1")
        check(0 <= self.split_seed < 2**32, f"data.split_seed = {self.split_seed}: must be from 0 to {2**32 - 1}")
        check(
            self.train_split != self.test_split,
            f"data.train_split and data.test_split are both {self.train_split!r}: the parts must differ",
        )
        check(
            1 <= self.max_pixels <= _LARGEST_MAX_PIXELS,
            f"data.max_pixels = {self.max_pixels}: must be from 1 to {_LARGEST_MAX_PIXELS}, Pillow's own limit",
        )
        check_choice("data.resize", self.resize, RESIZE_RULES)
        check_choice("data.on_bad_file", self.on_bad_file, BAD_FILE_RULES)
        if self.likelihood is not None:
            check_choice("data.likelihood", self.likelihood, LIKELIHOODS)
        check(
            not self.binarise or self.num_bits == 1,
            f"data.num_bits = {self.num_bits}: images that are binarized (data.binarise) have 1 bit; set it to 1",
        )
        check(
            self.stacked_images in (1, self.channels),
            f"data.stacked_images = {self.stacked_images}: must be 1 or the number of channels; set data.channels to "
            f"{self.stacked_images} too",
        )
        self._check_crop_box()

    def _check_crop_box(self) -> None:
        if self.crop_box is None:
            return
        is_box = len(self.crop_box) == 4 and all(isinstance(side, int) and side >= 0 for side in self.crop_box)
        check(
            is_box and self.crop_box[0] < self.crop_box[2] and self.crop_box[1] < self.crop_box[3],
            f"data.crop_box = {self.crop_box}: must be (left, top, right, bottom) in whole pixels, "
            "with left < right and top < bottom",
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Size of one image, `(height, width, channels)`, once all three are known."""
        return (self.height, self.width, self.channels)
