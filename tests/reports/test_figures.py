"""Figures as people see them: pixels of the rendered image, texts and where they stand, files."""

import inspect
import io
import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from nvae_tf.generation.image_grid import read_images
from nvae_tf.reports import figures

ABOUT = figures.Provenance("digits", 12_000, [0.7, 0.85], 3, "ab12", "nvae-generate --seed=3")
CAPTION = "digits, step 12,000, temperature 0.7, 0.85, seed 3"
WIDTHS = (400, 1000)
SHAPES = [(4, 4, 20), (4, 4, 20), *[(8, 8, 20)] * 34]


def images(*shape):
    """Random images of 12x10 pixels, `[*shape, 12, 10, 3]`."""
    return np.random.default_rng(0).integers(0, 256, [*shape, 12, 10, 3]).astype(np.uint8)


def kl():
    return np.random.default_rng(0).exponential(1.0, (len(SHAPES), 20)) ** 3


def scores(*names):
    """Scores of four sets of images; the scores of the last set have another order of magnitude."""
    random = np.random.default_rng(0)
    sets = {"test images": 1.0, "digits of another source": 2.0, "noise": 30.0, "black": 900.0}
    return {name: {score: level * random.gamma(9.0, 1.0, 50) for score in names} for name, level in sets.items()}


def with_maps(level, count=4):
    maps = level * np.random.default_rng(0).random((count, 12, 10))
    return images(count), maps, ["1.23", "12", "1.2e+03", "4"][:count]


MAPS = {"test images": with_maps(1.0), "black": with_maps(50.0, 3)}
SCORES, TWO = scores("mahalanobis", "kl"), images(2)
CURVES = {
    "training": (range(10, 1010, 10), 30.0 + 150.0 * np.exp(-np.arange(100) / 10)),
    "test": ([200, 400], [39, 30]),
}
# The first arguments of functions of `figures`, and further ones.
FIGURES = {
    "samples": ([images(7)], {"classes": ["cats", "sea urchins", "owls"]}),
    "reconstructions": ([TWO, TWO], {"kept": " of the top 1 of 2"}),
    "nearest": ([TWO, images(2, 3), np.full([2, 3], 0.125), "training"], {}),
    "interpolation": ([images(3), images(9), 4], {}),
    "variants": ([TWO, images(2, 3), figures.redrawn(2, 36), "Kept."], {"notes": ["-2", "0", "1"]}),
    "restorations": ([TWO[:, ::2, ::2], TWO, TWO, np.ones([2, 12, 10, 3])], {}),
    "group_decisions": ([images(3, 4), [0, 1, 35], 36], {}),
    "kl_per_group": ([kl()[:, 0], SHAPES], {}),
    "kl_per_channel": ([kl(), SHAPES], {}),
    "training_curves": (["NELBO", "nats per image", CURVES], {}),
    "histograms": ([SCORES], {}),
    "roc_curves": ([SCORES], {}),
    "maps": ([MAPS], {}),
}
# Texts that the figure must have.
WORDS = f"""
samples|cats|sea urchins|owls
reconstructions|original|reconstruction|latents of the top 1 of 2.
nearest|sample|most similar training images, the nearest first|0.125
interpolation|original|decoded from the latents between|0|0.25|0.5|0.75|1
variants|original|groups 2–35 redrawn|Kept.|-2|0|1
restorations|measured|restored|original|deviation|white is 1,
group_decisions|sample|all groups redrawn|groups 1–35 redrawn|group 35 redrawn
kl_per_group|group 0 (4×4)|group 35 (8×8)|{kl()[35, 0]:.2f}|nats per image
kl_per_channel|group 0 (4×4): |1|5|20|0.001|10|active above 0.01
training_curves|NELBO|test: 30 at step 400|1,000|training step|nats per image
histograms|Mahalanobis distance|sum of the KLs, in nats|digits of another source|black|share of the images
roc_curves|Mahalanobis distance|noise|black|test images above the threshold|outliers above it
maps|test images|KL, 0 to 1 nats per pixel|KL, 0 to 50 nats per pixel|1.2e+03
"""
FIGURE_WORDS = [line.split("|") for line in WORDS.strip().splitlines()]


def pixels(figure):
    """The figure as a PNG file shows it, uint8 `[height, width, 3]`."""
    return np.asarray(Image.open(io.BytesIO(figures.figure_bytes(figure, "png"))).convert("RGB"))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("words", FIGURE_WORDS, ids=lambda words: words[0])
def test_texts_are_there_and_do_not_overlap(words, width, monkeypatch):
    data, options = FIGURES[words[0]]
    options = options | ({} if words[0] == "training_curves" else {"about": ABOUT})
    function = getattr(figures, words[0])
    options |= {"width": width} if "width" in inspect.signature(function).parameters else {}
    figure = function(*data, **options)
    texts, draw = [], Text.draw

    def noting(text, renderer):
        texts.extend([text] if text.get_visible() and text.get_text().strip() else [])
        draw(text, renderer)

    monkeypatch.setattr(Text, "draw", noting)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in texts}
    for text, box in boxes.items():
        assert 0 <= box.x0 and box.x1 <= figure.bbox.width and 0 <= box.y0 and box.y1 <= figure.bbox.height, text
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        # Letters that touch are a pixel apart.
        is_apart = min(a.x1, b.x1) - max(a.x0, b.x0) < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1
        assert is_apart or one.get_text() == other.get_text(), (one, other)
    everything = " ".join(" ".join(text.get_text().split()) for text in boxes)
    has_caption = figure.provenance is None or CAPTION in everything
    assert has_caption and all(word in everything for word in words[1:]), everything
    if painted := figure.axes[0].images:
        covered = np.zeros(np.ceil(figure.bbox.size[::-1]).astype(int), bool)
        left, bottom, right, top = np.rint(painted[0].get_window_extent().extents).astype(int)
        covered[len(covered) - top : len(covered) - bottom, left:right] = painted[0].get_array()[..., 3] > 0
        for text, box in boxes.items():
            rows = slice(int(figure.bbox.height - box.y1) + 2, int(figure.bbox.height - box.y0) - 2)
            assert not covered[rows, int(box.x0) : int(box.x1)].any(), text


@pytest.mark.parametrize("width", WIDTHS)
def test_images_are_exact_and_missing_ones_blank(width, tmp_path):
    shown = images(7)
    figure = figures.samples(shown, ABOUT._replace(data="test images"), columns=3, width=width)
    drawn = pixels(figure)
    # The gray frames show where the images are.
    frame = (drawn == figures._FRAME[:3]).all(axis=2)
    rows, columns = (np.flatnonzero(frame.sum(axis=axis) > 0.3 * frame.sum(axis=axis).max()) for axis in (1, 0))
    tops, lefts = rows[::2], columns[::2]
    scale = (columns[1] - columns[0] - 1) // 10
    assert len(tops) == len(lefts) == 3 and scale >= 1 and columns[1] - columns[0] - 1 == 10 * scale
    figures.save_figure(figure, tmp_path / "samples.png")
    np.testing.assert_array_equal(read_images(tmp_path / "samples.png", 10, 3), shown)
    enlarged = shown.repeat(scale, axis=1).repeat(scale, axis=2)
    for image, (top, left) in zip(enlarged, itertools.product(tops + 1, lefts + 1), strict=False):
        np.testing.assert_array_equal(drawn[top : top + 12 * scale, left : left + 10 * scale], image)
    assert (drawn[tops[2] : rows[-1] + 1, columns[2] - 1 :] == 255).all()
    assert (drawn[rows[1] + 1 : tops[1], lefts[0] :] == 255).all() and tops[1] - rows[1] > 2


def test_alpha_stands_over_a_checkerboard_and_integers_are_fractions():
    half = np.array([0.2, 0.4, 0.6, 0.5])
    image = np.broadcast_to(half, [1, 16, 16, 4])
    shown = figures._opaque(image[0], 1)
    np.testing.assert_array_equal(shown[0, 0], np.rint(255 * (0.5 * half[:3] + 0.5)))
    np.testing.assert_array_equal(shown[0, 8], np.rint(255 * (0.5 * half[:3] + 0.4)))
    np.testing.assert_array_equal(shown[8, 8], shown[0, 0])
    colors = pixels(figures.samples(image, ABOUT)).reshape(-1, 3).tolist()
    assert shown[0, 0].tolist() in colors and shown[0, 8].tolist() in colors
    gray = np.full([1, 8, 8, 1], 13_107, np.uint16)
    np.testing.assert_array_equal(pixels(figures.samples(gray, ABOUT)), pixels(figures.samples(gray / 65_535, ABOUT)))
    with pytest.raises(ValueError, match="a value of an image is not finite: lower the temperature"):
        figures.samples(np.full([1, 8, 8, 1], np.nan), ABOUT)


@pytest.mark.parametrize(("given", "channels"), [(8, ()), (8, (5, 0, 7)), (8, (6,)), (3, (1,))])
def test_of_many_channels_those_chosen_are_shown(given, channels, tmp_path):
    many = np.random.default_rng(0).integers(0, 256, [2, 9, 8, given]).astype(np.uint8)
    figures.save_figure(figures.samples(many, ABOUT._replace(channels=channels)), tmp_path / "samples.png")
    shown = many[..., list(channels * (3 // len(channels)) if channels else range(3))]
    np.testing.assert_array_equal(read_images(tmp_path / "samples.png", 8, 2), shown)
    assert Image.open(tmp_path / "samples.png").info.get("channels", "") == ", ".join(map(str, channels))
    figures.save_figure(figures.restorations(many, many, None, many / 510.0, ABOUT), tmp_path / "bare.png", raw=True)


def test_a_file_says_how_it_was_made(tmp_path):
    figure = figures.samples(images(2), ABOUT)
    for name in ("a.png", "new/a.svg", "a.pdf", "b.PNG"):
        figures.save_figure(figure, tmp_path / name)
    info = Image.open(tmp_path / "a.png").info
    expected = dict(model="digits", step="12000", seed="3", temperature="0.7, 0.85", checkpoint_sha256="ab12")
    assert expected.items() <= info.items() and info["command"] == ABOUT.command
    assert (tmp_path / "b.PNG").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert "temperature: 0.7, 0.85; seed: 3" in (tmp_path / "new" / "a.svg").read_text()
    assert b"command: nvae-generate" in (tmp_path / "a.pdf").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.pdf", "b.PNG", "new"}


STEPS = np.arange(100, 100_100, 100)
SCALES = {
    "falling": (36.0 + 200.0 * np.exp(-STEPS / 1500), ["log", "log"]),
    "falling below zero": (-9.0 + 200.0 * np.exp(-STEPS / 1500), ["log", "linear"]),
    "a cosine": (1.0 + np.cos(np.pi * STEPS / 1e5), ["linear", "linear"]),
    "noise": (760.0 + np.random.default_rng(0).normal(0.0, 20.0, len(STEPS)), ["linear", "linear"]),
    "nothing but gaps": (np.full(len(STEPS), np.nan), ["linear", "linear"]),
}


@pytest.mark.parametrize("name", SCALES)
def test_curves_have_one_chart_with_the_axes_that_show_most(name):
    values, scales = SCALES[name]
    (axes,) = figures.training_curves("x", "y", {"a": (STEPS, values), "b": (STEPS, values + 1.0)}).axes
    assert [axes.get_xscale(), axes.get_yscale()] == scales
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), values)
