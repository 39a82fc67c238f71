"""ImageNet, downsampled to 32x32 (van den Oord et al. 2016), as published (Vahdat & Kautz 2020, table 6).

    nvae-train --config=imagenet32 --workdir=runs/imagenet32

Published run: 24 V100 GPUs, 70 hours, 24 images a GPU (576 a step), 268,509,444 parameters.
Score to see: 3.92 bits/dim on the validation images (table 1 of the paper, NVAE with flows).
Data: train_32x32.tar and valid_32x32.tar, whose address no longer answers: docs/data.md says how to use copies of
them. The images take 3.9 GB of memory. The "Imagenet32" of Chrabaszcz et al. 2017 is another set, with other scores.
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("imagenet32")
    config.model.num_latent_scales = 1
    config.model.num_groups_per_scale = 28
    config.model.num_channels_encoder = 192
    config.model.num_channels_decoder = 192
    config.model.num_flows = 1
    config.objective.regularisation = 1e-2
    config.objective.regularisation_initial = 1.0
    config.objective.anneal_regularisation = True
    config.optimizer.warmup_epochs = 1.0
    config.train.batch_size = 24
    config.train.epochs = 45
    return config.lock()
