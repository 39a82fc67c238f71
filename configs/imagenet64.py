"""ImageNet, downsampled to 64x64 (van den Oord et al. 2016), with CelebA 64's model.

    nvae-train --config=imagenet64 --workdir=runs/imagenet64

Not from the paper, which has ImageNet at 32x32 only: no published score. The model is CelebA's at the same size, the
length and the warm-up of the run are ImageNet 32's; nobody has trained it. Hardware: CelebA's run took 8 V100 GPUs
and 92 hours, 16 images a GPU (128 a step); this one is four times as many images.
Data: as of ImageNet 32 (configs/imagenet32.py) with train_64x64.tar (12,112,588,800 bytes) and valid_64x64.tar
(477,255,680), or unpacked: --config.data.source=folder --config.data.path=FOLDER --config.data.train_split=train_64x64
--config.data.test_split=valid_64x64 --config.data.cache=CACHE. The images take 15.7 GB, of memory or of a disk.
"""

from nvae_tf.presets import config_like


def get_config():
    config = config_like("celeba64", "imagenet64")
    config.optimizer.warmup_epochs = 1.0
    config.train.epochs = 45
    return config.lock()
