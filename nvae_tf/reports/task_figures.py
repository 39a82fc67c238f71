"""Figures of outlier scores and of restored images, as `nvae_tf.reports.figures` makes them: arrays in, `Figure` out.

Scores are `{set: {score: [images]}}`; the first set is that of images like the training images.
"""

from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nvae_tf.reports import figures
from nvae_tf.reports.figures import FAINT, INK, LINES, RULE, Array, Provenance, Row

_TITLES = {"mahalanobis": "Mahalanobis distance", "kl": "sum of the KLs, in nats"}
# The standard deviation that is white; values in [0, 1] have no larger one.
_LARGEST_DEVIATION = 0.5
Scores = Mapping[str, Mapping[str, Array]]


def histograms(scores: Scores, about: Provenance, width: int = 1000) -> Figure:
    """A histogram of each score, one line for each set; the histogram of the first set is filled."""

    def draw(axes: Axes, name: str) -> None:
        values = np.concatenate([scores_of_set[name] for scores_of_set in scores.values()])
        # Outliers may have scores a hundred times as large.
        is_positive = values.min() > 0.0
        spaced = np.geomspace if is_positive else np.linspace
        edges = spaced(values.min(), max(values.max(), np.nextafter(values.min(), np.inf)), 41)
        for number, (scores_of_set, color) in enumerate(zip(scores.values(), _colors(scores), strict=True)):
            drawn, kind = scores_of_set[name], "step" if number else "stepfilled"
            axes.hist(drawn, edges, weights=np.full(len(drawn), 1 / len(drawn)), histtype=kind, color=color, lw=1.5)
        axes.set(xlabel=_TITLES[name], ylabel="share of the images")
        if is_positive:
            figures.make_logarithmic(axes, "x", edges)
        axes.xaxis.set_major_formatter("{x:,g}")

    return _side_by_side("Outlier scores", scores, scores, draw, about, width)


def roc_curves(scores: Scores, about: Provenance, width: int = 1000) -> Figure:
    """The share of detected outliers against the share of false alarms at every threshold, a line for each set."""
    from sklearn.metrics import roc_curve

    (own, inside), *others = scores.items()

    def draw(axes: Axes, name: str) -> None:
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=1.5)
        for number, ((_, outside), color) in enumerate(zip(others, _colors(scores)[1:], strict=True)):
            values = np.concatenate([inside[name], outside[name]])
            alarms, hits, _ = roc_curve(np.repeat([0, 1], [len(inside[name]), len(outside[name])]), values)
            # A line is wider than the next, so both can be seen where they meet at the top.
            axes.plot(alarms, hits, color=color, linewidth=1.5 + 0.8 * (len(others) - 1 - number))
        axes.set(xlabel=f"{own} above the threshold", ylabel="outliers above it")
        axes.set_title(_TITLES[name], loc="left", fontsize=axes.xaxis.label.get_size(), color=FAINT)

    return _side_by_side("How many outliers a score finds", dict(others), scores, draw, about, width)


def maps(images: Mapping[str, tuple[Array, Array, Sequence[str]]], about: Provenance, width: int = 1000) -> Figure:
    """Images and maps of outlier scores: by set, images `[count, ...]`, maps `[count, height, width]` in nats per
    pixel, and a note on each image.
    """
    rows, colors = [], matplotlib.colormaps["magma"]
    columns = max(len(originals) for originals, _, _ in images.values())
    for name, (originals, nats, notes) in images.items():
        limit = max(float(nats.max()), 1e-12)
        rows.append(Row(name, originals, starts_part=True))
        in_colors = colors(np.clip(nats / limit, 0.0, 1.0))[..., :3]
        notes = [*notes, *[""] * (columns - len(notes))]
        rows.append(Row(f"KL, 0 to {limit:.2g} nats per pixel", in_colors, notes))
    text = "The images of each set with the highest score, which stands below them. "
    text += "The map: the KL of the groups of the largest scale, dark for none."
    return figures.image_figure("Where outlier scores come from", text, rows, about, width)


def _colors(scores: Scores) -> list[str]:
    """The color of each set; the first set is pale."""
    return [RULE, *(LINES[number % len(LINES)] for number in range(len(scores) - 1))]


def _side_by_side(
    title: str, shown: Scores, scores: Scores, draw: Callable[[Axes, str], None], about: Provenance, width: int
) -> Figure:
    """Axes for each score, side by side (on a phone below each other), and a legend of the sets that are shown."""
    names = [name for name in _TITLES if name in next(iter(scores.values()))]
    columns = len(names) if width >= 700 else 1
    heights = [20.0] * (len(names) // columns) + [1.5 * len(shown)]
    figure, first, size = figures.chart(title, about, width, sum(heights) + 5, (len(heights), columns))
    first.get_gridspec().set_height_ratios(heights)
    for axes, name in zip(figure.axes, names, strict=False):
        draw(axes, name)
    # The last row of axes is the place of the legend.
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    named = dict(zip(scores, _colors(scores), strict=True))
    style = dict(loc="upper left", frameon=False, borderpad=0.0, borderaxespad=0.0, fontsize=size, labelcolor=INK)
    figure.axes[len(names)].legend(handles=[Patch(color=named[name], label=name) for name in shown], **style)
    return figure


def restorations(
    measured: Array, restored: Array, originals: Array | None, deviation: Array | None, about: Provenance, width=1000
) -> Figure:
    """A row for each image: its measurement, what was restored, the original, and the deviation of every pixel.

    Measurements that are smaller by a whole factor are enlarged. Originals, and the standard deviation of the pixels
    over several restorations, are left out where they are not known.
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
        text = "The deviation of a pixel is its standard deviation over restorations that began elsewhere; "
        text += f"white is {_LARGEST_DEVIATION}."
    rows = [Row("", images) for images in zip(*parts.values(), strict=True)]
    return figures.image_figure("Restored images", text, rows, about, width, [(name, 1) for name in parts])
