"""The table of `NVAE.summary`: the hierarchy of a model's latents, with channels and weights."""

import math
from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING:
    from nvae_tf.models.nvae import NVAE

_COLUMNS = ("part", "groups", "latent of a group", "channels", "weights, encoder", "weights, decoder")


def lines_of_summary(model: "NVAE") -> list[str]:
    """A line about the model, then a table with a line for each scale, from the top, and for what is around them."""
    config, plan = model.config, model.plan
    size = f"{config.image_height}x{config.image_width}x{config.image_channels}"
    of_classes = f", {config.num_classes} classes" if config.num_classes else ""
    head = f"NVAE of images {size} of {config.num_bits} bits{of_classes}, likelihood {config.likelihood}"
    rows = [_COLUMNS]
    encoders = [*reversed(model.bottom_up.scales)] or [None] * len(plan.scales)
    for index, (scale, below, above) in enumerate(zip(plan.scales, encoders, model.top_down.scales, strict=True)):
        place = f"{scale.height}x{scale.width}"
        groups = f"{scale.groups[0]}-{scale.groups[-1]}" if len(scale.groups) > 1 else str(scale.groups[0])
        channels = f"{scale.encoder_channels} / {scale.decoder_channels}"
        down = [layer for layer in (below, model.bottom_up.top if index == 0 else None) if layer is not None]
        latent = f"{place}x{config.num_latent_per_group}"
        rows.append((f"scale {place}", groups, latent, channels, _weights_of(*down), _weights_of(above)))
    before = _weights_of(model.bottom_up.stem, *model.bottom_up.preprocess)
    after = _weights_of(*model.top_down.postprocess, model.top_down.image)
    ends = f"{config.num_channels_encoder} / {config.num_channels_decoder}"
    rows.append((f"image {size}", "", "", ends, before, after))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return [f"{head}: {plan.num_groups} latent groups, {_weights_of(model)} weights", *map(str.rstrip, padded)]


def _weights_of(*layers: keras.layers.Layer) -> str:
    return f"{sum(math.prod(weight.shape) for layer in layers for weight in layer.trainable_weights):,}"
