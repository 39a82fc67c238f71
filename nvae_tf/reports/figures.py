"""Figures for people: arrays in, a matplotlib `Figure` out, for every command, page and notebook.

Images are `[height, width, channels]` in [0, 1], or of unsigned integers; each of their pixels becomes a square of
whole pixels. Two channels are gray with alpha and four RGBA, shown over a checkerboard; of more channels the first
three are shown as RGB, or those that `Provenance` names. `width` is the width in pixels at which a figure will be
looked at: 400 on a phone, 1,000 in a text. It sets the size of the text. A figure with large images is wider.
"""

import io
import math
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from nvae_tf.evaluation.table import ACTIVE_FROM, active_units, digits
from nvae_tf.files import atomic_write
from nvae_tf.generation.image_grid import displayed, image_grid, write_png
from nvae_tf.progress import counted

INK, FAINT, RULE = "#1b1f24", "#59636e", "#d5dae0"
LINES = ("#0a63c4", "#c2410c", "#15803d", "#7e22ce", "#0f766e", "#be185d", "#92600a", "#4b5563")
_DPI = 128  # a power of two: sizes in pixels are exact as inches
_POINTS = 72 / _DPI
_MOST_CLASSES = 10  # columns with captions
_FRAME = (176, 180, 186, 255)
_SCORES = {"mahalanobis": "Mahalanobis distance", "kl": "sum of the KLs, in nats"}
Array, Shapes, Blocks = np.ndarray, Sequence[tuple[int, int, int]], Sequence[tuple[str, int]]
Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]
Scores = Mapping[str, Mapping[str, Array]]  # {set: {score: [images]}}; the first set is like the training images


class Provenance(NamedTuple):
    """What made the images of a figure: its last line and the metadata of its file. None for what does not apply."""

    model: str
    step: int | None = None
    temperature: float | Sequence[float] | None = None
    seed: int | None = None
    checkpoint_sha256: str | None = None
    command: str | None = None
    data: str | None = None  # where the originals, or what was measured, come from: "test images"
    channels: Sequence[int] | None = None  # those that are shown, if not by default: `data.display_channels`

    def metadata(self) -> dict[str, str]:
        """The entries of a PNG file's metadata."""
        values = self._asdict()
        for name in ("temperature", "channels"):
            if values[name] is not None:
                values[name] = ", ".join(map("{:g}".format, np.atleast_1d(values[name]))) or None
        return {name: str(value) for name, value in values.items() if value is not None}

    def caption(self) -> str:
        """`digits, step 1,000, temperature 0.7, seed 1, test images`."""
        step, values = "" if self.step is None else f", step {self.step:,}", self.metadata()
        parts = [f", {name} {values[name]}" for name in ("temperature", "seed") if name in values]
        return "".join([self.model, step, *parts, f", {self.data}" if self.data else ""])


class Row(NamedTuple):
    """A row of images, its label on the left, and a note below each image."""

    label: str
    images: Sequence[Array]
    notes: Sequence[str] = ()
    starts_part: bool = False


def samples(images: Array, about: Provenance, columns=None, width=1000, title="", classes: Sequence = ()) -> Figure:
    """Images drawn by a model, `columns` in a row; None for a nearly square grid.

    `classes` are the names of the classes that the images take in turn: a caption over each column, if they fit a row.
    """
    kinds = len(classes) if len(classes) <= _MOST_CLASSES else 0
    columns = columns or max(1, kinds) * max(1, math.ceil(math.sqrt(len(images))) // max(1, kinds))
    captions = [(name, 1) for name in classes] * (columns // kinds) if kinds > 1 and columns % kinds == 0 else ()
    title = title or f"{counted(len(images), 'sample')}, drawn by the model"
    return image_figure(title, "", _rows("", images, columns), about, width, captions)


def data_images(parts: Mapping[str, Array], about: Provenance) -> Figure:
    """Images of a data set by what they are ("test images"), as the model sees them, at most 10 in a row."""
    columns = min(10, _most_columns(next(iter(parts.values())), 1000))
    rows = [row for label, images in parts.items() for row in _rows(label, images, columns)]
    return image_figure("Images as the model sees them", "", rows, about)


def reconstructions(originals: Array, made: Array, about: Provenance, kept="", columns=10, width=1000) -> Figure:
    """Originals, each above its reconstruction, at most `columns` in a row; `kept` says which latents, if not all."""
    columns = min(columns, _most_columns(originals, width))
    rows = []
    for first in range(0, len(originals), columns):
        shown = slice(first, first + columns)
        rows += [Row("original", originals[shown], starts_part=True), Row("reconstruction", made[shown])]
    text = f"Below each original: what the model decodes from its latents{kept}."
    return image_figure("Originals and reconstructions", text, rows, about, width)


def nearest(drawn: Array, neighbors: Array, distances: Array, part: str, about: Provenance, width=1000) -> Figure:
    """Each sample beside the images `[samples, neighbors, ...]` of a part ("training") that are most like it."""
    lines = zip(drawn, neighbors, distances, strict=True)
    rows = [Row("", [one, *images], ["", *map("{:.3f}".format, numbers)]) for one, images, numbers in lines]
    blocks = [("sample", 1), (f"most similar {part} images, the nearest first", neighbors.shape[1])]
    text = "Below each neighbor: its mean squared difference from the sample; pixels are in [0, 1], and a copy has 0."
    return image_figure(f"Samples and the {part} images most like them", text, rows, about, width, blocks)


def interpolation(originals: Array, path: Array, steps: int, about: Provenance, width=1000) -> Figure:
    """A path through originals in `steps` steps from one to the next, a row for each, between both originals."""
    notes = ["", *(f"{step / steps:.2f}".rstrip("0").rstrip(".") for step in range(steps + 1)), ""]
    pairs = zip(originals[:-1], originals[1:], range(0, len(path) - 1, steps), strict=True)
    rows = [Row("", [a, *path[i : i + steps + 1], b], notes) for a, b, i in pairs]
    blocks = [("original", 1), ("decoded from the latents between", steps + 1), ("original", 1)]
    text = "Below each: its position between the latents of the left original (0) and of the right one (1)."
    return image_figure("From one image to another", text, rows, about, width, blocks)


def variants(
    originals: Array, made: Array, heading: str, text: str, about: Provenance, notes=(), title="Variants"
) -> Figure:
    """Each original beside variants of it `[originals, variants, ...]`, with a note below each variant."""
    rows = [Row("", [one, *images], notes and ["", *notes]) for one, images in zip(originals, made, strict=True)]
    return image_figure(title, text, rows, about, blocks=[("original", 1), (heading, made.shape[1])])


def group_decisions(images: Array, kept_groups: Sequence, num_groups: int, about: Provenance, width=1000) -> Figure:
    """Samples `[rows, columns, ...]`; all of row i have the latents of its first in the upper `kept_groups[i]`."""
    rows = [Row(redrawn(kept, num_groups), row) for kept, row in zip(kept_groups, images, strict=True)]
    blocks = [("sample", 1), ("the sample with the groups at the left redrawn", images.shape[1] - 1)]
    text = "What differs within a row is decided by the groups that are redrawn; group 0 is the coarsest."
    return image_figure("What the latent groups decide", text, rows, about, width, blocks)


def training_strip(images: Array, steps: Sequence[int], about: Provenance, width=1000) -> Figure:
    """Samples `[steps, columns, ...]` of the same noise after several steps of the training."""
    rows = [Row(f"step {step:,}", row) for step, row in zip(steps, images, strict=True)]
    return image_figure("Samples during training", "A column has the same noise at every step.", rows, about, width)


def kl_per_group(kl_nats: Array, latent_shapes: Shapes, about: Provenance, width=1000) -> Figure:
    """Bars of the KL of each latent group, in nats per image, with a color for each scale."""
    title = "KL of each latent group: how much it says about an image"
    figure, axes, size = _chart(title, about, width, 9 + 1.5 * len(kl_nats))
    scales = sorted({shape[:2] for shape in latent_shapes})
    colors = [LINES[scales.index(shape[:2]) % len(LINES)] for shape in latent_shapes]
    bars = axes.barh(_group_names(latent_shapes), kl_nats, color=colors)
    axes.bar_label(bars, fmt="{:.2f}", padding=4, fontsize=0.9 * size, color=INK)
    axes.set_xlabel("nats per image")
    axes.margins(x=0.15, y=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.invert_yaxis()
    return figure


def kl_per_channel(kl_nats: Array, latent_shapes: Shapes, about: Provenance, width=1000) -> Figure:
    """Colors for the KL of each latent channel `[groups, channels]`, the largest of a group first.

    It is the mean over images and positions, so that groups of different sizes can be compared.
    """
    positions = np.array([[height * width] for height, width, _ in latent_shapes])
    ordered = -np.sort(-np.asarray(kl_nats) / positions, axis=1)
    groups, channels = ordered.shape
    figure, axes, size = _chart("Use of the latent channels", about, width, 14 + 1.5 * groups)
    # The colors end where a channel says nothing, and where few say more.
    mesh = axes.pcolormesh(ordered, norm=LogNorm(1e-3, 10.0, clip=True), edgecolors="face", linewidth=0.3)
    active = zip(_group_names(latent_shapes), active_units(kl_nats, latent_shapes), strict=True)
    axes.set_yticks(np.arange(groups) + 0.5, [f"{name}: {count}" for name, count in active])
    shown = np.unique([1, *range(5, channels + 1, 5 * math.ceil(channels / 50))])
    axes.set_xticks(shown - 0.5, map(str, shown))
    axes.tick_params(length=0)
    axes.set_xlabel("channels of a group, the largest KL first")
    axes.set_title(f"at the left: active channels of a group, of {channels}", loc="left", fontsize=size, color=FAINT)
    axes.invert_yaxis()
    bar = figure.colorbar(mesh, orientation="horizontal", aspect=40, pad=0.5 / groups, format="{x:,g}")
    _style(bar.ax, size)
    bar.set_label(f"KL in nats per image and position; active above {ACTIVE_FROM:g}")
    return figure


def training_curves(title: str, unit: str, lines: Curves, width=1000) -> Figure:
    """Lines (steps, values) by their names, on the axes that show most; a value that is not finite is a gap.

    The names are the runs' where runs are compared. Axes are logarithmic where half of the points would lie along
    the bottom or the top of the chart; the steps alone where a value is not above 0.
    """
    figure, axes, size = _chart(title, None, width, 24 + 1.5 * len(lines))
    for (name, line), color in zip(lines.items(), LINES * len(lines), strict=False):
        label = f"{name}: {digits(line[1][-1], 5)} at step {line[0][-1]:,}"
        marker = {"marker": "o", "markersize": 4} if np.isfinite(line[1]).sum() <= 40 else {}
        axes.plot(*line, color=color, linewidth=1.5, label=label, **marker)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set(xlabel="training step", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    values = np.concatenate([np.asarray(line, float) for _, line in lines.values()])
    values, steps = values[np.isfinite(values)], [step for line, _ in lines.values() for step in line if step > 0]
    low, middle, high = np.quantile(values, (0.0, 0.5, 1.0)) if len(values) else (0.0, 0.0, 0.0)
    if steps and abs(2.0 * middle - low - high) > 0.9 * (high - low):
        _make_logarithmic(axes, "x", steps)
        if low > 0.0:
            _make_logarithmic(axes, "y", values)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_major_formatter("{x:,g}")
    figure.legend(handles=axes.lines, loc="outside lower left", frameon=False, fontsize=size, labelcolor=INK)
    return figure


def histograms(scores: Scores, about: Provenance) -> Figure:
    """A histogram of each outlier score, one line for each set; the histogram of the first set is filled."""
    figure, charts, colors = _score_charts("Outlier scores", scores, about)
    for name, axes in charts.items():
        values = np.concatenate([each[name] for each in scores.values()])
        # Outliers may have scores a hundred times as large.
        is_positive = values.min() > 0.0
        spaced = np.geomspace if is_positive else np.linspace
        edges = spaced(values.min(), max(values.max(), np.nextafter(values.min(), np.inf)), 41)
        for number, (images, color) in enumerate(colors.items()):
            drawn, kind = scores[images][name], "step" if number else "stepfilled"
            axes.hist(drawn, edges, weights=np.full(len(drawn), 1 / len(drawn)), histtype=kind, color=color, lw=1.5)
        axes.set(xlabel=_SCORES[name], ylabel="share of the images")
        if is_positive:
            _make_logarithmic(axes, "x", edges)
        axes.xaxis.set_major_formatter("{x:,g}")
    return figure


def roc_curves(scores: Scores, about: Provenance) -> Figure:
    """The share of detected outliers against the share of false alarms at every threshold, a line for each set."""
    from sklearn.metrics import roc_curve

    own, *others = scores
    figure, charts, colors = _score_charts("How many outliers a score finds", scores, about, own)
    for name, axes in charts.items():
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=1.5)
        for number, images in enumerate(others):
            parts = scores[own][name], scores[images][name]
            alarms, hits, _ = roc_curve(np.repeat([0, 1], list(map(len, parts))), np.concatenate(parts))
            # A line is wider than the next, so both can be seen where they meet at the top.
            axes.plot(alarms, hits, color=colors[images], linewidth=1.5 + 0.8 * (len(others) - 1 - number))
        axes.set(xlabel=f"{own} above the threshold", ylabel="outliers above it")
        axes.set_title(_SCORES[name], loc="left", fontsize=axes.xaxis.label.get_size(), color=FAINT)
    return figure


def probe_curves(labels: Sequence[int], accuracy: Mapping, about: Provenance) -> Figure:
    """The accuracy of each probe `{probe: {features: [accuracies]}}` by the number of labels, side by side."""
    figure, _, size = _chart("What frozen features tell of the classes", about, 1000, 27, len(accuracy))
    for axes, (probe, curves) in zip(figure.axes, accuracy.items(), strict=True):
        for (name, values), color in zip(curves.items(), LINES, strict=False):
            axes.plot(labels, values, color=color, linewidth=1.5, marker="o", markersize=4, label=name)
        axes.set(xlabel="labels", ylabel="accuracy on test images")
        axes.set_title(probe, loc="left", fontsize=size, color=FAINT)
        _make_logarithmic(axes, "x", labels)
        axes.xaxis.set_major_formatter("{x:,g}")
    figure.axes[-1].legend(loc="lower right", frameon=False, fontsize=size, labelcolor=INK)
    return figure


def maps(images: Mapping[str, tuple[Array, Array, Sequence[str]]], about: Provenance) -> Figure:
    """By set: images `[count, ...]`, maps of their outlier scores `[count, height, width]` in nats per pixel, notes."""
    rows, colors = [], matplotlib.colormaps["magma"]
    for name, (originals, nats, notes) in images.items():
        limit = max(float(nats.max()), 1e-12)
        in_colors = colors(np.clip(nats / limit, 0.0, 1.0))[..., :3]
        originals = displayed(originals, about.channels or ())
        rows += [Row(name, originals, notes, starts_part=True), Row(f"KL, 0 to {limit:.2g} nats per pixel", in_colors)]
    text = "The images of each set with the highest score, which stands below them. "
    text += "The map: the KL of the groups of the largest scale, dark for none."
    return image_figure("Where outlier scores come from", text, rows, about._replace(channels=None))


def restorations(measured: Array, restored: Array, originals, deviation, about, draws=tuple, done="restored") -> Figure:
    """A row for each image: its measurement, what was restored, the original, and the deviation of every pixel.

    Measurements that are smaller by a whole factor are enlarged. Originals, and the standard deviation of the pixels
    over several restorations, arrays too, are left out where they are None. `draws` is a function that returns some of
    these restorations, and `done` the word for what was done to the images.
    """
    height, columns, channels = restored.shape[1:]
    measured = measured.repeat(height // measured.shape[1], axis=1).repeat(columns // measured.shape[2], axis=2)
    parts, text = {"measured": measured, done: restored}, ""
    if originals is not None:
        parts["original"] = originals
    parts |= {f"draw {number}": draw for number, draw in enumerate(draws(), 1)}
    if deviation is not None:
        has_alpha = channels in (2, 4) and not (about and about.channels)
        colors = deviation[..., : channels - has_alpha].mean(axis=-1, keepdims=True)
        largest = max(colors.max(), 1e-6)
        parts["deviation"] = np.repeat(colors / largest, channels, axis=-1)
        if has_alpha:
            parts["deviation"][..., -1] = 1.0
        text = "The deviation of a pixel is its standard deviation over restorations from several draws; "
        text += f"white is {largest:.2g}, where 1 is the range of the values."
    rows = [Row("", images) for images in zip(*parts.values(), strict=True)]
    return image_figure(f"{done.capitalize()} images", text, rows, about, blocks=[(name, 1) for name in parts])


def _score_charts(title: str, scores: Scores, about: Provenance, unlisted="") -> tuple[Figure, dict, dict]:
    """A figure with a legend of all sets but `unlisted`, its axes by outlier score, and the color of each set."""
    colors = dict(zip(scores, [RULE, *LINES * len(scores)], strict=False))  # the first set is pale
    listed = [Patch(color=color, label=images) for images, color in colors.items() if images != unlisted]
    names = [name for name in _SCORES if name in next(iter(scores.values()))]
    figure, axes, size = _chart(title, about, 1000, 25 + 1.5 * len(listed), len(names))
    # Below the labels of the left axes.
    style = dict(loc="upper left", bbox_to_anchor=(0.0, 0.0), borderaxespad=3.5, frameon=False)
    axes.legend(handles=listed, fontsize=size, labelcolor=INK, **style)
    return figure, dict(zip(names, figure.axes, strict=True)), colors


def _rows(label: str, images: Array, columns: int) -> list[Row]:
    """Images in rows, the first with the label."""
    starts = range(0, len(images), columns)
    return [Row("" if first else label, images[first : first + columns], starts_part=not first) for first in starts]


def _most_columns(images: Array, width: int) -> int:
    """The largest number of images in a row at which each is a few letters wide."""
    return max(1, round(0.7 * width / max(3.0 * _text_size(width), images.shape[2])))


def redrawn(kept: int, num_groups: int) -> str:
    """Says which groups are redrawn where the upper `kept` groups are kept."""
    if kept in (0, num_groups):
        return "nothing redrawn" if kept else "all groups redrawn"
    return f"group {kept} redrawn" if kept == num_groups - 1 else f"groups {kept}\u2013{num_groups - 1} redrawn"


def _group_names(latent_shapes: Shapes) -> list[str]:
    return [f"group {group} ({height}×{width})" for group, (height, width, _) in enumerate(latent_shapes)]


def image_figure(
    title: str, text: str, rows: Sequence[Row], about: Provenance, width: int = 1000, blocks: Blocks = ()
) -> Figure:
    """Rows of images, with labels on the left, in blocks of columns, `(heading, columns)`, side by side."""
    shown = (about and about.channels) or ()
    rows = [row._replace(images=[displayed(np.asarray(image), shown) for image in row.images]) for row in rows]
    blocks = blocks or [("", max(len(row.images) for row in rows))]
    labels = [textwrap.fill(row.label, 16) for row in rows]
    height, native = np.shape(rows[0].images[0])[:2]
    size, scale = _text_size_and_scale(native, labels, blocks, width)
    # All in pixels.
    height, cell, line = height * scale, native * scale, round(1.25 * size)
    gap, part_gap = max(3, round(size / 3)), round(1.4 * size)
    pitch = math.ceil(max([cell, *(_text_width(note, 0.85 * size) for row in rows for note in row.notes)])) + gap
    lefts, headings, right = [], {}, 1
    for heading, count in blocks:
        headings[right] = _wrapped(heading, size, count * pitch - gap)
        lefts += [right + number * pitch + (pitch - gap - cell) // 2 for number in range(count)]
        right += max(count * pitch - gap, math.ceil(_text_width(headings[right], size))) + part_gap
    row_pitch = max(height, *(line * len(label.splitlines()) for label in labels)) + gap
    row_pitch += line * any(row.notes for row in rows)
    parts = np.cumsum([False, *(row.starts_part for row in rows[1:])])
    tops = (1 + row_pitch * np.arange(len(rows)) + (part_gap - gap) * parts).tolist()
    shape = tops[-1] + row_pitch, max(right - part_gap + 1, round(20 * size))
    figure = _figure(title, about, size, (right + width, shape[0] + width))
    axes, style = figure.subplots(), dict(fontsize=size * _POINTS, parse_math=False)
    _style(axes, size * _POINTS)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=gap * _POINTS, top=True, labeltop=True, labelbottom=False)
    axes.tick_params(axis="y", pad=size * _POINTS)
    axes.set_xticks([*headings], [*headings.values()], ha="left", **style)
    axes.set_yticks([top + height / 2 for top in tops], labels, **style)
    axes.set_title(_wrapped(text, size, shape[1]), loc="left", color=FAINT, **style)
    small = style | dict(fontsize=0.85 * size * _POINTS, color=FAINT, ha="center", va="top")
    for row, top in zip(rows, tops, strict=True):
        for note, left in zip(row.notes, lefts, strict=False):
            axes.text(left + cell / 2, top + height + 2, note, small)
    _paint(figure, rows, lefts, tops, height, scale, shape)
    return figure


def _paint(figure: Figure, rows: Sequence[Row], lefts, tops, height: int, scale: int, shape: tuple[int, int]) -> None:
    """Paints images of a height, each in a frame, on a canvas of this shape in pixels, the size that the axes get."""
    # Transparent beside the images, so white on white and dark on dark.
    canvas, places = np.zeros([*shape, 4], np.uint8), []
    for row, top in zip(rows, tops, strict=True):
        for image, left in zip(row.images, lefts, strict=False):
            pixels = _opaque(np.asarray(image), scale)
            bottom, right = top + height, left + pixels.shape[1]
            canvas[top - 1 : bottom + 1, left - 1 : right + 1] = _FRAME
            canvas[top:bottom, left:right, :3] = pixels
            places.append((left, top))
    (axes,) = figure.axes
    extent = axes.axis((0, shape[1], shape[0], 0))
    # Lines of text are broken where the figure ends, so their height follows from its width.
    for _ in range(2):
        figure.draw_without_rendering()
        around = figure.bbox.size - axes.bbox.size
        figure.set_size_inches(np.ceil(shape[::-1] + around - 0.01) / _DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    corner = np.rint(axes.bbox.min).astype(int)
    axes.set_position(np.divide([*corner, *shape[::-1]], np.tile(figure.bbox.size, 2)))
    axes.imshow(canvas, interpolation="none", aspect="auto", extent=extent)
    # For programs that read the images of a PNG file.
    places = np.array(places) + [corner[0], round(figure.bbox.height) - corner[1] - shape[0]]
    figure.places = " ".join(map(str, [scale, height // scale, *places.ravel()]))
    figure.rows = [row.images for row in rows]


def _text_size_and_scale(native: int, labels: Sequence[str], blocks: Blocks, width: int) -> tuple[float, int]:
    """The height of letters in pixels, and how often each pixel of images of this width is repeated."""
    size, columns = _text_size(width), sum(count for _, count in blocks)
    # Beside the images is room for labels, margins and gaps.
    room = width - max(_text_width(label, size) for label in labels)
    room -= size * (2.3 + 1.4 * (len(blocks) - 1) + columns / 3)
    # An image that takes more than a sixth of the width shows squares instead of a motif.
    scale = max(1, min(round(room / columns / native), int(width / 6 / native)))
    # Where images make the figure wider, the text grows with it.
    return size * max(1.0, 1.15 * columns * native / width, columns * native * scale / room), scale


def _opaque(image: Array, scale: int) -> Array:
    """An image `[height, width, 1 to 4 channels]` as uint8 RGB, enlarged; alpha over a checkerboard."""
    values = image.astype(np.float64) / (np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1.0)
    if not np.isfinite(values).all():
        raise ValueError("a value of an image is not finite: lower the temperature, if the model has not diverged")
    values = np.clip(values, 0.0, 1.0).repeat(scale, axis=0).repeat(scale, axis=1)
    if values.shape[2] in (2, 4):
        board = np.where((np.indices([*values.shape[:2], 1]) // 8).sum(axis=0) % 2, 0.8, 1.0)
        values = values[..., :-1] * values[..., -1:] + board * (1.0 - values[..., -1:])
    return np.rint(np.broadcast_to(values, [*values.shape[:2], 3]) * 255.0).astype(np.uint8)


def _chart(title: str, about: Provenance | None, width: int, lines: float, columns=1) -> tuple[Figure, Axes, float]:
    """Returns a figure of this height in lines of text, the first of its axes, and the size of its text in points."""
    pixels = _text_size(width)
    figure = _figure(title, about, pixels, (width, round(lines * pixels)))
    for axes in np.ravel(figure.subplots(ncols=columns)):
        _style(axes, pixels * _POINTS)
    return figure, figure.axes[0], pixels * _POINTS


def _figure(title: str, about: Provenance | None, text_size: float, pixels: tuple[int, int]) -> Figure:
    """Returns a figure of this width and height with a title and, as its last line, the provenance."""
    figure = Figure(np.divide(pixels, _DPI), _DPI, facecolor="white", layout="constrained")
    pad = 0.4 * text_size / _DPI
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)
    style = dict(x=0.01, ha="left", fontsize=text_size * _POINTS, parse_math=False, wrap=True)
    figure.suptitle(title, fontweight="bold", color=INK, **style)
    figure.supxlabel(about.caption() if about else "", color=FAINT, **style)
    figure.set_label(title)
    figure.provenance = about
    return figure


def _style(axes: Axes, size: float) -> None:
    axes.tick_params(labelsize=0.9 * size, labelcolor=INK, color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=size, color=FAINT)


def _make_logarithmic(axes: Axes, name: str, values: Sequence[float]) -> None:
    """Makes an axis logarithmic, with ticks that can be read also where values span less than a power of ten."""
    axes.set(**{f"{name}scale": "log"})
    axis, decades = getattr(axes, f"{name}axis"), math.log10(max(values) / min(values))
    locator = LogLocator(subs=(1.0,) if decades > 1.4 else (1.0, 2.0, 5.0), numticks=8)
    axis.set_major_locator(locator if decades > 0.6 else MaxNLocator(4))
    axis.set_minor_locator(NullLocator())


def _text_size(width: int) -> float:
    """The height of letters in pixels."""
    return 11.0 + max(0, width - 400) / 100.0


def _text_width(text: str, size: float) -> float:
    """The width in pixels of the longest line, in matplotlib's font."""
    return max((TextPath((0, 0), line, size).get_extents().width for line in text.splitlines()), default=0.0)


def _wrapped(text: str, size: float, room: float) -> str:
    """The text in lines of at most about this width in pixels; words stay whole."""
    letters = int(0.9 * len(text) * room / max(1.0, _text_width(text, size)))
    return textwrap.fill(text, max(1, letters), break_long_words=False)


def save_figure(figure: Figure, path: str | os.PathLike, raw: bool = False) -> None:
    """Writes a PNG, SVG or PDF file, as its name says, atomically; the folder is made where it is missing.

    The metadata of a PNG file are the figure's `Provenance`; the other formats have them as a description.
    With `raw` it is a PNG file of the images alone, in the figure's rows.
    """
    path = pathlib.Path(path)
    if raw:
        columns, white = max(map(len, figure.rows)), np.ones_like(figure.rows[0][0])
        padded = [image for row in figure.rows for image in (*row, *[white] * (columns - len(row)))]
        write_png(path, image_grid(padded, columns, enlarge=None))
        return
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{path}: a figure is a .png, .svg or .pdf file")
    atomic_write(path, figure_bytes(figure, path.suffix.lower()[1:]))


def figure_bytes(figure: Figure, form: str, **options: Any) -> bytes:
    """Returns a figure as the content of a "png", "svg" or "pdf" file; the same figure gives the same bytes."""
    title, entries = figure.get_label(), figure.provenance.metadata() if figure.provenance else {}
    text = "; ".join(f"{name}: {value}" for name, value in entries.items())
    metadata = {
        "png": {"Title": title, "Software": "nvae_tf", "images": getattr(figure, "places", "")} | entries,
        "svg": {"Title": title, "Description": text, "Date": None},
        "pdf": {"Title": title, "Subject": text, "CreationDate": None},
    }[form]
    buffer = io.BytesIO()
    # In SVG, texts stay texts.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nvae_tf", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=form, dpi=_DPI, metadata=metadata, **options)
    return buffer.getvalue()
