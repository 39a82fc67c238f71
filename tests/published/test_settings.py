"""Settings of published checkpoints in this project's words."""

import pytest

from nvae_tf.config import ModelConfig, ObjectiveConfig
from nvae_tf.published.settings import model_config_from_published, objective_config_from_published

ARGS = {
    "dataset": "cifar10",
    "num_x_bits": 8,
    "use_se": True,
    "res_dist": True,
    "num_latent_scales": 2,
    "num_groups_per_scale": 7,
    "num_latent_per_group": 11,
    "ada_groups": True,
    "min_groups_per_scale": 3,
    "num_channels_enc": 32,
    "num_channels_dec": 48,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 4,
    "num_cell_per_cond_enc": 5,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 6,
    "num_cell_per_cond_dec": 8,
    "num_mixture_dec": 9,
    "num_nf": 2,
    "arch_instance": "mbconv_sep",
    "kl_anneal_portion": 0.5,
    "kl_const_portion": 0.25,
    "kl_const_coeff": 0.125,
    "weight_decay_norm": 0.03,
    "weight_decay_norm_init": 0.7,
    "weight_decay_norm_anneal": True,
    "epochs": 400,
}


def without(*names, **changes):
    return {name: value for name, value in {**ARGS, **changes}.items() if name not in names}


def test_every_setting_of_the_architecture():
    assert model_config_from_published(ARGS) == ModelConfig(
        image_height=32,
        image_width=32,
        image_channels=3,
        num_bits=8,
        likelihood="logistic_mixture",
        num_mixtures=9,
        num_latent_scales=2,
        num_groups_per_scale=7,
        adaptive_groups=True,
        min_groups_per_scale=3,
        num_latent_per_group=11,
        num_channels_encoder=32,
        num_channels_decoder=48,
        num_preprocess_blocks=1,
        num_preprocess_cells=4,
        num_postprocess_blocks=1,
        num_postprocess_cells=6,
        num_cells_per_group_encoder=5,
        num_cells_per_group_decoder=8,
        num_flows=2,
        cell_set="mbconv_sep",
        squeeze_excite=True,
        residual_distributions=True,
    )


def test_every_setting_of_the_loss():
    assert objective_config_from_published(ARGS) == ObjectiveConfig(
        kl_anneal_portion=0.5,
        kl_constant_portion=0.25,
        kl_constant_weight=0.125,
        regularisation=0.03,
        anneal_regularisation=True,
        regularisation_initial=0.7,
    )


@pytest.mark.parametrize(
    ("dataset", "size", "channels", "padded", "likelihood"),
    [
        ("mnist", 28, 1, 32, "bernoulli"),
        ("omniglot", 28, 1, 32, "bernoulli"),
        ("stacked_mnist", 28, 3, 32, "logistic_mixture"),
        ("celeba_64", 64, 3, None, "logistic_mixture"),
        ("celeba_256", 256, 3, None, "logistic_mixture"),
        ("imagenet_32", 32, 3, None, "logistic_mixture"),
        ("ffhq", 256, 3, None, "logistic_mixture"),
    ],
)
def test_images_of_the_data_sets(dataset, size, channels, padded, likelihood):
    config = model_config_from_published(without(dataset=dataset, num_x_bits=5))
    assert (config.image_height, config.image_width, config.image_channels) == (size, size, channels)
    assert (config.padded_height, config.padded_width) == (padded, padded)
    assert config.likelihood == likelihood
    assert config.num_bits == (1 if likelihood == "bernoulli" else 5)


def test_one_mixture_component_means_the_normal_likelihood():
    assert model_config_from_published(without(num_mixture_dec=1)).likelihood == "normal"


def test_old_files_lack_some_settings():
    config = model_config_from_published(without("ada_groups", "min_groups_per_scale", "num_mixture_dec"))
    assert (config.adaptive_groups, config.min_groups_per_scale, config.num_mixtures) == (False, 1, 10)


def test_zeros_and_ones_pass_for_truth_values():
    config = model_config_from_published(without(use_se=0, res_dist=1, ada_groups=0))
    assert config.squeeze_excite is False
    assert config.residual_distributions is True
    assert config.adaptive_groups is False


@pytest.mark.parametrize("name", ["num_nf", "dataset", "num_x_bits", "arch_instance", "use_se"])
def test_a_missing_setting_is_named(name):
    with pytest.raises(ValueError, match=f"settings lack '{name}'"):
        model_config_from_published(without(name))


def test_a_missing_setting_of_the_loss_is_named():
    with pytest.raises(ValueError, match="settings lack 'kl_const_coeff'"):
        objective_config_from_published(without("kl_const_coeff"))


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match="data set 'svhn' is not one of celeba_256, .*, so the size"):
        model_config_from_published(without(dataset="svhn"))


def test_the_recorded_files(published):
    settings, _ = published.recorded("celeba64_tiny")
    config = model_config_from_published(settings)
    assert (config.image_height, config.num_bits, config.num_mixtures) == (64, 5, 3)
    assert (config.num_latent_scales, config.num_flows) == (3, 2)
