"""The settings of an imported run: from the file's own, with a length that fits its data set."""

import dataclasses
import importlib

import pytest

from export.torch_checkpoints.imported_settings import imported_settings
from nvae_tf.checkpoints.settings_to_publish import published_settings
from nvae_tf.config import experiment_config
from nvae_tf.data.model_settings import check_model_fits


def preset(name):
    return experiment_config(importlib.import_module(f"configs.{name}").get_config())


@pytest.mark.parametrize(
    ("name", "epoch", "step", "total", "a_step"),
    [
        # The published runs: batch a GPU times GPUs, whole batches an epoch.
        ("mnist", 400, 400 * 150, 400 * 150, 2 * 200),
        ("cifar10", 400, 400 * 195, 400 * 195, 8 * 32),
        ("celeba64", 90, 90 * 1271, 90 * 1271, 8 * 16),
        ("imagenet32", 45, 45 * 2224, 45 * 2224, 24 * 24),
        ("celebahq256", 300, 300 * 281, 300 * 281, 24 * 4),
        # An epoch that is not counted yet.
        ("ffhq256", 99, 100 * 656, 200 * 656, 24 * 4),
        # Before its end.
        ("cifar10", 100, 100 * 195, 400 * 195, 8 * 32),
    ],
)
def test_a_published_run(name, epoch, step, total, a_step):
    config = preset(name)
    found = imported_settings(published_settings(config), epoch, step)
    assert found.config.objective.total_steps == total
    assert found.images.a_step == a_step and found.defaults == ()
    same_length = dataclasses.replace(config.objective, total_steps=total)
    assert found.config == dataclasses.replace(config, objective=same_length)


@pytest.mark.parametrize(("epoch", "step"), [(3, 7), (None, None), (0, 0), (3, 3)])
def test_a_length_that_fits_no_number_of_gpus_is_no_fact(epoch, step):
    found = imported_settings(published_settings(preset("cifar10")), epoch, step)
    assert found.images is None
    assert found.config.objective.total_steps == 400 * (50_000 // 32)


def test_settings_of_the_training_that_are_missing_are_told():
    args = published_settings(preset("cifar10"))
    del args["learning_rate_min"], args["seed"], args["ada_groups"], args["num_mixture_dec"]
    found = imported_settings(args, 1, 195)
    assert found.defaults == ("optimizer.learning_rate_min", "train.seed")
    assert found.config.model == preset("cifar10").model
    del args["weight_decay_norm"]
    with pytest.raises(ValueError, match="lack 'weight_decay_norm'"):
        imported_settings(args, 1, 195)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(epochs="many"), r"train\.epochs = 'many': must be of type int"),
        (dict(batch_size=0), r"train\.batch_size = 0"),
        (dict(num_nf="2"), r"model\.num_flows = '2': must be of type int"),
        (dict(dataset="faces"), "data set 'faces' is not one of"),
    ],
)
def test_an_impossible_setting_is_told(changes, message):
    with pytest.raises(ValueError, match=message):
        imported_settings(published_settings(preset("cifar10")) | changes, 1, 195)


@pytest.mark.parametrize(
    ("published", "size", "bits"), [("lsun_bedroom_128", 128, 5), ("lsun_church_64", 64, 8), ("imagenet_64", 64, 8)]
)
def test_the_images_of_a_data_set(published, size, bits):
    args = published_settings(preset("celeba64")) | {"dataset": published, "num_x_bits": bits}
    config = imported_settings(args, 1, 10, data_path="/images").config
    assert (config.data.name, config.data.path) == (published.replace("_1", "1").replace("_6", "6"), "/images")
    assert config.data.image_shape == (size, size, 3) and config.data.num_bits == bits
    check_model_fits(config.model, config.data)
