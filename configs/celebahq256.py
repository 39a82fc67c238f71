"""CelebA HQ at 256x256 with 5 bits, as published (Vahdat & Kautz 2020, table 6).

    nvae-train --config=celebahq256 --workdir=runs/celebahq256 --config.data.path=FOLDER

Published run: 24 V100 GPUs, 94 hours, 4 images a GPU (96 a step), 330,798,664 parameters.
Score to see: 0.70 bits/dim on the validation images (table 1 of the paper, NVAE with flows).
Data: made from CelebA by Karras et al. (2018), with CelebA's terms. FOLDER has the sub-folders train/ (27,000 PNG
files) and validation/ (3,000) that `python examples/unpack_celebahq.py celeba-tfr FOLDER` unpacks from Glow's
celeba-tfr.tar, 4 to 6 GB (https://github.com/openai/glow). Its address there answered 404 in July 2022
(https://github.com/NVlabs/denoising-diffusion-gan/issues/13); several projects name
https://openaipublic.azureedge.net/glow-demo/data/celeba-tfr.tar instead.
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("celebahq256")
    config.model.num_latent_scales = 5
    config.model.num_groups_per_scale = 16
    config.model.adaptive_groups = True
    config.model.min_groups_per_scale = 4
    config.model.num_channels_encoder = 30
    config.model.num_channels_decoder = 30
    config.model.num_flows = 2
    config.objective.regularization = 1e-2
    config.objective.regularization_initial = 1.0
    config.objective.anneal_regularization = True
    config.train.batch_size = 4
    config.train.epochs = 300
    return config.lock()
