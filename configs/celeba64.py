"""CelebA at 64x64, as published (Vahdat & Kautz 2020, table 6).

    nvae-train --config=celeba64 --workdir=runs/celeba64

Published run: 8 V100 GPUs, 92 hours, 16 images a GPU (128 a step), 153,281,364 parameters.
Score to see: 2.03 bits/dim on the test images (table 1 of the paper, NVAE with flows).
Data: CelebA's aligned faces, http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, for non-commercial research, through
TensorFlow Datasets at the first run (1.5 GB). They lie on Google Drive, which often refuses; then the checksum is wrong
(https://github.com/tensorflow/datasets/issues/1482). In that case fetch img_align_celeba.zip, list_eval_partition.txt,
list_attr_celeba.txt, list_landmarks_align_celeba.txt and identity_CelebA.txt with a browser into downloads/manual of
~/tensorflow_datasets. Or sort the unpacked pictures by list_eval_partition.txt (0, 1, 2) into FOLDER/train,
FOLDER/validation and FOLDER/test: --config.data.source=folder --config.data.path=FOLDER --config.data.cache=CACHE. The
square from (15, 40) to (163, 188) of each picture is scaled to 64x64.
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("celeba64")
    config.model.num_latent_scales = 3
    config.model.num_groups_per_scale = 20
    config.model.adaptive_groups = True
    config.model.num_channels_encoder = 64
    config.model.num_channels_decoder = 64
    config.model.num_flows = 1
    config.objective.regularization = 1e-1
    config.train.batch_size = 16
    config.train.epochs = 90
    return config.lock()
