import dataclasses
import re

import pytest

from nvae_tf import presets
from nvae_tf.config import ExperimentConfig, ModelConfig, ObjectiveConfig, resolve_lengths
from nvae_tf.data_sets import check_model_fits
from nvae_tf.latent_plan import CELL_SETS
from nvae_tf.presets import experiment_config
from nvae_tf.published import settings
from nvae_tf.published.import_run import imported_settings

# Each value is another, so that none can be taken for another's.
ARGS = dict(dataset="cifar10", num_x_bits=8, use_se=True, res_dist=True, num_latent_scales=2, num_groups_per_scale=7)
ARGS |= dict(num_latent_per_group=11, ada_groups=True, min_groups_per_scale=3, num_channels_enc=32, num_channels_dec=48)
ARGS |= dict(num_preprocess_blocks=1, num_preprocess_cells=4, num_cell_per_cond_enc=5, num_postprocess_blocks=1)
ARGS |= dict(num_postprocess_cells=6, num_cell_per_cond_dec=8, num_mixture_dec=9, num_nf=2, arch_instance="mbconv_sep")
ARGS |= dict(kl_anneal_portion=0.5, kl_const_portion=0.25, kl_const_coeff=0.125, epochs=400)
ARGS |= dict(weight_decay_norm=0.03, weight_decay_norm_init=0.7, weight_decay_norm_anneal=True)
MODEL = dict(image_height=32, image_width=32, image_channels=3, num_bits=8, likelihood="logistic_mixture")
MODEL |= dict(num_mixtures=9, num_latent_scales=2, num_groups_per_scale=7, adaptive_groups=True, min_groups_per_scale=3)
MODEL |= dict(num_latent_per_group=11, num_channels_encoder=32, num_channels_decoder=48, num_preprocess_blocks=1)
MODEL |= dict(num_preprocess_cells=4, num_postprocess_blocks=1, num_postprocess_cells=6, num_cells_per_group_encoder=5)
MODEL |= dict(num_cells_per_group_decoder=8, num_flows=2, cell_set="mbconv_sep", squeeze_excite=True)
OBJECTIVE = dict(kl_anneal_portion=0.5, kl_constant_portion=0.25, kl_constant_weight=0.125, regularization=0.03)
OBJECTIVE |= dict(anneal_regularization=True, regularization_initial=0.7)


def without(*names, **changes):
    return {name: value for name, value in {**ARGS, **changes}.items() if name not in names}


def preset(name):
    return experiment_config(presets.preset(name))


def test_every_setting_of_the_architecture_and_the_loss():
    assert settings.model_config_from_published(ARGS) == ModelConfig(**MODEL, residual_distributions=True)
    assert settings.objective_config_from_published(ARGS) == ObjectiveConfig(**OBJECTIVE)
    # Other forms.
    assert settings.model_config_from_published(without(num_mixture_dec=1)).likelihood == "normal"
    # Old files lack some; zeros and ones pass for truth values.
    old = without("ada_groups", "min_groups_per_scale", "num_mixture_dec", use_se=0)
    config = settings.model_config_from_published(old)
    assert (config.adaptive_groups, config.min_groups_per_scale, config.num_mixtures) == (False, 1, 10)
    assert config.squeeze_excite is False and config.residual_distributions is True
    for name in ("num_nf", "dataset", "num_x_bits", "arch_instance"):
        with pytest.raises(ValueError, match=f"settings lack '{name}'"):
            settings.model_config_from_published(without(name))
    with pytest.raises(ValueError, match="settings lack 'kl_const_coeff'"):
        settings.objective_config_from_published(without("kl_const_coeff"))


PUBLISHED = {name: name for name in ("mnist", "cifar10", "omniglot", "stacked_mnist")}
PUBLISHED |= {"celeba64": "celeba_64", "imagenet32": "imagenet_32", "lsun_church64": "lsun_church_64"}
PUBLISHED |= {"celebahq256": "celeba_256", "ffhq256": "ffhq"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_comes_back(name):
    config = preset(name)
    args = settings.published_settings(config)
    assert args["dataset"] == PUBLISHED[name]
    assert settings.differing_settings(config.model, settings.model_config_from_published(args)) == []
    objective = settings.objective_config_from_published(args)
    assert dataclasses.replace(objective, total_steps=config.objective.total_steps) == config.objective
    assert (args["learning_rate"], args["epochs"]) == (config.optimizer.learning_rate, config.train.epochs)
    assert (args["batch_size"], args["seed"]) == (config.train.batch_size, config.train.seed)


def test_a_data_set_without_a_published_name_is_one_with_such_images():
    own = dataclasses.replace(preset("celeba64"), data=dataclasses.replace(preset("celeba64").data, name="cats"))
    assert settings.published_settings(own)["dataset"] == "celeba_64"
    bedrooms = dataclasses.replace(preset("ffhq256"), data=dataclasses.replace(own.data, name="lsun_bedroom256"))
    assert settings.published_settings(bedrooms)["dataset"] == "lsun_bedroom_256"


def test_what_the_published_form_can_not_say_is_named():
    for changes, message in (
        (dict(exact_edges=True), r"the published form can't say model\.exact_edges = True$"),
        (dict(num_mixtures=1), r"can't say model\.likelihood = 'logistic_mixture'"),
        (dict(padded_height=40), r"in a frame of 40x32"),
        (dict(image_height=16, image_width=16), r"no data set with images of model\.image_height = 16, .*width = 16"),
        (dict(likelihood="bernoulli", num_bits=1), r"model\.likelihood = 'bernoulli'"),
    ):
        with pytest.raises(ValueError, match=message):
            settings.published_settings(ExperimentConfig(ModelConfig(**changes), ObjectiveConfig()))


def test_settings_without_effect_do_not_differ():
    normal = ModelConfig(likelihood="normal", num_mixtures=10, exact_edges=True)
    assert settings.differing_settings(normal, dataclasses.replace(normal, num_mixtures=1, exact_edges=False)) == []
    assert settings.differing_settings(ModelConfig(), ModelConfig(padded_height=32)) == []
    assert settings.differing_settings(ModelConfig(num_flows=2), ModelConfig()) == ["model.num_flows = 2"]


def test_every_cell_set_has_tables():
    """Those of recorded files are compared in `test_back_in_the_published_form`."""
    tables = {name: settings.cell_tables(name) for name in CELL_SETS}
    assert tables["mbconv_den"]["normal_pre"] == ["mconv_e3k5g8"] and tables["mbconv_den"]["up_dec"] == ["mconv_e6k5g0"]
    assert tables["res53_mbconv"]["down_enc"] == ["res_bnswish5", "res_bnswish"]
    assert len({str(table) for table in tables.values()}) == len(tables)


def test_the_length_of_a_published_run():
    for name, epoch, step, total, a_step in (
        # The published runs: batch a GPU times GPUs, whole batches an epoch.
        ("cifar10", 400, 400 * 195, 400 * 195, 8 * 32),
        ("imagenet32", 45, 45 * 2224, 45 * 2224, 24 * 24),
        ("celebahq256", 300, 300 * 281, 300 * 281, 24 * 4),
        # An epoch that is not counted yet.
        ("ffhq256", 99, 100 * 656, 200 * 656, 24 * 4),
        ("cifar10", 100, 100 * 195, 400 * 195, 8 * 32),
    ):
        config = preset(name)
        found = imported_settings(settings.published_settings(config), epoch, step)
        assert found.config.objective.total_steps == total and found.step == step
        assert found.images.a_step == a_step and found.defaults == () and found.assumed is None
        assert found.config == resolve_lengths(config, total // config.train.epochs, total)
        assert found.config.optimizer.warmup_epochs == (1 if name == "imagenet32" else 5)


def test_a_length_that_does_not_follow_keeps_the_part_that_is_over():
    for epoch, step, reached, total, assumed in (
        # No number of GPUs fits: as many steps an epoch as before. At the end of the run it is the end.
        (3, 7, 7, 933, "does not follow from 7 steps in 3 epochs. At that rate its 400 epochs are train.steps = 933"),
        (400, 78_001, 78_001, 78_001, "train.steps = 78,001"),
        (0, 5, 5, 2000, "train.steps = 2,000"),
        (None, 78_000, 78_000, 78_000, "no epoch, so it is taken to be of the end of its run: train.steps = 78,000"),
        (400, None, 624_800, 624_800, "counted as 1,562 steps each, .* step 624,800 of train.steps = 624,800"),
    ):
        found = imported_settings(settings.published_settings(preset("cifar10")), epoch, step)
        assert found.images is None and found.step == reached
        # The unit of nvae-train and of the schedules.
        assert found.config.train.steps == found.config.objective.total_steps == total
        assert re.search(assumed, found.assumed)


@pytest.mark.parametrize(("epoch", "step"), [(None, None), (0, 0)])
def test_a_run_that_has_not_begun_has_the_length_that_its_devices_give_it(epoch, step):
    found = imported_settings(settings.published_settings(preset("cifar10")), epoch, step)
    assert (found.step, found.images, found.config.train.steps) == (0, None, 0)
    assert found.config.objective.total_steps == 400 * (50_000 // 32)
    assert (found.assumed is not None) == (epoch is None)


@pytest.mark.parametrize(
    ("published", "size", "bits"), [("lsun_bedroom_128", 128, 5), ("lsun_church_64", 64, 8), ("imagenet_64", 64, 8)]
)
def test_the_images_of_a_data_set(published, size, bits):
    args = settings.published_settings(preset("celeba64")) | {"dataset": published, "num_x_bits": bits}
    found = imported_settings(args, 45, 9000)
    assert found.config.data.name == published.replace("_1", "1").replace("_6", "6")
    assert found.config.data.image_shape == (size, size, 3) and found.config.data.num_bits == bits
    # Where the number of images is not known, or does not explain it, the length is what the file says.
    assert (found.step, found.config.train.steps, found.images) == (9000, 18_000, None)
    check_model_fits(found.config.model, found.config.data)


def test_settings_of_the_training_that_are_missing_are_defaults():
    args = settings.published_settings(preset("cifar10"))
    del args["learning_rate_min"], args["seed"], args["ada_groups"], args["num_mixture_dec"]
    found = imported_settings(args, 1, 195)
    assert found.defaults == ("optimizer.learning_rate_min", "train.seed")
    assert found.config.model == preset("cifar10").model


def test_an_impossible_setting_is_named():
    for changes, message in (
        (dict(epochs="many"), r"train\.epochs = 'many': must be of type int"),
        (dict(num_nf="2"), r"'args' has a setting of a wrong type \(model\.num_flows = '2': must be of type int"),
        (dict(num_latent_scales=-1e308), r"a wrong type \(model\.num_latent_scales = .*must be of type int"),
        (dict(dataset="faces"), "data set 'faces' is not one of celeba_256, .*, so the size"),
        (dict(dataset=["cifar10"]), "'args' has a setting of a wrong type .*unhashable"),
    ):
        with pytest.raises(ValueError, match=message):
            imported_settings(settings.published_settings(preset("cifar10")) | changes, 1, 195)
