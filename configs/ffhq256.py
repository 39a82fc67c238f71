"""FFHQ at 256x256 with 5 bits, as published (Vahdat & Kautz 2020, table 6): CelebA HQ's model, regularised more.

    python -m train.main --config=configs/ffhq256.py --workdir=runs/ffhq256

Published run: 24 V100 GPUs, 160 hours, 4 images a GPU (96 a step), 330,798,664 parameters.
Score to see: 0.69 bits/dim on the validation images (table 1 of the paper, NVAE with flows).
DATALINE
"""

from ml_collections import ConfigDict

from configs import celebahq256


def get_config() -> ConfigDict:
    config = celebahq256.get_config().unlock()
    config.data.name = "ffhq256"
    config.objective.regularisation = 1e-1
    config.optimizer.learning_rate = 8e-3
    config.train.epochs = 200
    return config.lock()
