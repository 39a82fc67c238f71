"""LSUN churches at 64x64, with CelebA 64's model.

    nvae-train --config=lsun_church64 --workdir=runs/lsun_church64 --config.data.path=FOLDER

Not one of the paper's sets: no published score. Hardware: CelebA's run took 8 V100 GPUs and 92 hours, 16 images a GPU
(128 a step); this one is a quarter shorter. Nobody has trained it.
Data: 126,227 pictures of Yu et al. (2015, https://github.com/fyu/lsun), as LSUN's bedrooms (configs/lsun_bedroom64.py)
from church_outdoor_train_lmdb.zip (2.4 GB) and church_outdoor_val_lmdb.zip of http://dl.yf.io/lsun/scenes/.
"""

from nvae_tf.presets import config_like


def get_config():
    return config_like("celeba64", "lsun_church64").lock()
