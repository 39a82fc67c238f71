"""FFHQ at 256x256 with 5 bits, as published (Vahdat & Kautz 2020, table 6): CelebA HQ's model, regularized more.

    nvae-train --config=ffhq256 --workdir=runs/ffhq256 --config.data.path=FOLDER

Published run: 24 V100 GPUs, 160 hours, 4 images a GPU (96 a step), 330,798,664 parameters.
Score to see: 0.69 bits/dim on the validation images (table 1 of the paper, NVAE with flows).
Data: FOLDER has the sub-folders train/ (63,000 PNG files) and test/ (7,000), or all of them in any sub-folders, of
which a tenth is held out then. `python download_ffhq.py --images` of https://github.com/NVlabs/ffhq-dataset (Karras et
al. 2019) fetches 70,000 PNG files of 1024x1024, 89 GB, which are scaled to 256x256: add --config.data.cache=CACHE. Each
picture has a license of its own besides. The paper does not say which 63,000 pictures it trained on, nor how they were
scaled, so scores are not exactly comparable.
"""

from nvae_tf.presets import config_like


def get_config():
    config = config_like("celebahq256", "ffhq256")
    config.objective.regularization = 1e-1
    config.optimizer.learning_rate = 8e-3
    config.train.epochs = 200
    return config.lock()
