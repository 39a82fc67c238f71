"""Patches."""

from ml_collections import ConfigDict

from configs.common import config_for_data


def get_config() -> ConfigDict:
    config = config_for_data("photos")
    config.model.num_latent_scales = 2
    config.model.num_groups_per_scale = 2
    config.model.num_channels_encoder = 16
    config.model.num_channels_decoder = 16
    config.model.num_preprocess_cells = 1
    config.model.num_cells_per_group_encoder = 1
    config.model.num_cells_per_group_decoder = 1
    config.optimizer.warmup_epochs = 0.5
    config.train.batch_size = 16
    config.train.steps = 1600
    config.train.evaluate_every_steps = 400
    config.train.sample_every_steps = 400
    config.train.checkpoint_every_steps = 400
    return config.lock()
