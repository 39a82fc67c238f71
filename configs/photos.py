"""Patches of 32x32 from scikit-learn's two photographs: a small model of color images, to try things with.

    nvae-train --config=photos --workdir=runs/photos

Hardware and time: 6 to 9 minutes on two cores of an AMD EPYC, which others used too. The data comes with scikit-learn:
no network.
Score: 3.7 bits/dim (NELBO on the 350 test patches; 3.67 to 3.76 in three runs on the way to this version), measured
with this configuration. The histogram of each channel, which knows nothing of a pixel's neighbors, needs 7.48. Test
patches are from other parts of the same photographs, and smoother than the 6,100 for training (4.4 bits/dim). Samples
are clouds of the right colors.

Two scales (16x16, 8x8) of two groups each, 539,608 weights.
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("photos")
    config.model.update(num_latent_scales=2, num_groups_per_scale=2)
    config.model.update(num_channels_encoder=16, num_channels_decoder=16)
    config.model.update(num_preprocess_cells=1, num_cells_per_group_encoder=1, num_cells_per_group_decoder=1)
    config.optimizer.warmup_epochs = 0.5
    config.train.update(batch_size=16, steps=1600)
    config.train.update(evaluate_every_steps=400, sample_every_steps=400, checkpoint_every_steps=400)
    return config.lock()
