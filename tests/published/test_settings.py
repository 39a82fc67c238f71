import dataclasses

import pytest

from nvae_tf.config import ExperimentConfig, ModelConfig, ObjectiveConfig, resolve_lengths
from nvae_tf.presets import experiment_config
from nvae_tf.published import settings
from nvae_tf.published.conversion import imported_settings
from tests import own_parts, refuses

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
        refuses(f"settings lack '{name}'", settings.model_config_from_published, without(name))
    refuses("settings lack 'kl_const_coeff'", settings.objective_config_from_published, without("kl_const_coeff"))


PUBLISHED = dict(mnist="mnist", stacked_mnist="stacked_mnist", imagenet32="imagenet_32", celebahq256="celeba_256")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_comes_back(name):
    config = experiment_config(name)
    args = settings.published_settings(config)
    assert args["dataset"] == PUBLISHED[name]
    assert settings.differing_settings(config.model, settings.model_config_from_published(args)) == []
    objective = settings.objective_config_from_published(args)
    assert dataclasses.replace(objective, total_steps=config.objective.total_steps) == config.objective
    assert (args["learning_rate"], args["epochs"]) == (config.optimizer.learning_rate, config.train.epochs)
    assert (args["batch_size"], args["seed"]) == (config.train.batch_size, config.train.seed)


def test_a_data_set_without_a_published_name_is_one_with_such_images():
    for name, own, published in (("celeba64", "cats", "celeba_64"), ("ffhq256", "lsun_bedroom256", "lsun_bedroom_256")):
        config = experiment_config(name)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, name=own))
        args = settings.published_settings(config)
        assert args["dataset"] == published and imported_settings(args, 1, 9).config.data.image_shape[0] in (64, 256)


def test_what_the_published_form_can_not_say_is_named():
    for changes, message in (
        (dict(exact_edges=True), r"the published form can't say model\.exact_edges = True$"),
        (dict(residual_scale=0.3), r"can't say model\.residual_scale = 0\.3$"),
        (dict(num_mixtures=1), r"can't say model\.likelihood = 'logistic_mixture'"),
        (dict(num_bits=12), r"can't say model\.num_bits = 12"),
        (
            dict(likelihood="noisy_signal", noise_variance=(0.0, 0.04)),
            r"say model\.likelihood = .noisy_signal., model\.noise_variance = \(0.0, 0.04\)",
        ),
        (dict(padded_height=40), r"32x32x3 images, 40x32 with their frame"),
        (dict(cell_set="normed"), f"can't say model.cell_set = '{own_parts.__name__}:normed'"),
    ):
        refuses(message, settings.published_settings, ExperimentConfig(ModelConfig(**changes), ObjectiveConfig()))


def test_the_length_of_a_published_run():
    for name, epoch, step, total, a_step in (
        # The published runs: batch a GPU times GPUs, whole batches an epoch.
        ("cifar10", 400, 400 * 195, 400 * 195, 8 * 32),
        ("imagenet32", 45, 45 * 2224, 45 * 2224, 24 * 24),
        # An epoch that is not counted yet.
        ("ffhq256", 99, 100 * 656, 200 * 656, 24 * 4),
        ("cifar10", 100, 100 * 195, 400 * 195, 8 * 32),
    ):
        config = experiment_config(name)
        run = imported_settings(settings.published_settings(config), epoch, step)
        assert run.config.objective.total_steps == total and run.step == step
        assert run.images.a_step == a_step and run.defaults == () and run.assumed is None
        assert run.config == resolve_lengths(config, total // config.train.epochs, total)
        assert run.config.optimizer.warmup_epochs == (1 if name == "imagenet32" else 5)


def test_a_length_that_does_not_follow_keeps_the_part_that_is_over():
    for epoch, step, reached, total in (
        # No number of GPUs fits: as many steps an epoch as before. At the end of the run it is the end.
        (3, 7, 7, 933),
        (400, 78_001, 78_001, 78_001),
        (0, 5, 5, 2000),
        (None, 78_000, 78_000, 78_000),
        (400, None, 624_800, 624_800),
    ):
        run = imported_settings(settings.published_settings(experiment_config("cifar10")), epoch, step)
        assert run.images is None and run.step == reached
        # The unit of nvae-train and of the schedules.
        assert run.config.train.steps == run.config.objective.total_steps == total
        assert f"at step {reached:,} of train.steps = {total:,}" in run.assumed


def test_an_impossible_setting_is_named():
    for changes, message in (
        (dict(epochs="many"), r"train\.epochs = 'many': must be of type int"),
        (dict(num_nf="2"), r"'args' has num_nf = '2', which must be of type int"),
        (dict(dataset="faces"), r"data set = 'faces': not one of the choices \(mnist, "),
        (dict(kl_const_coeff="x"), "kl_const_coeff = 'x', which must be of type float"),
    ):
        refuses(message, imported_settings, settings.published_settings(experiment_config("cifar10")) | changes, 1, 195)
