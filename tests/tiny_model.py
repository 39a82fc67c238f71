"""Settings of the smallest model of binary images that has a hierarchy: for tests that need any model."""

from nvae_tf.config import ModelConfig

TINY = dict(
    image_height=4,
    image_width=4,
    image_channels=1,
    num_bits=1,
    likelihood="bernoulli",
    num_latent_scales=2,
    num_groups_per_scale=1,
    num_latent_per_group=2,
    num_channels_encoder=2,
    num_channels_decoder=2,
    num_preprocess_blocks=0,
    num_postprocess_blocks=0,
    num_cells_per_group_encoder=1,
    num_cells_per_group_decoder=1,
)


def tiny_config(**changes) -> ModelConfig:
    """The settings with some of them changed."""
    return ModelConfig(**TINY | changes)
