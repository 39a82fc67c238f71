"""Settings in the words of published checkpoints: what comes back is what went in, or it is refused by name."""

import argparse
import dataclasses

import pytest

from nvae_tf import presets
from nvae_tf.config import ExperimentConfig, ModelConfig, ObjectiveConfig, experiment_config
from nvae_tf.latent_plan import CELL_SETS
from nvae_tf.published.settings import model_config_from_published, objective_config_from_published
from nvae_tf.published.settings_to_publish import cell_tables, differing_settings, published_settings

PUBLISHED = {
    "mnist": "mnist",
    "cifar10": "cifar10",
    "celeba64": "celeba_64",
    "imagenet32": "imagenet_32",
    "celebahq256": "celeba_256",
    "ffhq256": "ffhq",
    "omniglot": "omniglot",
    "stacked_mnist": "stacked_mnist",
    "lsun_church64": "lsun_church_64",
}


def preset(name):
    return experiment_config(presets.preset(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_comes_back(name):
    config = preset(name)
    args = published_settings(config)
    assert args["dataset"] == PUBLISHED[name]
    assert differing_settings(config.model, model_config_from_published(args)) == []
    objective = objective_config_from_published(args)
    assert dataclasses.replace(objective, total_steps=config.objective.total_steps) == config.objective
    assert (args["learning_rate"], args["epochs"]) == (config.optimizer.learning_rate, config.train.epochs)
    assert (args["batch_size"], args["seed"]) == (config.train.batch_size, config.train.seed)


@pytest.mark.parametrize("name", ["mnist_tiny", "cifar10_tiny", "celeba64_tiny", "normal_decoder_tiny"])
def test_the_recorded_settings_come_back(name, published):
    args, _ = published.recorded(name)
    model, objective = model_config_from_published(args), objective_config_from_published(args)
    found = published_settings(ExperimentConfig(model, dataclasses.replace(objective, total_steps=9)))
    chosen = {key: value for key, value in args.items() if not key.startswith(("learning", "warmup", "batch", "epoch"))}
    del chosen["seed"], chosen["weight_decay"]
    # Which of several data sets with such images it is, the model does not know.
    assert {key: found[key] for key in chosen} == chosen | {"dataset": found["dataset"]}


def test_a_data_set_without_a_published_name_is_one_with_such_images():
    own = dataclasses.replace(preset("celeba64"), data=dataclasses.replace(preset("celeba64").data, name="cats"))
    assert published_settings(own)["dataset"] == "celeba_64"
    bedrooms = dataclasses.replace(preset("ffhq256"), data=dataclasses.replace(own.data, name="lsun_bedroom256"))
    assert published_settings(bedrooms)["dataset"] == "lsun_bedroom_256"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(exact_edges=True), r"the published form can't say model\.exact_edges = True$"),
        (dict(num_mixtures=1), r"can't say model\.likelihood = 'logistic_mixture'"),
        (dict(padded_height=40), r"in a frame of 40x32"),
        (dict(image_height=16, image_width=16), r"no data set with images of model\.image_height = 16, .*width = 16"),
        (dict(image_channels=1), r"image_channels = 1"),
        (dict(likelihood="bernoulli", num_bits=1), r"model\.likelihood = 'bernoulli'"),
    ],
)
def test_what_the_published_form_can_not_say_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        published_settings(ExperimentConfig(ModelConfig(**changes), ObjectiveConfig()))


def test_settings_without_effect_do_not_differ():
    normal = ModelConfig(likelihood="normal", num_mixtures=10, exact_edges=True)
    assert differing_settings(normal, dataclasses.replace(normal, num_mixtures=1, exact_edges=False)) == []
    assert differing_settings(ModelConfig(), ModelConfig(padded_height=32)) == []
    assert differing_settings(ModelConfig(num_flows=2), ModelConfig()) == ["model.num_flows = 2"]


@pytest.mark.torch
@pytest.mark.parametrize("name", ["mnist_tiny", "cifar10_tiny"])
def test_the_tables_of_the_recorded_files(name, published):
    import torch

    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(published.path(f"{name}.pt"), weights_only=True)
    assert cell_tables(content["args"].arch_instance) == content["arch_instance"]


def test_every_cell_set_has_tables():
    tables = {name: cell_tables(name) for name in CELL_SETS}
    assert tables["mbconv_den"]["normal_pre"] == ["mconv_e3k5g8"] and tables["mbconv_den"]["up_dec"] == ["mconv_e6k5g0"]
    assert tables["res53_mbconv"]["down_enc"] == ["res_bnswish5", "res_bnswish"]
    assert len({str(table) for table in tables.values()}) == len(tables)
