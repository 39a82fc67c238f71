"""The demo: scikit-learn's handwritten digits, 8x8 pixels, binarised afresh at every access.

    python -m train.main --config=configs/digits.py --workdir=runs/digits

Hardware and time: two CPU cores, some three minutes. The data comes with scikit-learn: no network.
Score: 22.7 nats (NELBO on the 360 test digits), measured with this configuration; a mixture of Bernoullis, the usual
baseline, is some nats worse (`python -m benchmarks.mixture_of_bernoullis`). The README has the figures.

Three scales (4x4, 2x2, 1x1) of one group each. Squeeze-excite is off: on a 1x1 image it has nothing to squeeze.
"""

from ml_collections import ConfigDict

from configs.common import config_for_data


def get_config() -> ConfigDict:
    config = config_for_data("digits")
    config.model.num_latent_scales = 3
    config.model.num_groups_per_scale = 1
    config.model.num_channels_encoder = 8
    config.model.num_channels_decoder = 8
    config.model.num_preprocess_cells = 1
    config.model.num_cells_per_group_encoder = 1
    config.model.squeeze_excite = False
    config.optimizer.learning_rate = 3e-2
    config.train.batch_size = 128
    config.train.steps = 1600
    config.train.evaluate_every_steps = 200
    config.train.sample_every_steps = 400
    config.train.checkpoint_every_steps = 400
    return config.lock()
