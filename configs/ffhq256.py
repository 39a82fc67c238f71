"""FFHQ at 256x256 with 5 bits, as published (Vahdat & Kautz 2020, table 6).

    python -m train.main --config=configs/ffhq256.py --workdir=runs/ffhq256

Published run: 24 V100 GPUs, 160 hours, 4 images a GPU (96 a step), 330,798,664 parameters.
Score to see: 0.69 bits/dim on the validation images (table 1 of the paper, NVAE with flows).
Data: architecture, objective and schedule are complete, but the pipeline of this data set comes with a later
version; until then training stops at once, saying that there is no such data set.
"""

from ml_collections import ConfigDict

from configs.common import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "ffhq256"
    config.model.image_height = 256
    config.model.image_width = 256
    config.model.num_bits = 5
    config.model.num_latent_scales = 5
    config.model.num_groups_per_scale = 16
    config.model.adaptive_groups = True
    config.model.min_groups_per_scale = 4
    config.model.num_channels_encoder = 30
    config.model.num_channels_decoder = 30
    config.model.num_flows = 2
    config.objective.regularisation = 1e-1
    config.objective.regularisation_initial = 1.0
    config.objective.anneal_regularisation = True
    config.optimizer.learning_rate = 8e-3
    config.train.batch_size = 4
    config.train.epochs = 200
    return config.lock()
