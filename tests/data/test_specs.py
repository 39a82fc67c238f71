"""The specs of the data sets, and what happens with wrong ones."""

import dataclasses
import math
import pathlib
import subprocess
import sys

import pytest

from nvae_tf.config import ModelConfig, config_from_dict, config_to_dict
from nvae_tf.data import DATA_SPECS, DataSpec, data_spec
from nvae_tf.data import spec as spec_module
from nvae_tf.data.sources import SOURCES
from nvae_tf.data.spec import MODEL_SETTINGS
from nvae_tf.latent_plan import latent_plan

KNOWN = [spec for spec in DATA_SPECS.values() if spec.name != "own_images"]
each_known_set = pytest.mark.parametrize("spec", KNOWN, ids=lambda spec: spec.name)

# Image shape, bits, binarized, mirrored, likelihood, padded size, crop box, resize.
GREY = ((28, 28, 1), 8, False, False, "logistic_mixture", (32, 32), None, "none")
BINARY = ((28, 28, 1), 1, True, False, "bernoulli", (32, 32), None, "none")


def natural(size, bits=8, crop_box=None, resize="none"):
    return ((size, size, 3), bits, False, True, "logistic_mixture", (None, None), crop_box, resize)


# As the paper and the published checkpoints have them.
IMAGES = {
    "digits": ((16, 16, 1), 1, False, False, "bernoulli", (None, None), None, "none"),
    "photos": natural(32),
    "mnist": BINARY,
    "stacked_mnist": ((28, 28, 3), *GREY[1:]),
    "omniglot": BINARY,
    "fashion_mnist": GREY,
    "cifar10": natural(32),
    "celeba64": natural(64, crop_box=(15, 40, 163, 188), resize="stretch"),
    "imagenet32": natural(32),
    "imagenet64": natural(64),
    "celebahq256": natural(256, bits=5),
    "ffhq256": natural(256, bits=5, resize="stretch"),
    "lsun_bedroom64": natural(64, resize="crop"),
    "lsun_church64": natural(64, resize="crop"),
}


@each_known_set
def test_the_images_are_as_the_paper_has_them(spec):
    found = (
        spec.image_shape,
        spec.num_bits,
        spec.binarise,
        spec.horizontal_flip,
        spec.likelihood,
        (spec.padded_height, spec.padded_width),
        spec.crop_box,
        spec.resize,
    )
    assert found == IMAGES[spec.name]
    assert spec.stacked_images == (3 if spec.name == "stacked_mnist" else 1)


@pytest.mark.parametrize(
    ("name", "source", "source_name", "test_split"),
    [
        ("digits", "bundled", "digits", "test"),
        ("photos", "bundled", "photos", "test"),
        ("mnist", "tfds", "mnist", "test"),
        ("stacked_mnist", "tfds", "mnist", "test"),
        ("omniglot", "mat", None, "test"),
        ("fashion_mnist", "idx", None, "test"),
        ("cifar10", "tfds", "cifar10", "test"),
        ("celeba64", "tfds", "celeb_a", "test"),
        ("imagenet32", "tfds", "downsampled_imagenet/32x32", "validation"),
        ("imagenet64", "tfds", "downsampled_imagenet/64x64", "validation"),
        ("celebahq256", "folder", None, "validation"),
        ("ffhq256", "folder", None, "test"),
        ("lsun_bedroom64", "folder", None, "validation"),
        ("lsun_church64", "folder", None, "validation"),
        ("own_images", "auto", None, "test"),
    ],
)
def test_where_the_images_come_from(name, source, source_name, test_split):
    spec = data_spec(name)
    assert (spec.source, spec.source_name, spec.test_split) == (source, source_name, test_split)
    assert spec.train_split == "train" and spec.path is None and spec.cache is None


@each_known_set
def test_the_spec_is_complete(spec):
    assert spec.source in SOURCES
    assert None not in (*spec.image_shape, spec.file_bits, spec.likelihood)
    assert bool(spec.source_name) == SOURCES[spec.source].needs_name
    # Nothing is guessed, converted or left out unless a user says so.
    assert (spec.file_bits, spec.convert, spec.on_bad_file) == (8, False, "stop")


@each_known_set
def test_a_model_for_the_images_is_possible(spec):
    model = ModelConfig(**{name: getattr(spec, data_name) for name, data_name in MODEL_SETTINGS.items()})
    scale = latent_plan(model).scales[-1]
    assert scale.height == math.ceil((spec.padded_height or spec.height) / 2)


def test_own_images_are_looked_at():
    spec = data_spec("own_images")
    assert {spec.height, spec.width, spec.channels, spec.file_bits, spec.likelihood} == {None}
    assert not spec.horizontal_flip and spec.resize == "none"


@pytest.mark.parametrize("spec", DATA_SPECS.values(), ids=lambda spec: spec.name)
def test_each_spec_is_found_under_its_own_name_and_can_be_written_down(spec):
    assert data_spec(spec.name) is spec and DATA_SPECS[spec.name] is spec
    assert config_from_dict(DataSpec, config_to_dict(spec)) == spec


def test_no_spec_is_left_out_above():
    assert set(IMAGES) | {"own_images"} == set(DATA_SPECS)


@pytest.mark.parametrize(("name", "nearest"), [("cifar", "cifar10"), ("stacked-mnist", "stacked_mnist")])
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"no data set '{name}' \(.*\); did you mean '{nearest}'") as caught:
        data_spec(name)
    assert all(known in str(caught.value) for known in DATA_SPECS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_bits": 9, "binarise": False}, "data.num_bits = 9: must be from 1 to 8"),
        ({"num_bits": 0, "binarise": False}, "data.num_bits = 0: must be from 1 to 8"),
        ({"num_bits": 2}, r"data.num_bits = 2: images that are binarized \(data.binarise\) have 1 bit; set it to 1"),
        ({"height": 0}, "data.height = 0: must be at least 1"),
        ({"padded_width": -1}, "data.padded_width = -1: must be at least 1"),
        ({"channels": 0}, "data.channels = 0: must be from 1 to 4"),
        ({"channels": 5}, "data.channels = 5: must be from 1 to 4"),
        ({"file_bits": 12}, "data.file_bits = 12: must be 8 or 16"),
        ({"stacked_images": 3}, "data.stacked_images = 3: must be 1 or the number of channels; set data.channels to 3"),
        ({"stacked_images": 0}, "data.stacked_images = 0: must be at least 1"),
        ({"test_fraction": 0.0}, "data.test_fraction = 0.0: must lie between 0 and 1"),
        ({"test_fraction": 1.0}, "data.test_fraction = 1.0: must lie between 0 and 1"),
        ({"split_seed": -1}, "data.split_seed = -1: must be from 0 to"),
        ({"max_pixels": 0}, "data.max_pixels = 0: must be from 1 to 178956970"),
        ({"max_pixels": 10**9}, "data.max_pixels = 1000000000: must be from 1 to 178956970, Pillow's own limit"),
        ({"split_seed": 2**32}, "data.split_seed = 4294967296: must be from 0 to"),
        ({"test_split": "train"}, "data.train_split and data.test_split are both 'train'"),
        ({"likelihood": "bernouli"}, "data.likelihood = 'bernouli': .*; did you mean 'bernoulli'"),
        ({"resize": "croped"}, "data.resize = 'croped': .*none, crop, stretch.*; did you mean 'crop'"),
        ({"on_bad_file": "ignore"}, "data.on_bad_file = 'ignore': .*stop, skip"),
        ({"crop_box": (15, 40, 163)}, r"data.crop_box = \(15, 40, 163\): must be \(left, top, right, bottom\)"),
        ({"crop_box": (163, 40, 15, 188)}, "left < right"),
        ({"crop_box": (15, 188, 163, 188)}, "top < bottom"),
        ({"crop_box": (-1, 40, 163, 188)}, "in whole pixels"),
        ({"crop_box": (15, 40.5, 163, 188)}, "in whole pixels"),
    ],
)
def test_impossible_specs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(data_spec("mnist"), **change)


def test_specs_do_not_import_tensorflow():
    # Under an empty package in the place of `nvae_tf`, so that only what lies in `nvae_tf.data` is tested.
    code = """
import sys, types
package = types.ModuleType("nvae_tf")
package.__path__ = [sys.argv[1]]
sys.modules["nvae_tf"] = package
import nvae_tf.data.spec
sys.exit("tensorflow" in sys.modules)
"""
    package_folder = pathlib.Path(spec_module.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code, package_folder], check=False).returncode == 0
