"""The settings of an imported run: from the file's own, with a length that fits its data set."""

import re

import pytest

from nvae_tf import presets
from nvae_tf.config import experiment_config, resolve_lengths
from nvae_tf.data.spec import check_model_fits
from nvae_tf.published.imported_settings import imported_settings
from nvae_tf.published.settings_to_publish import published_settings


def preset(name):
    return experiment_config(presets.preset(name))


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
    assert found.images.a_step == a_step and found.defaults == () and found.assumed is None
    assert found.step == step
    assert found.config == resolve_lengths(config, total // config.train.epochs, total)
    assert found.config.optimizer.warmup_epochs == (1 if name == "imagenet32" else 5)


@pytest.mark.parametrize(
    ("epoch", "step", "reached", "total", "told"),
    [
        # No number of GPUs fits: as many steps an epoch as before. At the end of the run it is the end.
        (3, 7, 7, 933, "does not follow from 7 steps in 3 epochs. At that rate its 400 epochs are train.steps = 933"),
        (400, 78_001, 78_001, 78_001, "train.steps = 78,001"),
        (399, 78_001, 78_001, 78_196, "train.steps = 78,196"),
        (0, 5, 5, 2000, "train.steps = 2,000"),
        (None, 78_000, 78_000, 78_000, "no epoch, so it is taken to be of the end of its run: train.steps = 78,000"),
        (400, None, 624_800, 624_800, "counted as 1,562 steps each, .* step 624,800 of train.steps = 624,800"),
        (100, None, 156_200, 624_800, "step 156,200 of train.steps = 624,800"),
    ],
)
def test_a_length_that_does_not_follow_keeps_the_part_that_is_over(epoch, step, reached, total, told):
    found = imported_settings(published_settings(preset("cifar10")), epoch, step)
    assert found.images is None and found.step == reached
    # What train.main and the schedules measure by.
    assert found.config.train.steps == found.config.objective.total_steps == total
    assert re.search(told, found.assumed)


@pytest.mark.parametrize(("epoch", "step"), [(None, None), (0, 0), (0, None)])
def test_a_run_that_has_not_begun_has_the_length_that_its_devices_give_it(epoch, step):
    found = imported_settings(published_settings(preset("cifar10")), epoch, step)
    assert (found.step, found.images, found.config.train.steps) == (0, None, 0)
    assert found.config.objective.total_steps == 400 * (50_000 // 32)
    assert (found.assumed is not None) == (epoch is None)


def test_a_data_set_of_unknown_size_has_the_length_that_the_file_says():
    args = published_settings(preset("celeba64")) | {"dataset": "lsun_church_64", "num_x_bits": 8, "epochs": 90}
    found = imported_settings(args, 45, 9000)
    assert (found.step, found.config.train.steps, found.images) == (9000, 18_000, None)


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
        (dict(dataset=["cifar10"]), "'args' has a setting of a wrong type .*unhashable"),
        (dict(kl_anneal_portion="x"), "'args' has a setting of a wrong type"),
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
    config = imported_settings(args, 1, 10).config
    assert config.data.name == published.replace("_1", "1").replace("_6", "6")
    assert config.data.image_shape == (size, size, 3) and config.data.num_bits == bits
    check_model_fits(config.model, config.data)
