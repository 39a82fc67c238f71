"""What each data set is, in one place: nothing else in the code compares a data set's name.

Configs read this before TensorFlow is touched, so it is not imported here.
"""

import dataclasses

from nvae_tf.config import LIKELIHOODS, did_you_mean


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """One data set as the model sees it.

    Attributes:
        name: the name that configs use.
        source: the kind of source that loads it, a key of `nvae_tf.data.sources.LOADERS`.
        source_name: the set's name within its source, for example a TFDS name.
        height: real height of the images in pixels; the likelihood counts only real pixels.
        width: real width of the images in pixels.
        channels: channels per pixel.
        num_bits: bits per channel that the likelihood resolves, 1 to 8. Below 8 the images are quantised.
        padded_height: height to which the model zero-pads the images, at least `height`.
        padded_width: width to which the model zero-pads the images, at least `width`.
        binarise: whether each pixel is drawn afresh from Bernoulli(intensity) at every access.
        horizontal_flip: whether training images are mirrored at random.
        likelihood: the likelihood that suits the set: "bernoulli", "logistic_mixture" or "normal".
        train_split: the source's own name of the training part.
        test_split: the source's own name of the test part.

    Raises:
        ValueError: a value is impossible; the message says which and what is allowed.
    """

    name: str
    source: str
    source_name: str
    height: int
    width: int
    channels: int
    num_bits: int
    padded_height: int
    padded_width: int
    binarise: bool
    horizontal_flip: bool
    likelihood: str
    train_split: str = "train"
    test_split: str = "test"

    def __post_init__(self):
        if min(self.image_shape) < 1:
            raise ValueError(
                f"Data spec '{self.name}': height, width and channels {self.image_shape} must be positive."
            )
        if not 1 <= self.num_bits <= 8:
            raise ValueError(f"Data spec '{self.name}': num_bits is {self.num_bits}, it must be from 1 to 8.")
        if self.padded_height < self.height or self.padded_width < self.width:
            raise ValueError(
                f"Data spec '{self.name}': the padded size {self.padded_height}x{self.padded_width} is "
                f"smaller than the image, {self.height}x{self.width}."
            )
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(
                f"Data spec '{self.name}': there is no likelihood '{self.likelihood}' "
                f"({', '.join(LIKELIHOODS)}){did_you_mean(self.likelihood, LIKELIHOODS)}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Real size of one image, `(height, width, channels)`."""
        return (self.height, self.width, self.channels)


# scikit-learn's bundled handwritten digits as bitmaps: 1,437 for training and 360 for testing, by `bundled.load`.
DIGITS = DataSpec(
    name="digits",
    source="bundled",
    source_name="digits",
    height=16,
    width=16,
    channels=1,
    num_bits=1,
    padded_height=16,
    padded_width=16,
    binarise=False,
    horizontal_flip=False,
    likelihood="bernoulli",
)

# 60,000 / 10,000. Padded because the hierarchy halves the size three times (Vahdat & Kautz 2020).
MNIST = DataSpec(
    name="mnist",
    source="tfds",
    source_name="mnist",
    height=28,
    width=28,
    channels=1,
    num_bits=8,
    padded_height=32,
    padded_width=32,
    binarise=True,
    horizontal_flip=False,
    likelihood="bernoulli",
)

# 50,000 / 10,000.
CIFAR10 = DataSpec(
    name="cifar10",
    source="tfds",
    source_name="cifar10",
    height=32,
    width=32,
    channels=3,
    num_bits=8,
    padded_height=32,
    padded_width=32,
    binarise=False,
    horizontal_flip=True,
    likelihood="logistic_mixture",
)

DATA_SPECS = {spec.name: spec for spec in (DIGITS, MNIST, CIFAR10)}


def data_spec(name: str) -> DataSpec:
    """Returns the spec of the data set called `name`.

    Raises:
        ValueError: there is no such data set; the message names the nearest one and all valid ones.
    """
    if name not in DATA_SPECS:
        raise ValueError(
            f"there is no data set '{name}' ({', '.join(sorted(DATA_SPECS))}){did_you_mean(name, DATA_SPECS)}"
        )
    return DATA_SPECS[name]
