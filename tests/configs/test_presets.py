import dataclasses
import importlib
import re
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from nvae_tf import presets
from nvae_tf.config import resolve_lengths
from nvae_tf.data import data_spec
from nvae_tf.data.sources import SOURCES
from nvae_tf.data.spec import complete_config
from nvae_tf.data_sets import MODEL_SETTINGS, check_model_fits
from nvae_tf.latent_plan import groups_per_scale, latent_plan
from nvae_tf.presets import experiment_config
from tests import ROOT

# ml_collections reads the files of configs in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

PRESETS = sorted(file.stem for file in (ROOT / "configs").glob("*.py") if file.stem != "__init__")
PUBLISHED = ("mnist", "cifar10", "celeba64", "imagenet32", "celebahq256", "ffhq256")
# Presets that take the model and the training of another.
LIKE = dict.fromkeys(("omniglot", "stacked_mnist", "fashion_mnist"), "mnist") | {"ffhq256": "celebahq256"}
LIKE |= dict.fromkeys(("imagenet64", "lsun_bedroom64", "lsun_church64"), "celeba64")
# All but those whose images must be looked at first.
WHOLE = [name for name in PRESETS if name != "own_images"]


def preset(name):
    return experiment_config(presets.preset(name))


@pytest.fixture
def settings_from_flags(monkeypatch):
    """The settings as a command gets them, from a preset and flags."""

    def settings(name, *arguments):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        # The flag looks there for what overrides the file.
        monkeypatch.setattr(sys, "argv", ["command", f"--config={ROOT}/configs/{name}.py", *arguments])
        values(sys.argv)
        return values.config

    return settings


def test_all_presets_are_there_and_locked():
    assert set(PRESETS) == {*PUBLISHED, *LIKE, "digits", "photos", "own_images"}
    for name in PRESETS:
        with pytest.raises(AttributeError):
            presets.preset(name).train.batch_sise = 3


@pytest.mark.parametrize("name", WHOLE)
def test_a_preset_is_possible_and_has_all_of_its_data_set(name):
    config = preset(name)
    latent_plan(config.model)
    assert config.data == data_spec(name)
    check_model_fits(config.model, config.data)
    for setting, data_setting in MODEL_SETTINGS.items():
        assert getattr(config.model, setting) == getattr(config.data, data_setting)
    # Looking at the images changes nothing of what is known, and is not done.
    assert complete_config(presets.preset(name)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_the_docstring_has_the_command_and_says_where_the_images_come_from(name):
    text = " ".join(importlib.import_module(f"configs.{name}").__doc__.split())
    assert re.search(rf"nvae-train --config={name}( --config\.data\.[a-z_]+=\S+)* --workdir=runs/\w+", text)
    if name in WHOLE:
        assert re.search(r"\b[Dd]ata(:| comes with) [^D]", text)
        assert "--config.data.path" in text or not SOURCES[data_spec(name).source][1]


def test_the_published_settings():
    for name, groups, channels, flows, bits, blocks, regularization, batch_size, epochs, rate, warm in (
        ("mnist", (10, 5), 32, 0, 1, (2, 3), (1e-2, False), 200, 400, 1e-2, 5),
        ("cifar10", (30,), 128, 1, 8, (1, 2), (1e-2, False), 32, 400, 1e-2, 5),
        ("celeba64", (20, 10, 5), 64, 1, 8, (1, 2), (1e-1, False), 16, 90, 1e-2, 5),
        ("imagenet32", (28,), 192, 1, 8, (1, 2), (1e-2, True), 24, 45, 1e-2, 1),
        ("celebahq256", (16, 8, 4, 4, 4), 30, 2, 5, (1, 2), (1e-2, True), 4, 300, 1e-2, 5),
        ("ffhq256", (16, 8, 4, 4, 4), 30, 2, 5, (1, 2), (1e-1, True), 4, 200, 8e-3, 5),
    ):
        config = resolve_lengths(preset(name), steps_per_epoch=1000, total_steps=100_000)
        model, objective, optimizer, train = config.model, config.objective, config.optimizer, config.train
        assert groups_per_scale(model) == groups
        same = dict(num_latent_per_group=20, num_cells_per_group_encoder=2, num_cells_per_group_decoder=2)
        same |= dict(squeeze_excite=True, residual_distributions=True, cell_set="res_mbconv")
        same |= dict.fromkeys(("num_preprocess_blocks", "num_postprocess_blocks"), blocks[0])
        same |= dict.fromkeys(("num_preprocess_cells", "num_postprocess_cells"), blocks[1])
        same |= dict(num_channels_encoder=channels, num_channels_decoder=channels, num_flows=flows, num_bits=bits)
        assert model == dataclasses.replace(model, **same)
        assert (objective.regularization, objective.anneal_regularization) == regularization
        assert objective.regularization_initial == 1.0 or not objective.anneal_regularization
        assert (train.batch_size, train.epochs, train.steps) == (batch_size, epochs, 0)
        assert (train.checkpoint_every_steps, train.evaluate_every_steps) == (1000, 1000)
        assert (optimizer.learning_rate, optimizer.warmup_epochs) == (rate, warm)
        assert (optimizer.learning_rate_min, optimizer.weight_decay) == (1e-4, 3e-4)


@pytest.mark.parametrize("name", LIKE)
def test_a_preset_like_another_differs_in_its_data(name):
    config, other = preset(name), preset(LIKE[name])
    from_data = {setting: getattr(config.model, setting) for setting in MODEL_SETTINGS}
    assert config.model == dataclasses.replace(other.model, **from_data)
    assert config.data.name == name != other.data.name
    if name != "ffhq256":
        assert config.objective == other.objective
    assert config.train.batch_size == other.train.batch_size


@pytest.mark.parametrize("name", ["mnist", "own_images"])
def test_the_model_follows_the_data(name):
    for setting, data_setting in MODEL_SETTINGS.items():
        settings, unchanged = presets.preset(name), presets.preset(name)
        settings.data[data_setting] = value = "normal" if setting == "likelihood" else 3
        for other in MODEL_SETTINGS:
            assert settings.model[other] == (value if other == setting else unchanged.model[other])


def test_flags_keep_model_and_data_together_and_reach_the_settings_that_are_none(settings_from_flags):
    flags = [f"--config.model.{flag}" for flag in ("likelihood=normal", "num_bits=5", "image_height=64")]
    config = experiment_config(settings_from_flags("cifar10", *flags))
    assert (config.data.likelihood, config.data.num_bits, config.data.height) == ("normal", 5, 64)
    check_model_fits(config.model, config.data)
    assert settings_from_flags("mnist", "--config.data.binarise=False").data.binarize is False
    arguments = ["path=/faces", "crop_box=(15, 40, 163, 188)", "padded_height=72"]
    settings = settings_from_flags("celeba64", *[f"--config.data.{argument}" for argument in arguments])
    spec = experiment_config(settings).data
    assert (spec.path, spec.padded_height, spec.crop_box) == ("/faces", 72, (15, 40, 163, 188))
    flags = [f"--config.objective.{flag}" for flag in ("kl_scale_weights=1,0.5,2", "kl_final_weight=0.7")]
    objective = experiment_config(settings_from_flags("digits", *flags)).objective
    assert (objective.kl_scale_weights, objective.kl_final_weight) == ((1, 0.5, 2), 0.7)


def test_a_model_of_another_size_or_likelihood_is_refused():
    with pytest.raises(ValueError, match="does not fit data set 'cifar10'.*Set them alike") as caught:
        check_model_fits(preset("mnist").model, data_spec("cifar10"))
    assert "model.image_height is 28, the data have 32" in str(caught.value)
    assert "model.likelihood is 'bernoulli', the data have 'logistic_mixture'" in str(caught.value)
    # Padding and a continuous likelihood are free.
    free = dataclasses.replace(preset("cifar10").model, likelihood="normal", padded_height=40, padded_width=48)
    check_model_fits(free, data_spec("cifar10"))
