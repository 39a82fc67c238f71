"""The text of `NVAE.summary`."""

import math
from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING:
    from nvae_tf.models.nvae import NVAE


def summary_lines(model: "NVAE") -> list[str]:
    """A line about the model, one for each scale, from the top, and one for what is around the scales."""
    config, plan, encoder, decoder = model.config, model.plan, model.bottom_up, model.top_down
    size = f"{config.image_height}x{config.image_width}x{config.image_channels}"
    classes = f", {config.num_classes} classes" if config.num_classes else ""
    head = f"NVAE of images {size} of {config.num_bits} bits{classes}, likelihood {config.likelihood}"
    lines = [f"{head}: {plan.num_groups} latent groups, {_count(model)} weights (encoder / decoder):"]
    below = [[scale] for scale in reversed(encoder.scales)] or [[]]
    below[0].append(encoder.top)
    for scale, encoders, above in zip(plan.scales, below, decoder.scales, strict=True):
        groups = f"scale {scale.height}x{scale.width}: groups {scale.groups[0]}-{scale.groups[-1]}"
        channels = f"{config.num_latent_per_group} latent channels, channels {scale.encoder_channels} / "
        lines.append(f"{groups}, {channels}{scale.decoder_channels}, weights {_count(*encoders)} / {_count(above)}")
    ends = _count(encoder.stem, *encoder.preprocess), _count(*decoder.postprocess, decoder.image)
    channels = f"channels {config.num_channels_encoder} / {config.num_channels_decoder}"
    return [*lines, f"image {size}: {channels}, weights {ends[0]} / {ends[1]}"]


def _count(*layers: keras.layers.Layer) -> str:
    return f"{sum(math.prod(weight.shape) for layer in layers for weight in layer.trainable_weights):,}"
