"""What the settings of a run leave to the data: kind of source, size, channels, bits, likelihood, padding."""

import dataclasses
import gzip
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import own_images as preset
from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split
from nvae_tf.data.spec import complete_config, complete_spec
from nvae_tf.latent_plan import latent_plan
from tests.data.picture_factory import encoded, idx, png, random_pixels, write_files

ROOT = pathlib.Path(__file__).resolve().parents[2]
OWN = data_spec("own_images")
IMAGES = random_pixels(12, 20, 14, 3)


def completed(path, **settings):
    """The whole settings of a run of `configs/own_images.py`."""
    config = preset.get_config()
    for name, value in (settings | {"path": str(path)}).items():
        config.data[name] = value
    return complete_config(config)


def pictures(folder, images=IMAGES):
    return write_files(folder, {f"{number:02d}.png": png(image) for number, image in enumerate(images)})


def as_folder(place, images):
    return pictures(place, images)


def as_nested_folder(place, images):
    return pictures(place / "a" / "b", images).parents[1]


def as_npy(place, images):
    np.save(place / "images.npy", images)
    return place / "images.npy"


def as_npz(place, images):
    np.savez(place / "images.npz", images=images)
    return place / "images.npz"


def as_folder_of_npy(place, images):
    np.save(place / "train.npy", images[:6])
    np.save(place / "test.npy", images[6:])
    return place


def as_idx(place, images):
    content = gzip.compress(idx(images[..., 0]))
    return write_files(place, {name: content for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")})


@pytest.mark.parametrize(
    ("make", "source", "channels", "dtype"),
    [
        (as_folder, "folder", 3, np.uint8),
        (as_folder, "folder", 2, np.uint16),
        (as_nested_folder, "folder", 1, np.uint8),
        (as_npy, "arrays", 4, np.uint8),
        (as_npz, "arrays", 3, np.uint16),
        (as_folder_of_npy, "arrays", 3, np.uint8),
        (as_idx, "idx", 1, np.uint8),
    ],
)
def test_the_settings_follow_from_what_lies_at_the_path(make, source, channels, dtype, tmp_path):
    path = make(tmp_path, random_pixels(12, 20, 14, channels, dtype=dtype))
    config = completed(path)
    expected = dict(source=source, height=20, width=14, channels=channels, file_bits=dtype().itemsize * 8)
    expected |= dict(num_bits=8, likelihood="logistic_mixture", path=str(path))
    assert {name: getattr(config.data, name) for name in expected} == expected
    model = config.model
    assert (model.image_height, model.image_width, model.image_channels) == (20, 14, channels)
    assert (model.num_bits, model.likelihood) == (8, "logistic_mixture")
    assert load_split(config.data, "train").image_shape == (20, 14, channels)
    # Settings that are complete stay as they are.
    assert complete_spec(config.data) == config.data
    assert completed(path, source=source) == config


def test_sizes_that_the_hierarchy_cannot_halve_are_padded(tmp_path):
    model = completed(pictures(tmp_path)).model
    # A block before the three scales: 2 ** 3.
    assert model.size_divisor == 8 and (model.network_height, model.network_width) == (24, 16)
    scales = latent_plan(model).scales
    assert [(scale.height, scale.width) for scale in scales] == [(3, 2), (6, 4), (12, 8)]
    model = completed(tmp_path, padded_width=32).model
    assert (model.image_width, model.network_height, model.network_width) == (14, 24, 32)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"resize": "crop", "height": 8}, (8, 8)),
        ({"resize": "stretch", "width": 9}, (9, 9)),
        ({"resize": "crop", "height": 8, "width": 10}, (8, 10)),
        ({"crop_box": (1, 2, 9, 14)}, (12, 8)),
        ({"crop_box": (1, 2, 9, 14), "resize": "stretch", "height": 5}, (5, 5)),
        ({"height": 20, "width": 14}, (20, 14)),
    ],
)
def test_the_size_is_what_was_asked_for(settings, size, tmp_path):
    spec = completed(pictures(tmp_path), **settings).data
    assert (spec.height, spec.width) == size and (spec.channels, spec.file_bits) == (3, 8)
    assert load_split(spec, "train").image_shape == (*size, 3)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    pictures(tmp_path / "album")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completed("~/album").data.image_shape == (20, 14, 3)
    assert load_split(completed("~/album").data, "test").count == 1


def test_arrays_beside_pictures_do_not_hide_them(tmp_path):
    np.save(pictures(tmp_path) / "labels.npy", np.arange(12))
    assert completed(tmp_path).data.source == "folder"


def test_a_file_where_a_folder_must_be_is_told(tmp_path):
    (tmp_path / "cat.png").write_bytes(png(IMAGES[0]))
    for source in ("folder", "idx"):
        with pytest.raises(ValueError, match=f"cat.png: a file; for data.source = {source} it names a folder of"):
            completed(tmp_path / "cat.png", source=source)


def test_a_rule_without_a_size_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="data.resize = 'crop', but to which size.* Set --config.data.height=64"):
        completed(pictures(tmp_path), resize="crop")


@pytest.mark.parametrize(
    "settings", [{"height": 16}, {"height": 14, "width": 20}, {"crop_box": (0, 0, 9, 9), "height": 8}]
)
def test_a_size_that_the_pictures_do_not_have_is_an_error_that_names_the_fix(settings, tmp_path):
    spec = completed(pictures(tmp_path), **settings).data
    with pytest.raises(
        ValueError, match=rf"not {spec.height}x{spec.width}: .*set --config.data.resize=crop \(or stretch"
    ):
        load_split(spec, "train")


@pytest.mark.parametrize(
    ("num_bits", "given", "likelihood"),
    [
        (1, None, "bernoulli"),
        (2, None, "logistic_mixture"),
        (8, None, "logistic_mixture"),
        (8, "normal", "normal"),
    ],
)
def test_the_likelihood_follows_from_the_bits(num_bits, given, likelihood, tmp_path):
    changes = {} if given is None else {"likelihood": given}
    config = completed(pictures(tmp_path), num_bits=num_bits, **changes)
    assert config.data.likelihood == config.model.likelihood == likelihood
    assert config.data.num_bits == config.model.num_bits == num_bits


def test_given_channels_and_bits_are_kept(tmp_path):
    spec = completed(pictures(tmp_path), channels=1, file_bits=16, convert=True).data
    assert (spec.channels, spec.file_bits) == (1, 16)
    np.testing.assert_array_equal(load_split(spec, "test").image_shape, (20, 14, 1))


def test_most_pictures_decide_and_not_the_first(tmp_path):
    alpha = np.concatenate([IMAGES[0], IMAGES[0][..., :1]], axis=-1)
    pictures(tmp_path / "train")
    write_files(
        tmp_path, {"train/0.png": b"text", "train/00.png": png(alpha[:9]), "test/0.png": encoded(IMAGES[0], "PNG")}
    )
    spec = completed(tmp_path).data
    assert (spec.image_shape, spec.file_bits) == ((20, 14, 3), 8)
    with pytest.raises(ValueError, match="0.png: not a picture"):
        load_split(spec, "train")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, "data.path is not set: --config.data.path=... names a folder of pictures, a .npy"),
        ({"path": "gone"}, FileNotFoundError, "data.path = gone: there is nothing; it names a folder of pictures"),
        (
            {"path": __file__},
            ValueError,
            "data.path = .*: a file that is neither .npy nor .npz; name a folder of pictures",
        ),
        ({"source": "tfds"}, ValueError, "data.source_name is not set: .* for example --config.data.source_name="),
        ({"source": "bundled"}, ValueError, "data.source_name is not set"),
        ({"source": "folder"}, ValueError, "data.path is not set: --config.data.path=... names a folder of pictures"),
        ({"source": "arrays", "path": "gone"}, FileNotFoundError, "data.path = gone: .* it names a .npy or .npz file"),
        ({"source": "fodler"}, ValueError, "data.source = 'fodler': .*did you mean 'folder'"),
    ],
)
def test_what_leads_to_no_images_is_told(settings, error, message):
    with pytest.raises(error, match=message) as caught:
        complete_spec(dataclasses.replace(OWN, **settings))
    assert "\n" not in str(caught.value)


def test_bundled_photos_need_no_path():
    spec = complete_spec(dataclasses.replace(OWN, source="bundled", source_name="photos", height=24))
    assert spec.image_shape == (24, 24, 3) and spec.file_bits == 8


def test_a_folder_is_looked_at_before_tensorflow_is_loaded(tmp_path):
    program = """
import sys
from configs import own_images
from nvae_tf.data.spec import complete_config
config = own_images.get_config()
config.data.path = sys.argv[1]
print(complete_config(config).data.image_shape, "tensorflow" in sys.modules)
"""
    command = [sys.executable, "-c", program, pictures(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "(20, 14, 3) False\n"
