"""The demo: scikit-learn's handwritten digits as bitmaps of 16x16 pixels.

    nvae-train --config=digits --workdir=runs/digits

Hardware and time: two CPU cores, some three minutes. The data comes with scikit-learn: no network.
Score: 36.0 nats (NELBO on the 360 test digits), measured with this configuration; a mixture of Bernoullis, the
usual baseline, has 57.0 (`python -m examples.digits mixture_of_bernoullis`).

Three scales (8x8, 4x4, 2x2) of one group each. Squeeze-excite is off: on a 2x2 image it has little to squeeze.
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("digits")
    config.model.update(num_latent_scales=3, num_groups_per_scale=1, squeeze_excite=False)
    config.model.update(num_channels_encoder=8, num_channels_decoder=8)
    config.model.update(num_preprocess_cells=1, num_cells_per_group_encoder=1)
    config.optimizer.learning_rate = 3e-2
    config.train.update(batch_size=128, steps=1000)
    config.train.update(evaluate_every_steps=200, sample_every_steps=200, checkpoint_every_steps=200)
    return config.lock()
