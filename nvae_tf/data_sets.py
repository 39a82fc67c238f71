"""The known data sets by name, and the settings of the model that follow from the data.

The heads of the files in configs/ say where the images come from, docs/data.md how many they are.
"""

from nvae_tf.config import DataSpec, ModelConfig, check, check_choice

_BITMAPS = {"channels": 1, "num_bits": 1, "horizontal_flip": False, "likelihood": "bernoulli"}
_EIGHT_BITS = {"num_bits": 8, "binarize": False, "likelihood": "logistic_mixture"}
_FOLDER = {"source": "folder", "source_name": None}
# Padded to 32x32 and binarized afresh at every access (Vahdat & Kautz 2020).
_MNIST = {"height": 28, "width": 28, "padded_height": 32, "padded_width": 32, "binarize": True} | _BITMAPS
_IN_256 = {"height": 256, "width": 256, "num_bits": 5} | _FOLDER
# From folders: what TFDS needs to prepare LSUN is not made for this TensorFlow.
_LSUN = {"height": 64, "width": 64, "test_split": "validation", "resize": "crop"} | _FOLDER
# The downsampled sets of van den Oord et al. 2016. (TFDS does not know their size beforehand.)
_IMAGENET = "downsampled_imagenet/{0}x{0}"

DATA_SPECS = {
    name: DataSpec(name=name, **settings)
    for name, settings in {
        # scikit-learn's handwritten digits as bitmaps.
        "digits": {"source": "bundled", "source_name": "digits", "height": 16, "width": 16} | _BITMAPS,
        # Patches of the two photographs that come with scikit-learn; any size up to 96x96.
        "photos": {"source": "bundled", "source_name": "photos"},
        "mnist": {"source_name": "mnist"} | _MNIST,
        # The same digits, three at random as the channels of one image. The published code never ran it.
        "stacked_mnist": {"source_name": "mnist"} | _MNIST | _EIGHT_BITS | {"channels": 3, "stacked_images": 3},
        # The 28x28 set of Burda et al. 2016, chardata.mat.
        "omniglot": {"source": "mat", "source_name": None} | _MNIST,
        # Gray pictures of 28x28 in MNIST's format, not binarized.
        "fashion_mnist": {"source": "idx", "source_name": None} | _MNIST | _EIGHT_BITS,
        "cifar10": {},
        # Aligned faces of 178x218: a square of 148 around the face, scaled to 64.
        "celeba64": {"source_name": "celeb_a", "height": 64, "width": 64}
        | {"crop_box": (15, 40, 163, 188), "resize": "stretch"},
        "imagenet32": {"source_name": _IMAGENET.format(32), "test_split": "validation"},
        "imagenet64": {"source_name": _IMAGENET.format(64), "test_split": "validation", "height": 64, "width": 64},
        # The 256x256 set that was published with Glow (Kingma & Dhariwal 2018).
        "celebahq256": {"test_split": "validation"} | _IN_256,
        "ffhq256": {"resize": "stretch"} | _IN_256,
        "lsun_bedroom64": _LSUN,
        "lsun_church64": _LSUN,
        # Whatever lies at data.path; `complete_spec` looks.
        "own_images": {"source": "auto", "horizontal_flip": False, "convert": True}
        | dict.fromkeys(("source_name", "height", "width", "channels", "file_bits", "likelihood")),
    }.items()
}

# Settings of `ModelConfig` and the settings of `DataSpec` that they follow.
MODEL_SETTINGS = {"image_height": "height", "image_width": "width", "image_channels": "channels"}
MODEL_SETTINGS |= {name: name for name in ("num_bits", "likelihood", "padded_height", "padded_width")}


def data_spec(name: str) -> DataSpec:
    """The spec of the data set called `name`."""
    check_choice("the data set", name, DATA_SPECS)
    return DATA_SPECS[name]


def check_model_fits(config: ModelConfig, spec: DataSpec) -> None:
    """Raises ValueError unless a model takes the images of a data set; padding and a continuous likelihood are free."""
    names = ["image_height", "image_width", "image_channels", "num_bits"]
    if "bernoulli" in (config.likelihood, spec.likelihood):
        names.append("likelihood")
    both = {name: (getattr(config, name), getattr(spec, MODEL_SETTINGS[name])) for name in names}
    both["noise_variance"] = config.noise_variance, spec.unit_noise
    both["num_classes"] = config.num_classes, (spec.num_classes or 0) if spec.labels else 0
    wrong = [f"model.{name} is {one!r}, the data have {other!r}" for name, (one, other) in both.items() if one != other]
    check(not wrong, f"the model does not fit data set {spec.name!r}: {'; '.join(wrong)}. Set them alike")
