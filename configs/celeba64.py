"""CelebA at 64x64, as published (Vahdat & Kautz 2020, table 6).

    nvae-train --config=celeba64 --workdir=runs/celeba64

Published run: 8 V100 GPUs, 92 hours, 16 images a GPU (128 a step), 153,281,364 parameters.
Score to see: 2.03 bits/dim on the test images (table 1 of the paper, NVAE with flows).
Data: CelebA's aligned faces, through TensorFlow Datasets at the first run (1.5 GB). They lie on Google Drive, which
often refuses: docs/data.md says which files to fetch by hand, and how to train from a folder of the pictures.
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("celeba64")
    config.model.num_latent_scales = 3
    config.model.num_groups_per_scale = 20
    config.model.adaptive_groups = True
    config.model.num_channels_encoder = 64
    config.model.num_channels_decoder = 64
    config.model.num_flows = 1
    config.objective.regularisation = 1e-1
    config.train.batch_size = 16
    config.train.epochs = 90
    return config.lock()
