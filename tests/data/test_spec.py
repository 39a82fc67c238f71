import dataclasses
import math

import numpy as np
import pytest

from configs import digits
from configs import own_images as preset
from nvae_tf.config import ModelConfig, config_from_dict, config_to_dict, config_to_json
from nvae_tf.data import DATA_SPECS, DataSpec, data_spec
from nvae_tf.data.sources import SOURCES, load_split
from nvae_tf.data.spec import complete_config, complete_spec
from nvae_tf.data_sets import MODEL_SETTINGS, check_model_fits
from nvae_tf.latent_plan import latent_plan
from nvae_tf.presets import load_settings
from tests import refuses
from tests.data.picture_factory import png, random_pixels, write_files

KNOWN = [spec for spec in DATA_SPECS.values() if spec.name != "own_images"]
# Image shape, bits, binarized, mirrored, likelihood, padded size, crop box, resize.
GRAY = ((28, 28, 1), 8, False, False, "logistic_mixture", (32, 32), None, "none")
BINARY = ((28, 28, 1), 1, True, False, "bernoulli", (32, 32), None, "none")


def natural(size, bits=8, crop_box=None, resize="none"):
    return ((size, size, 3), bits, False, True, "logistic_mixture", (None, None), crop_box, resize)


# As the paper and the published checkpoints have them.
IMAGES = {
    "digits": ((16, 16, 1), 1, False, False, "bernoulli", (None, None), None, "none"),
    "photos": natural(32),
    "mnist": BINARY,
    "stacked_mnist": ((28, 28, 3), *GRAY[1:]),
    "omniglot": BINARY,
    "fashion_mnist": GRAY,
    "cifar10": natural(32),
    "celeba64": natural(64, crop_box=(15, 40, 163, 188), resize="stretch"),
    "imagenet32": natural(32),
    "imagenet64": natural(64),
    "celebahq256": natural(256, bits=5),
    "ffhq256": natural(256, bits=5, resize="stretch"),
    "lsun_bedroom64": natural(64, resize="crop"),
    "lsun_church64": natural(64, resize="crop"),
}


@pytest.mark.parametrize("spec", KNOWN, ids=lambda spec: spec.name)
def test_the_images_are_as_the_paper_has_them(spec):
    found = (spec.image_shape, spec.num_bits, spec.binarize, spec.horizontal_flip, spec.likelihood)
    found += ((spec.padded_height, spec.padded_width), spec.crop_box, spec.resize)
    assert found == IMAGES[spec.name]
    assert spec.stacked_images == (3 if spec.name == "stacked_mnist" else 1)
    assert bool(spec.source_name) != bool(SOURCES[spec.source][1])
    # Nothing is guessed, converted or left out unless a user says so.
    assert (spec.file_bits, spec.convert, spec.on_bad_file) == (8, False, "stop")
    assert data_spec(spec.name) is spec and config_from_dict(DataSpec, config_to_dict(spec)) == spec
    model = ModelConfig(**{name: getattr(spec, data_name) for name, data_name in MODEL_SETTINGS.items()})
    assert latent_plan(model).scales[-1].height == math.ceil((spec.padded_height or spec.height) / 2)


UNIT = {"noise": "gaussian", "range": (0, 1), "binarize": False}
POISSON = UNIT | {"noise": "poisson_gaussian"}


def test_unknown_names_and_impossible_specs_are_refused():
    refuses(r"'stacked-mnist': not one of .*\); did you mean 'stacked_mnist'", data_spec, "stacked-mnist")
    for change, message in (
        ({"num_bits": 2}, r"data.num_bits = 2: images that are binarized \(data.binarize\) have 1 bit; set it to 1"),
        ({"file_bits": 12}, "data.file_bits = 12: must be 8 or 16"),
        ({"stacked_images": 3}, "data.stacked_images = 3: must be 1 or data.channels = 1"),
        ({"test_fraction": 0.0}, "data.test_fraction = 0.0: must lie between 0 and 1"),
        ({"num_bits": 12}, "data.num_bits = 12: the images are stored with 8 bits; set it to 8 or fewer"),
        ({"range": (5, 5)}, r"data.range = \(5, 5\): must be two numbers, the lower one first"),
        ({"range": (0, 9.5)}, r"bernoulli is of whole numbers; set --config.data.likelihood=normal"),
        ({"noise": "gaussian"}, "data.noise = 'gaussian': says nothing without --config.data.range, the"),
        (UNIT | {"noise_sigma": "-0.2"}, "data.noise_sigma = '-0.2': must be a number above 0, or \"estimate\""),
        (UNIT | {"noise_sigma": 0}, "data.noise_sigma = '0': must be a number above 0"),
        (POISSON | {"noise_variance": (-1, 2)}, r"data.noise_variance = \(-1, 2\): must be a,b with a at least 0 and"),
        (POISSON | {"range": (-9, 5), "noise_variance": (1, 9)}, "and the variance a s \\+ b above 0 from -9 on"),
        ({"likelihood": "noisy_signal"}, "follows from --config.data.noise, which is none"),
        ({"source": "tiff", "crop": "random", "stacked_images": 3, "channels": 3}, "crop = .random.: .*stacked"),
        ({"display_channels": (0, 3, 1)}, r"data.display_channels = \(0, 3, 1\): must be one number or three, from 0"),
        ({"alpha": "#12345"}, "data.alpha = '#12345': must be keep, drop, white, black or a color"),
        ({"alpha": "white", "channels": 4}, "leaves no alpha channel: set --config.data.channels=3"),
        ({"test_split": "train"}, "data.test_split = 'train': must differ from data.train_split"),
        ({"crop_box": (15, 40, 163)}, r"data.crop_box = \(15, 40, 163\): must be \(left, top, right, bottom\)"),
    ):
        refuses(message, dataclasses.replace, data_spec("mnist"), **change)


OWN = data_spec("own_images")
PIXELS = random_pixels(12, 20, 14, 3)


def completed(path, **settings):
    config = preset.get_config()
    for name, value in (settings | {"path": str(path)}).items():
        config.data[name] = value
    return complete_config(config)


def pictures(folder, images=PIXELS):
    return write_files(folder, {f"{number:02d}.png": png(image) for number, image in enumerate(images)})


def test_the_settings_follow_from_what_lies_at_the_path(tmp_path):
    pictures(tmp_path / "a" / "b", random_pixels(12, 20, 14, 2, dtype=np.uint16))
    config = completed(tmp_path)
    expected = dict(source="folder", height=20, width=14, channels=2, file_bits=16, num_bits=8, path=str(tmp_path))
    assert {name: getattr(config.data, name) for name in expected} == expected
    model = config.model
    assert (model.image_height, model.image_width, model.image_channels) == (20, 14, 2)
    assert (model.num_bits, model.likelihood) == (8, "logistic_mixture")
    assert complete_spec(config.data) == config.data and completed(tmp_path, source="folder") == config
    model = completed(tmp_path, num_bits=1).model
    assert (model.num_bits, model.likelihood) == (1, "bernoulli")


def test_noise_decides_the_likelihood_and_is_estimated_where_it_is_not_given(tmp_path):
    random = np.random.default_rng(0)
    clean = np.repeat(np.repeat(random.uniform(0, 400, [60, 7, 7]), 4, axis=1), 4, axis=2)
    np.save(tmp_path / "noisy.npy", (clean + random.normal(0, 80, clean.shape)).astype(np.float32))
    given = dict(noise="gaussian", range=(-100, 300), resize="none")
    config = completed(tmp_path / "noisy.npy", **given)
    assert config.data.likelihood == config.model.likelihood == "noisy_signal"
    assert float(config.data.noise_sigma) == pytest.approx(80, rel=0.05)
    assert config.model.noise_variance == pytest.approx((0.0, (float(config.data.noise_sigma) / 400) ** 2))
    assert complete_spec(config.data) == config.data and config_from_dict(DataSpec, config_to_dict(config.data))
    model = completed(tmp_path / "noisy.npy", **given, noise_sigma="40").model
    assert model.noise_variance == (0.0, pytest.approx(0.01))
    poisson = given | dict(noise="poisson_gaussian", noise_variance=(2.0, 300.0))
    # The variance of a stored number of -100 is 100, and of 300 it is 900.
    assert completed(tmp_path / "noisy.npy", **poisson).model.noise_variance == pytest.approx((2 / 400, 100 / 400**2))
    for wrong in (given | dict(noise_variance=(2.0, 300.0)), poisson | dict(noise_sigma="40")):
        refuses(r"data.noise_\w+ = .*: is for --config.data.noise=\w+, and .*; leave", completed, "noisy.npy", **wrong)
    np.save(tmp_path / "clean.npy", np.zeros([20, 28, 28], np.float32))
    refuses("the images show no noise; give --config.data.noise_sigma", completed, tmp_path / "clean.npy", **given)
    # Values beyond the range are taken with the noise that they come from, but no NaN.
    np.save(tmp_path / "nan.npy", np.where(clean > 390, np.nan, clean))
    refuses(r"has NaN \(not a number\)", load_split, completed(tmp_path / "nan.npy", **poisson).data, "train")
    other = dataclasses.replace(config.data, noise_sigma="3")
    refuses("model.noise_variance is .*, the data have", check_model_fits, config.model, other)


def test_the_size_is_what_was_asked_for_and_padded_where_the_hierarchy_cannot_halve_it(tmp_path):
    for settings, size in (
        ({"resize": "crop", "height": 8}, (8, 8)),
        ({"resize": "crop", "height": 8, "width": 10}, (8, 10)),
        ({"crop_box": (1, 2, 9, 14), "resize": "stretch", "height": 5}, (5, 5)),
        ({"height": 20, "width": 14, "channels": 3, "file_bits": 8}, (20, 14)),
    ):
        spec = completed(pictures(tmp_path), **settings).data
        assert (spec.height, spec.width, spec.channels, spec.file_bits) == (*size, 3, 8)
        assert load_split(spec, "train").image_shape == (*size, 3)
    # A block before the three scales: 2 ** 3.
    for settings, size in (({}, (24, 16)), ({"padded_width": 32}, (24, 32))):
        model = completed(pictures(tmp_path), **settings).model
        assert (model.network_height, model.network_width) == size and model.size_divisor == 8


def test_a_home_folder_is_found_and_arrays_beside_pictures_do_not_hide_them(tmp_path, monkeypatch):
    np.save(pictures(tmp_path / "album") / "labels.npy", np.arange(12))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completed("~/album").data.image_shape == (20, 14, 3)
    assert load_split(completed("~/album").data, "test").count == 1


def test_most_pictures_decide_and_not_the_first(tmp_path):
    alpha = np.concatenate([PIXELS[0], PIXELS[0][..., :1]], axis=-1)
    pictures(tmp_path / "train")
    write_files(tmp_path, {"train/0.png": b"text", "train/00.png": png(alpha[:9]), "test/0.png": png(PIXELS[0])})
    spec = completed(tmp_path).data
    assert (spec.image_shape, spec.file_bits) == ((20, 14, 3), 8)
    refuses("0.png: not a picture", load_split, spec, "train")


def test_the_model_is_conditional_on_the_classes_of_the_data(tmp_path):
    settings = digits.get_config()
    assert complete_config(settings).model.num_classes == 0
    settings.data.labels = True
    config = complete_config(settings)
    assert config.model.num_classes == config.data.num_classes == 10
    # The number is looked up again only where the settings of a run leave it open.
    (tmp_path / "config.json").write_text(config_to_json(config))
    recorded = load_settings(str(tmp_path / "config.json"))
    assert complete_config(recorded).model.num_classes == 10
    recorded.data.num_classes = 12
    config = complete_config(recorded)
    assert config.model.num_classes == 12
    refuses("data.num_classes = 12: .* set --config.data.num_classes=10", load_split, config.data, "train")


def test_classes_without_labels_are_refused():
    settings = digits.get_config()
    settings.model.num_classes = 10
    config = complete_config(settings)
    refuses("does not fit .* model.num_classes is 10, the data have 0", check_model_fits, config.model, config.data)
    settings.data.num_classes = 10
    refuses("data.num_classes = 10: data.labels is False; set --config.data.labels", complete_config, settings)


def test_what_leads_to_no_images_is_reported():
    for settings, error, message in (
        ({}, FileNotFoundError, "data.path is not set: give --config.data.path; it names a folder of pictures, a"),
        ({"path": "gone"}, FileNotFoundError, "data.path = gone: no such file or folder; it names a folder of pict"),
        ({"path": __file__}, ValueError, "data.path = .*: a file that is neither .npy nor .npz"),
        ({"source": "tfds"}, ValueError, "data.source_name is not set"),
        *(
            ({"source": "tfds", "source_name": name}, ValueError, "data.source_name = .*: not a name of TensorFlow")
            for name in ("huggingface:mnist", "https://host/a.zip", "kaggle:a" * 999, "a\nb")
        ),
        ({"source": "fodler"}, ValueError, "data.source = 'fodler': .*did you mean 'folder'"),
    ):
        refuses(message, complete_spec, dataclasses.replace(OWN, **settings), error=error)
