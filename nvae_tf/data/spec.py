"""The known data sets, and what a data set decides: its own open settings, and those of the model that follow.

Nothing else in the code compares a data set's name. Configs copy a spec into their group `data`, from where the run
takes it. docs/data.md says where the images come from. Nothing here needs TensorFlow, unless the images do.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nvae_tf.config import (
    DataSpec,
    ExperimentConfig,
    ModelConfig,
    check,
    config_from_dict,
    did_you_mean,
    experiment_config,
)

if TYPE_CHECKING:
    from nvae_tf.data.pictures import PictureHeader

_BINARY = {"channels": 1, "num_bits": 1, "horizontal_flip": False, "likelihood": "bernoulli"}
_EIGHT_BITS = {"num_bits": 8, "binarise": False, "likelihood": "logistic_mixture"}
_FOLDER = {"source": "folder", "source_name": None}

# scikit-learn's handwritten digits as bitmaps: 1,437 for training and 360 for testing.
DIGITS = DataSpec(name="digits", source="bundled", source_name="digits", height=16, width=16, **_BINARY)

# Patches of the two photographs that come with scikit-learn; any size up to 96x96.
PHOTOS = DataSpec(name="photos", source="bundled", source_name="photos")

# 60,000 / 10,000. Padded to 32x32 and binarized afresh at every access (Vahdat & Kautz 2020).
_IN_32 = {"height": 28, "width": 28, "padded_height": 32, "padded_width": 32}
MNIST = DataSpec(name="mnist", source_name="mnist", binarise=True, **_IN_32, **_BINARY)

# The same digits, three at random as the channels of one image. The published code never ran it.
STACKED_MNIST = dataclasses.replace(MNIST, name="stacked_mnist", **_EIGHT_BITS, channels=3, stacked_images=3)

# 24,345 / 8,070: the 28x28 set of Burda et al. 2016, chardata.mat.
OMNIGLOT = dataclasses.replace(MNIST, name="omniglot", source="mat", source_name=None)

# 60,000 / 10,000 gray pictures of 28x28 in MNIST's format, not binarized.
FASHION_MNIST = dataclasses.replace(MNIST, name="fashion_mnist", source="idx", source_name=None, **_EIGHT_BITS)

# 50,000 / 10,000.
CIFAR10 = DataSpec(name="cifar10", source_name="cifar10")

# 162,770 / 19,962 aligned faces of 178x218: a square of 148 around the face, scaled to 64.
_SQUARE = {"crop_box": (15, 40, 163, 188), "resize": "stretch"}
CELEBA64 = DataSpec(name="celeba64", source_name="celeb_a", height=64, width=64, **_SQUARE)

# The downsampled sets of van den Oord et al. 2016: 1,281,149 / 49,999. (TFDS does not know their size beforehand.)
IMAGENET32 = DataSpec(name="imagenet32", source_name="downsampled_imagenet/32x32", test_split="validation")
IMAGENET64 = dataclasses.replace(
    IMAGENET32, name="imagenet64", source_name="downsampled_imagenet/64x64", height=64, width=64
)

# 27,000 / 3,000: the 256x256 set that was published with Glow (Kingma & Dhariwal 2018).
_LARGE = {"height": 256, "width": 256, "num_bits": 5}
CELEBA_HQ256 = DataSpec(name="celebahq256", test_split="validation", **_FOLDER, **_LARGE)

# 63,000 / 7,000.
FFHQ256 = DataSpec(name="ffhq256", resize="stretch", **_FOLDER, **_LARGE)

# 3,033,042 / 300 and 126,227 / 300 pictures with a shorter side of 256. From folders: what TFDS needs to prepare them
# is not made for this TensorFlow.
_CROPPED = {"test_split": "validation", "height": 64, "width": 64, "resize": "crop"}
LSUN_BEDROOM64 = DataSpec(name="lsun_bedroom64", **_FOLDER, **_CROPPED)
LSUN_CHURCH64 = dataclasses.replace(LSUN_BEDROOM64, name="lsun_church64")

# Whatever lies at data.path; `complete_spec` looks.
_UNKNOWN = dict.fromkeys(("source_name", "height", "width", "channels", "file_bits", "likelihood"))
OWN_IMAGES = DataSpec(name="own_images", source="auto", horizontal_flip=False, **_UNKNOWN)

DATA_SPECS = {
    spec.name: spec
    for spec in (
        *(DIGITS, PHOTOS, MNIST, STACKED_MNIST, OMNIGLOT, FASHION_MNIST, CIFAR10, CELEBA64, IMAGENET32, IMAGENET64),
        *(CELEBA_HQ256, FFHQ256, LSUN_BEDROOM64, LSUN_CHURCH64, OWN_IMAGES),
    )
}

# Settings of `ModelConfig` and the settings of `DataSpec` that they follow.
MODEL_SETTINGS = {"image_height": "height", "image_width": "width", "image_channels": "channels"}
MODEL_SETTINGS |= {name: name for name in ("num_bits", "likelihood", "padded_height", "padded_width")}


def data_spec(name: str) -> DataSpec:
    """Returns the spec of the data set called `name`."""
    known = ", ".join(sorted(DATA_SPECS))
    check(name in DATA_SPECS, f"there is no data set '{name}' ({known}){did_you_mean(name, DATA_SPECS)}")
    return DATA_SPECS[name]


def check_model_fits(config: ModelConfig, spec: DataSpec) -> None:
    """Raises ValueError unless a model takes the images of a data set; padding and a continuous likelihood are free."""
    names = ["image_height", "image_width", "image_channels", "num_bits"]
    if "bernoulli" in (config.likelihood, spec.likelihood):
        names.append("likelihood")
    wrong = [
        f"model.{name} is {getattr(config, name)!r}, but data.{MODEL_SETTINGS[name]} is "
        f"{getattr(spec, MODEL_SETTINGS[name])!r}"
        for name in names
        if getattr(config, name) != getattr(spec, MODEL_SETTINGS[name])
    ]
    if wrong:
        raise ValueError(f"the model does not fit data set {spec.name!r}: {'; '.join(wrong)}. Set them alike")


def complete_config(settings: Mapping[str, Any]) -> ExperimentConfig:
    """The settings of a run from nested ones of a config file, completed by a look at the images."""
    groups = {group: dict(values.items()) for group, values in settings.items()}
    spec = complete_spec(config_from_dict(DataSpec, groups.get("data", {}), "data."))
    model = groups.setdefault("model", {})
    for name, data_name in MODEL_SETTINGS.items():
        if model.get(name) is None:
            model[name] = getattr(spec, data_name)
    return dataclasses.replace(experiment_config(groups), data=spec)


def complete_spec(spec: DataSpec) -> DataSpec:
    """The spec with what is None or "auto" decided: by the first image, and by `num_bits` for the likelihood."""
    # Not at the top: presets and the launcher need no NumPy, and start sooner without.
    from nvae_tf.data.sources import first_image, source_at

    if spec.source == "auto":
        spec = dataclasses.replace(spec, source=source_at(spec.path))
    if spec.likelihood is None:
        spec = dataclasses.replace(spec, likelihood="bernoulli" if spec.num_bits == 1 else "logistic_mixture")
    if None in (*spec.image_shape, spec.file_bits):
        found = first_image(spec)
        height, width = _size(spec, found)
        channels, bits = spec.channels or found.channels, spec.file_bits or found.bits
        spec = dataclasses.replace(spec, height=height, width=width, channels=channels, file_bits=bits)
    return spec


def _size(spec: DataSpec, found: "PictureHeader") -> tuple[int, int]:
    """Height and width for the model; one that is not set follows from the other, or from the first image."""
    if spec.height or spec.width:
        return spec.height or spec.width, spec.width or spec.height
    if spec.resize != "none":
        raise ValueError(
            f"data.resize = {spec.resize!r}, but to which size? Set --config.data.height=64 (in pixels; "
            "--config.data.width too if it is another)"
        )
    if spec.crop_box:
        left, top, right, bottom = spec.crop_box
        return bottom - top, right - left
    if None in (found.height, found.width):
        raise ValueError(
            f"The images of {spec.source_name} have different sizes: set --config.data.resize=crop (or stretch) and "
            "--config.data.height=64 (in pixels; --config.data.width too if it is another)"
        )
    return found.height, found.width
