"""The figure of restored images, see `nvae_tf.reports.figures`."""

import numpy as np
from matplotlib.figure import Figure

from nvae_tf.reports.figures import Array, Provenance, Row, image_figure

# Shown as white; values in [0, 1] have no larger one.
_LARGEST_DEVIATION = 0.5


def restorations(
    measured: Array, restored: Array, originals: Array | None, deviation: Array | None, about: Provenance, width=1000
) -> Figure:
    """A row for each image: its measurement, what was restored, the original, and the deviation of every pixel.

    Measurements that are smaller by a whole number are enlarged. Originals are left out where they are not known, as is
    the standard deviation of the pixels over several restorations.
    """
    height, columns, channels = restored.shape[1:]
    measured = measured.repeat(height // measured.shape[1], axis=1).repeat(columns // measured.shape[2], axis=2)
    parts = {"measured": measured, "restored": restored}
    if originals is not None:
        parts["original"] = originals
    text = ""
    if deviation is not None:
        colors = deviation[..., : channels - 1 + channels % 2].mean(axis=-1, keepdims=True) / _LARGEST_DEVIATION
        parts["deviation"] = np.repeat(colors, channels, axis=-1)
        if channels in (2, 4):
            parts["deviation"][..., -1] = 1.0
        text = f"The deviation of a pixel is that of restorations that began elsewhere; white is {_LARGEST_DEVIATION}."
    rows = [Row("", images) for images in zip(*parts.values(), strict=True)]
    return image_figure("Restored images", text, rows, about, width, [(name, 1) for name in parts])
