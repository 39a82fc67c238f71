"""draft

python -m train.main --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from configs.common import config_for_data


def get_config() -> ConfigDict:
    config = config_for_data("digits")
    config.model.num_latent_scales = 2
    config.model.num_groups_per_scale = 2
    config.model.num_channels_encoder = 16
    config.model.num_channels_decoder = 16
    config.model.num_preprocess_blocks = 1
    config.model.num_postprocess_blocks = 1
    config.train.batch_size = 128
    config.train.steps = 3000
    return config.lock()
