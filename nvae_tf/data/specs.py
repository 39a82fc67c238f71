"""What each known data set is, in one place: nothing else in the code compares a data set's name.

Configs copy a spec into their group `data`, from where the run takes it. docs/data.md says where the images come from.
"""

import dataclasses

from nvae_tf.data_spec import DataSpec
from nvae_tf.setting_checks import did_you_mean

# scikit-learn's handwritten digits as bitmaps: 1,437 for training and 360 for testing.
DIGITS = DataSpec(
    name="digits",
    source="bundled",
    source_name="digits",
    height=16,
    width=16,
    channels=1,
    num_bits=1,
    horizontal_flip=False,
    likelihood="bernoulli",
)

# Patches of the two photographs that come with scikit-learn; any size up to 96x96.
PHOTOS = DataSpec(name="photos", source="bundled", source_name="photos")

# 60,000 / 10,000. Padded to 32x32 and binarized afresh at every access (Vahdat & Kautz 2020).
MNIST = DataSpec(
    name="mnist",
    source="tfds",
    source_name="mnist",
    height=28,
    width=28,
    channels=1,
    num_bits=1,
    binarise=True,
    horizontal_flip=False,
    likelihood="bernoulli",
    padded_height=32,
    padded_width=32,
)

# The same digits, three at random as the channels of one image. The published code never ran it.
STACKED_MNIST = dataclasses.replace(
    MNIST,
    name="stacked_mnist",
    channels=3,
    stacked_images=3,
    num_bits=8,
    binarise=False,
    likelihood="logistic_mixture",
)

# 24,345 / 8,070: the 28x28 set of Burda et al. 2016, chardata.mat.
OMNIGLOT = dataclasses.replace(MNIST, name="omniglot", source="mat", source_name=None)

# 60,000 / 10,000 gray pictures of 28x28 in MNIST's format, not binarized.
FASHION_MNIST = dataclasses.replace(
    MNIST,
    name="fashion_mnist",
    source="idx",
    source_name=None,
    num_bits=8,
    binarise=False,
    likelihood="logistic_mixture",
)

# 50,000 / 10,000.
CIFAR10 = DataSpec(name="cifar10", source="tfds", source_name="cifar10")

# 162,770 / 19,962 aligned faces of 178x218: a square of 148 around the face, scaled to 64.
CELEBA64 = DataSpec(
    name="celeba64",
    source="tfds",
    source_name="celeb_a",
    height=64,
    width=64,
    crop_box=(15, 40, 163, 188),
    resize="stretch",
)

# The downsampled sets of van den Oord et al. 2016: 1,281,149 / 49,999. (TFDS does not know their size beforehand.)
IMAGENET32 = DataSpec(
    name="imagenet32", source="tfds", source_name="downsampled_imagenet/32x32", test_split="validation"
)
IMAGENET64 = dataclasses.replace(
    IMAGENET32, name="imagenet64", source_name="downsampled_imagenet/64x64", height=64, width=64
)

# 27,000 / 3,000: the 256x256 set that was published with Glow (Kingma & Dhariwal 2018).
CELEBA_HQ256 = DataSpec(
    name="celebahq256",
    source="folder",
    source_name=None,
    test_split="validation",
    height=256,
    width=256,
    num_bits=5,
)

# 63,000 / 7,000.
FFHQ256 = DataSpec(
    name="ffhq256", source="folder", source_name=None, height=256, width=256, num_bits=5, resize="stretch"
)

# 3,033,042 / 300 and 126,227 / 300 pictures with a shorter side of 256. From folders: what TFDS needs to prepare them
# is not made for this TensorFlow.
LSUN_BEDROOM64 = DataSpec(
    name="lsun_bedroom64",
    source="folder",
    source_name=None,
    test_split="validation",
    height=64,
    width=64,
    resize="crop",
)
LSUN_CHURCH64 = dataclasses.replace(LSUN_BEDROOM64, name="lsun_church64")

# Whatever lies at data.path; `nvae_tf.data.completion` looks.
OWN_IMAGES = DataSpec(
    name="own_images",
    source="auto",
    source_name=None,
    height=None,
    width=None,
    channels=None,
    file_bits=None,
    horizontal_flip=False,
    likelihood=None,
)

DATA_SPECS = {
    spec.name: spec
    for spec in (
        DIGITS,
        PHOTOS,
        MNIST,
        STACKED_MNIST,
        OMNIGLOT,
        FASHION_MNIST,
        CIFAR10,
        CELEBA64,
        IMAGENET32,
        IMAGENET64,
        CELEBA_HQ256,
        FFHQ256,
        LSUN_BEDROOM64,
        LSUN_CHURCH64,
        OWN_IMAGES,
    )
}


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
