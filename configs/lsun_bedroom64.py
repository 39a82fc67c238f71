r"""LSUN bedrooms at 64x64, with CelebA 64's model.

    nvae-train --config=lsun_bedroom64 --workdir=runs/lsun_bedroom64 \
        --config.data.path=FOLDER --config.data.cache=CACHE

Not one of the paper's sets: no published score. Hardware: CelebA's run took 8 V100 GPUs and 92 hours, 16 images a GPU
(128 a step); this one is twice as many images, in 10 epochs. Nobody has trained it.
Data: 3,033,042 pictures of Yu et al. (2015, https://github.com/fyu/lsun), which TensorFlow Datasets can't prepare with
this TensorFlow. Unpack bedroom_train_lmdb.zip (46 GB) and bedroom_val_lmdb.zip of http://dl.yf.io/lsun/scenes/, and
write their pictures (pip install lmdb):

    python examples/unpack_lmdb.py bedroom_train_lmdb FOLDER/train
    python examples/unpack_lmdb.py bedroom_val_lmdb FOLDER/validation

The shorter side is scaled from 256 to 64, and the longer side cut evenly. Glow and RealNVP used random pieces of larger
pictures: scores can't be compared. The decoded images take 37 GB: name a CACHE on a disk.
"""

from nvae_tf.presets import config_like


def get_config():
    config = config_like("celeba64", "lsun_bedroom64")
    # Eighteen times CelebA's images: fewer epochs, and a warm-up of nearly as many steps.
    config.optimizer.warmup_epochs = 0.25
    config.train.epochs = 10
    return config.lock()
