"""LSUN churches at 64x64, with CelebA 64's model.

    nvae-train --config=lsun_church64 --workdir=runs/lsun_church64 --config.data.path=FOLDER

Not one of the paper's sets: no published score. Hardware: CelebA's run took 8 V100 GPUs and 92 hours, 16 images a GPU
(128 a step); this one is a quarter shorter. Nobody has trained it.
Data: 126,227 pictures in an LMDB file, 2.4 GB, to be unpacked into FOLDER/train and FOLDER/validation: docs/data.md has
a script. TensorFlow Datasets can't prepare LSUN with this TensorFlow.
"""

from nvae_tf.presets import config_like


def get_config():
    return config_like("celeba64", "lsun_church64").lock()
