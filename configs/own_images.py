"""Your own images: whatever lies at --config.data.path.

    nvae-inspect-data --config=own_images --config.data.path=my_pictures
    nvae-train --config=own_images --config.data.path=my_pictures --workdir=runs/mine
    nvae-train --config=own_images --config.data.path=my_pictures --config.size=tiny --workdir=runs/mine

The path is a folder of pictures (PNG, JPEG, WebP, BMP, GIF, TIFF; any tree of sub-folders), a .npy or .npz file, or a
folder of IDX files; with --config.data.source=tfds --config.data.source_name=NAME the images come from TensorFlow
Datasets. Their size and channels (1 to 4) are found by looking; models see 8 bits (data.num_bits). Pictures with other
channels or bits than most are converted (data.convert). Where they have different sizes, say what to do:

    --config.data.resize=crop --config.data.height=64      (or stretch; data.width too where it is another)

A tenth of the images is held out for testing (data.test_fraction), unless there are folders train/ and test/.
`nvae-train --config=own_images --help` lists data.*; docs/data.md says what each source takes.

Hardware and time: one GPU for images of 64x64, hours to days; the score to see depends on the images. The model is
a middling one: three scales of 8, 4 and 2 groups. --config.size=tiny or small is for CPUs (docs/training.md has
minutes); --config.size=published is the paper's model for images up to 32x32 (configs/cifar10.py), up to 64x64
(configs/celeba64.py), or larger (configs/celebahq256.py, there with 5 bits).
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("own_images")
    config.model.update(num_latent_scales=3, num_groups_per_scale=8, adaptive_groups=True)
    config.model.update(num_channels_encoder=32, num_channels_decoder=32)
    config.train.batch_size = 16
    return config.lock()
