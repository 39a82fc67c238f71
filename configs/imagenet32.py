"""ImageNet, downsampled to 32x32 (van den Oord et al. 2016), as published (Vahdat & Kautz 2020, table 6).

    nvae-train --config=imagenet32 --workdir=runs/imagenet32

Published run: 24 V100 GPUs, 70 hours, 24 images a GPU (576 a step), 268,509,444 parameters.
Score to see: 3.92 bits/dim on the validation images (table 1 of the paper, NVAE with flows).
Data: https://github.com/tensorflow/datasets/issues/4662 names copies of train_32x32.tar (4,113,018,880 bytes) and
valid_32x32.tar (161,474,560), under the terms of https://www.image-net.org/download.php; their home,
http://image-net.org/small/download.php, is gone. Put them into downloads/manual of ~/tensorflow_datasets, or unpack
both into FOLDER: --config.data.source=folder --config.data.path=FOLDER --config.data.train_split=train_32x32
--config.data.test_split=valid_32x32 --config.data.cache=CACHE. The images take 3.9 GB of memory. The "Imagenet32" of
Chrabaszcz et al. 2017 (imagenet_resized/32x32) was scaled by another method: its scores can't be compared
(https://github.com/Rayhane-mamah/Efficient-VDVAE/issues/6).
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("imagenet32")
    config.model.num_latent_scales = 1
    config.model.num_groups_per_scale = 28
    config.model.num_channels_encoder = 192
    config.model.num_channels_decoder = 192
    config.model.num_flows = 1
    config.objective.regularization = 1e-2
    config.objective.regularization_initial = 1.0
    config.objective.anneal_regularization = True
    config.optimizer.warmup_epochs = 1.0
    config.train.batch_size = 24
    config.train.epochs = 45
    return config.lock()
