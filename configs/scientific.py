"""Images of an instrument, noisy and never clean: the signal, learned from a folder of TIFF files alone.

    nvae-inspect-data --config=scientific --config.data.path=stacks --config.data.range=2000,5000
    nvae-train --config=scientific --config.data.path=stacks --config.data.range=2000,5000 --workdir=runs/stacks
    nvae-generate denoise --workdir=runs/stacks --input=stack.tif --samples=64 --output=denoised.tif

data.range is what is dark and bright for the model, about the least and the largest number without the noise; it must
be given. Crops of 64x64 are cut at random, and Gaussian noise is estimated; docs/scientific.md has other noise, and
how to go on. Hardware: a CPU will do for so small a model: three scales (32x32, 16x16, 8x8) of 2, 1 and 1 groups, none
at the images' own resolution, where latents would carry the noise.
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("own_images")
    config.data.update(name="scientific", source="tiff", crop="random", noise="gaussian", height=64, width=64)
    config.model.update(num_latent_scales=3, num_groups_per_scale=2, adaptive_groups=True, num_latent_per_group=10)
    config.model.update(num_channels_encoder=16, num_channels_decoder=16)
    config.model.update(num_preprocess_cells=1, num_cells_per_group_encoder=1)
    config.model.update(num_postprocess_cells=1, num_cells_per_group_decoder=1)
    config.train.update(batch_size=16, steps=1500)
    return config.lock()
