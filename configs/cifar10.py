"""CIFAR-10, as published (Vahdat & Kautz 2020, table 6).

    nvae-train --config=cifar10 --workdir=runs/cifar10
    nvae-evaluate --workdir=runs/cifar10 --importance_samples=1000

Published run: 8 V100 GPUs, 55 hours, 32 images a GPU (256 a step), 130,852,480 parameters.
Score to see: 2.91 bits/dim on the test images (table 1 of the paper, NVAE with flows).
One GPU with this config makes steps of 32 images, an eighth of what was published.
Data: through TensorFlow Datasets, at the first run, 170 MB; from https://www.cs.toronto.edu/~kriz/cifar.html. A file
cifar-10-binary.tar.gz in its folder downloads/manual is used too.
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("cifar10")
    config.model.update(num_latent_scales=1, num_groups_per_scale=30, num_flows=1)
    config.model.update(num_channels_encoder=128, num_channels_decoder=128)
    config.train.update(batch_size=32, epochs=400)
    return config.lock()
