"""The presets against the table of the paper's settings, and what their docstrings promise."""

import importlib
import pathlib
import subprocess
import sys

import pytest

from nvae_tf.config import experiment_config
from nvae_tf.data import DATA_SPECS, data_spec
from nvae_tf.data.model_settings import check_model_fits, image_settings
from nvae_tf.latent_plan import groups_per_scale, latent_plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
PRESETS = sorted(file.stem for file in (ROOT / "configs").glob("*.py") if file.stem not in ("__init__", "common"))
PUBLISHED = ("mnist", "cifar10", "celeba64", "imagenet32", "celebahq256", "ffhq256")


def settings_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


def preset(name):
    return experiment_config(settings_of(name))


def test_all_presets_are_there():
    assert set(PRESETS) == {*PUBLISHED, "digits"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_locked_and_possible(name):
    settings = settings_of(name)
    assert settings.is_locked
    with pytest.raises(AttributeError):
        settings.train.batch_sise = 3
    config = experiment_config(settings)
    latent_plan(config.model)
    assert config.data.name == name


@pytest.mark.parametrize("name", PRESETS)
def test_the_docstring_has_the_command(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"python -m train.main --config=configs/{name}.py --workdir=runs/" in text
    assert ("comes with a later version" in " ".join(text.split())) == (name not in DATA_SPECS)


@pytest.mark.parametrize("name", sorted(set(PRESETS) & set(DATA_SPECS)))
def test_the_model_takes_the_images_of_its_data_set(name):
    check_model_fits(preset(name).model, data_spec(name))


@pytest.mark.parametrize(
    ("name", "groups", "channels", "flows", "bits", "blocks", "regularisation", "batch_size", "epochs"),
    [
        ("mnist", (10, 5), 32, 0, 1, (2, 3), (1e-2, False), 200, 400),
        ("cifar10", (30,), 128, 1, 8, (1, 2), (1e-2, False), 32, 400),
        ("celeba64", (20, 10, 5), 64, 1, 8, (1, 2), (1e-1, False), 16, 90),
        ("imagenet32", (28,), 192, 1, 8, (1, 2), (1e-2, True), 24, 45),
        ("celebahq256", (16, 8, 4, 4, 4), 30, 2, 5, (1, 2), (1e-2, True), 4, 300),
        ("ffhq256", (16, 8, 4, 4, 4), 30, 2, 5, (1, 2), (1e-1, True), 4, 200),
    ],
)
def test_the_published_settings(name, groups, channels, flows, bits, blocks, regularisation, batch_size, epochs):
    config = preset(name)
    model, objective = config.model, config.objective
    assert groups_per_scale(model) == groups
    assert model.num_channels_encoder == model.num_channels_decoder == channels
    assert (model.num_flows, model.num_bits) == (flows, bits)
    assert (model.num_preprocess_blocks, model.num_preprocess_cells) == blocks
    assert (model.num_postprocess_blocks, model.num_postprocess_cells) == blocks
    assert model.num_cells_per_group_encoder == model.num_cells_per_group_decoder == 2
    assert model.num_latent_per_group == 20
    assert model.squeeze_excite and model.residual_distributions and model.cell_set == "res_mbconv"
    assert (objective.regularisation, objective.anneal_regularisation) == regularisation
    assert objective.regularisation_initial == 1.0 or not objective.anneal_regularisation
    assert (config.train.batch_size, config.train.epochs, config.train.steps) == (batch_size, epochs, 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_optimizer(name):
    optimizer = preset(name).optimizer
    assert optimizer.learning_rate == (8e-3 if name == "ffhq256" else 1e-2)
    assert optimizer.warmup_epochs == (1 if name == "imagenet32" else 5)
    assert (optimizer.learning_rate_min, optimizer.weight_decay) == (1e-4, 3e-4)


def test_binarised_data_are_one_bit_and_padded_where_the_spec_says():
    assert image_settings(data_spec("mnist")) == {
        "image_height": 28,
        "image_width": 28,
        "image_channels": 1,
        "padded_height": 32,
        "padded_width": 32,
        "num_bits": 1,
        "likelihood": "bernoulli",
    }
    assert image_settings(data_spec("cifar10"))["padded_height"] is None
    assert image_settings(data_spec("cifar10"))["num_bits"] == 8


def test_a_model_of_another_size_or_likelihood_is_refused():
    with pytest.raises(ValueError, match="model.image_height is 28, not 32"):
        check_model_fits(preset("mnist").model, data_spec("cifar10"))
    with pytest.raises(ValueError, match="model.likelihood is 'bernoulli', not 'logistic_mixture'"):
        check_model_fits(preset("mnist").model, data_spec("cifar10"))


def test_the_length_of_the_run_is_no_setting():
    # `objective.total_steps` follows from train.steps or train.epochs.
    assert "total_steps" not in settings_of("digits").objective


def test_presets_are_read_before_tensorflow_is_loaded():
    imports = "; ".join(f"import configs.{name}; configs.{name}.get_config()" for name in PRESETS)
    program = f"import sys; {imports}; print('tensorflow' in sys.modules)"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"
