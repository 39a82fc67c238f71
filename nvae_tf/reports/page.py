"""The page of `train.report`, from a run's folder: one HTML file, no script, nothing from the network."""

import base64
import contextlib
import datetime
import io
import json
import os
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.data.sources import load_split
from nvae_tf.errors import first_line
from nvae_tf.evaluation.latent_usage import kl_heat_map
from nvae_tf.evaluation.table import table
from nvae_tf.generation.image_grid import image_grid, rows_of_path
from nvae_tf.generation.sampling import (
    ImageGenerator,
    interpolate_images,
    numbers_of_shared_groups,
    reconstruct_images,
    rows_sharing_groups,
)
from nvae_tf.latent_plan import LatentPlan, latent_plan
from nvae_tf.progress import StatusLine, counted
from nvae_tf.reports.curves import Curve, figure, group_curves, heat_map, line_chart, read_metrics, read_scalars
from nvae_tf.reports.run_facts import UNREADABLE
from nvae_tf.training.checkpoints import checkpoint_sha256
from nvae_tf.training.loading import TrainedRun, load_run, spec_to_read
from nvae_tf.training.run_folder import RunFolder, read_run_config

TEMPERATURES = (1.0, 0.9, 0.8, 0.7)
# How many samples are shown of small images and of large ones.
_MANY, _FEW, _LARGE_FROM = 36, 16, 128
_COLUMNS = 8
_WAYS, _STEPS = 3, 7
_NATS = "nats per image"
# Title, unit, and what of `metrics.csv`: a column's name without `train_` and `test_`, or columns by the lines' names.
_CHARTS = (
    ("NELBO (negative evidence lower bound)", _NATS, "nelbo_nats"),
    ("Reconstruction (negative log-likelihood)", _NATS, "reconstruction_nats"),
    ("KL of posterior and prior", _NATS, "kl_nats"),
    ("NELBO in bits", "bits per real value", {"test": "test_bits_per_dim"}),
    ("Learning rate", "no unit", {"learning rate": "learning_rate"}),
    ("KL weight β", "factor of the KL in the loss", {"KL weight": "kl_weight"}),
    ("Speed of training", "images per second", {"speed": "images_per_second"}),
)


def report_of_run(
    workdir: str | os.PathLike, checkpoint: str, seed: int, data_path: str | None, status: StatusLine
) -> tuple[str, list[str]]:
    """Reads all that the run has written and draws images: the page, and what it lacks, a line each.

    What is missing, or damaged, becomes a sentence on the page. The checkpoint is "latest" or "best"; `data_path` is
    where the data is, if no longer where it was during training. Raises what `read_run_config` raises.
    """
    folder = RunFolder(pathlib.Path(workdir))
    config = read_run_config(folder)
    plan, trained, problem = latent_plan(config.model), None, ""
    try:
        trained = load_run(folder.path, checkpoint)
    except (ValueError, OSError) as error:
        problem = first_line(error)
    sha256 = checkpoint_sha256(trained.checkpoint) if trained else None
    images = ReportImages(trained, data_path, seed, status) if trained else None
    without = _paragraph(f"There are no images, for want of a model: {problem}")
    status.show_if_due("reading curves")
    metrics = read_metrics(folder.metrics_file)
    # The tags are those of `nvae_tf/training/outputs.py`.
    families = ("kl_per_group", "train_kl_per_group", "active_units", "spectral_norm")
    scalars = read_scalars(folder.tensorboard, families)
    sections = [
        ("settings", "Settings", _settings(json.loads(folder.config_file.read_text(encoding="utf-8")))),
        ("curves", "Loss curves", loss_curves(metrics)),
        ("groups", "Latent groups over time", _latents_over_time(scalars, plan.latent_shapes())),
        ("samples", "Samples", images.samples() if images else without),
        ("pictures", "Test images", images.of_test_images() if images else without),
        ("shared", "What the groups decide", images.shared_groups() if images else without),
        ("latents", "Use of the latents", latent_use_section(folder, checkpoint, sha256, plan)),
        ("evaluation", "Evaluation", evaluation_section(folder, checkpoint, sha256)),
    ]
    environment = jinja2.Environment(loader=jinja2.PackageLoader("nvae_tf.reports"), autoescape=True)
    page = environment.get_template("page.html").render(
        title=f"NVAE run: {config.data.name}, {folder.path.absolute().name}",
        facts=_facts(config, plan, checkpoint, trained, sha256),
        sections=sections,
    )
    return page, (images.missing if images else [f"images: {problem}"])


def _facts(config: Any, plan: LatentPlan, checkpoint: str, trained: TrainedRun | None, sha256: str | None) -> Markup:
    model = config.model
    scales = ", ".join(f"{len(scale.groups)} at {scale.height}×{scale.width}" for scale in plan.scales)
    channels, bits = counted(model.image_channels, "channel"), counted(model.num_bits, "bit")
    rows = [
        ["Data set", f"{config.data.name}: {model.image_height}×{model.image_width} pixels, {channels}, {bits} each"],
        ["Latent groups", f"{plan.num_groups} of {plan.num_latent_per_group} channels: {scales}"],
    ]
    total = config.objective.total_steps
    if trained:
        weights = "moving averages (EMA) of the weights" if trained.has_running_means else "weights as trained"
        parameters = sum(variable.shape.num_elements() for variable in trained.model.trainable_variables)
        rows += [
            ["Step", f"{trained.step:,} of {total:,}"],
            ["Checkpoint", f"{checkpoint}, {weights}, SHA-256 {sha256[:16]}…"],
            ["Parameters", f"{parameters:,}"],
        ]
    else:
        rows.append(["Checkpoint", f"none that can be used; the run goes to step {total:,}"])
    rows.append(["Date of this page", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")])
    return _table(rows)


def _settings(settings: dict[str, Any]) -> Markup:
    """A foldable table for every group of `config.json`, in its order."""
    folded = Markup()
    for name, values in settings.items():
        rows = [[setting, json.dumps(value, ensure_ascii=False)] for setting, value in values.items()]
        summary = Markup("<b>{}</b>, {}").format(name, counted(len(rows), "setting"))
        folded += Markup("<details><summary>{}</summary>{}</details>").format(summary, _table(rows))
    return folded


def loss_curves(metrics: dict[str, Curve]) -> Markup:
    """Charts of `metrics.csv`."""
    if not metrics:
        return _paragraph(
            "There are no metrics yet: metrics.csv gets a line every train.evaluate_every_steps steps and at the end."
        )
    charts, missing = [], []
    for title, unit, columns in _CHARTS:
        if isinstance(columns, str):
            columns = {"training": f"train_{columns}", "test": f"test_{columns}"}
        curves = {name: metrics[column] for name, column in columns.items() if column in metrics}
        lines = {name: curve for name, curve in curves.items() if np.isfinite(curve.values).any()}
        if lines:
            charts.append(line_chart(title, unit, lines))
        else:
            missing.append(title)
    text = (
        "From metrics.csv. Test: means over all images of the test part. Training: means over the steps since the last "
        "multiple of train.log_every_steps, with the weights as they were at each. Lower is better for all in nats and "
        "bits. Point at a mark for its value."
    )
    if len(next(iter(metrics.values())).steps) == 1:
        text += " There is only one evaluation so far, so there are single points instead of lines."
    if missing:
        text += f" Without values in metrics.csv: {'; '.join(missing)}."
    return _paragraph(text) + _grid(charts)


def _latents_over_time(scalars: dict[str, Curve], latent_shapes: Sequence[tuple[int, int, int]]) -> Markup:
    """Heat maps of the KL and the active units of every group, and the spectral norms, of TensorBoard's files."""
    charts = []
    for family, title, unit, is_logarithmic in (
        ("kl_per_group", "KL per group, test images", _NATS, True),
        ("train_kl_per_group", "KL per group, training batches", _NATS, True),
        ("active_units", "Active units per group", f"of {latent_shapes[0][2]}", False),
    ):
        groups, steps, values = group_curves(scalars, family) or ([], [], np.nan)
        if np.isfinite(values).any():
            sizes = [f" ({height}×{width})" for height, width, _ in latent_shapes]
            names = [f"{group}{sizes[group]}" if group < len(sizes) else f"group {group}" for group in groups]
            charts.append(heat_map(title, unit, names, steps, values, is_logarithmic))
    for words, tag in (("the largest", "spectral_norm/largest"), ("sum of all", "spectral_norm/sum")):
        if tag in scalars and np.isfinite(scalars[tag].values).any():
            lines = {words: scalars[tag]}
            charts.append(line_chart(f"Spectral norm, {words}", "of convolution kernels as matrices", lines))
    if not charts:
        return _paragraph(
            "There are no TensorBoard files with metrics of the groups in this run folder: training writes them every "
            "train.log_every_steps and train.evaluate_every_steps steps, into tensorboard/."
        )
    text = (
        "From TensorBoard's files. Group 0 is the top of the hierarchy; beside its number stand height and width of "
        "its latent, and the latest value. A group that stays dark is not used. A unit is a latent channel of a group, "
        "active where its KL exceeds 0.01 nats of an image and position."
    )
    return _paragraph(text) + _grid(charts)


class ReportImages:
    """Draws images of a run's model; one that can't be drawn becomes a sentence in its place.

    Attributes:
      missing: what could not be drawn, a line each.
    """

    def __init__(self, trained: TrainedRun, data_path: str | None, seed: int, status: StatusLine):
        self._trained, self._data_path, self._seed, self._status = trained, data_path, seed, status
        self.missing: list[str] = []

    def samples(self) -> Markup:
        """Samples at four temperatures, from the same noise."""
        generator, config = ImageGenerator(self._trained.model), self._trained.config.model
        count = _FEW if min(config.image_height, config.image_width) >= _LARGE_FROM else _MANY

        def at(temperature: float) -> Markup:
            grid = image_grid(generator.generate(count, temperature, self._seed), enlarge=None)
            return _image(grid, f"Temperature {temperature:.1f}", f"{count} images, each the mean of the likelihood")

        drawn = [self._drawn(f"samples at temperature {value}", at, value) for value in TEMPERATURES]
        text = (
            f"Images of latents from the prior, seed {self._seed}. The temperature multiplies the priors' standard "
            "deviations: 1.0 is the model as trained; below it, images are cleaner and more alike. Images in the same "
            "place come from the same noise."
        )
        return _paragraph(text) + _grid(drawn)

    def of_test_images(self) -> Markup:
        """Test images and their reconstructions, and ways between the first of them."""
        try:
            originals = self._test_images()
        except (ValueError, OSError) as error:
            return self._not_drawn("test images", error)
        model, count = self._trained.model, len(originals)

        def reconstructions() -> Markup:
            made = reconstruct_images(model, originals, seed=self._seed)
            grid = image_grid(np.concatenate([originals, made]), count, enlarge=None)
            about = f"of the first {count} test images: originals above, below them what the model keeps of them."
            return _image(grid, "Reconstructions", about)

        def interpolation() -> Markup:
            if count < 2:
                return _paragraph("An interpolation needs two test images; there is only one.")
            path = interpolate_images(model, originals[: _WAYS + 1], _STEPS, seed=self._seed)
            about = (
                "a row goes from one test image (its reconstruction) to the next, in equal steps along the arc "
                "between their latents."
            )
            return _image(image_grid(rows_of_path(path, _STEPS), _STEPS + 1, enlarge=None), "Interpolation", about)

        return _grid([self._drawn("reconstructions", reconstructions), self._drawn("interpolation", interpolation)])

    def shared_groups(self) -> Markup:
        """Rows of samples that share the latents of their upper groups."""
        model = self._trained.model
        numbers = numbers_of_shared_groups(model.plan.num_groups)

        def draw() -> Markup:
            about = (
                f"{model.plan.num_groups} groups: from the top row down, the latents of the upper "
                f"{', '.join(map(str, numbers))} are those of the leftmost sample; what differs in a row is what the "
                "groups below decide. Temperature 1.0."
            )
            grid = image_grid(rows_sharing_groups(model, _COLUMNS, self._seed), _COLUMNS, enlarge=None)
            return _image(grid, "Samples sharing their upper groups", about)

        return _grid([self._drawn("samples sharing their upper groups", draw)])

    def _test_images(self) -> np.ndarray:
        """The first test images as the model sees them, `[up to 8, height, width, channels]`."""
        spec = spec_to_read(self._trained.config, self._data_path)
        source = load_split(spec, "test", self._status.report())
        count = min(_COLUMNS, source.count)
        with contextlib.closing(iterate(evaluation_batches(source, spec, count, self._seed, [0]), source)) as batches:
            return next(batches).numpy()

    def _drawn(self, what: str, draw: Callable[..., Markup], *arguments: Any) -> Markup:
        self._status.show_if_due(f"drawing {what}")
        try:
            return draw(*arguments)
        except (ValueError, OSError) as error:
            return self._not_drawn(what, error)

    def _not_drawn(self, what: str, error: Exception) -> Markup:
        self.missing.append(f"{what}: {first_line(error)}")
        return _paragraph(f"Here would be {what}, but: {first_line(error)}")


def latent_use_section(folder: RunFolder, checkpoint: str, sha256: str | None, plan: LatentPlan) -> Markup:
    """The heat map of the KL of every latent channel, where the evaluation has it."""
    try:
        metrics = _read_evaluation(folder) or {}
        per_channel = np.array(metrics["latents"]["kl_per_channel_nats"], np.float64)
        if per_channel.shape != (plan.num_groups, plan.num_latent_per_group) or not np.isfinite(per_channel).all():
            raise ValueError("latents.kl_per_channel_nats is of another model")
    except UNREADABLE:
        text = (
            "evaluation.json has no KL of single latent channels of this model (metric latents). This command adds it:"
        )
        return _paragraph(text) + _evaluation_command(folder, checkpoint)
    about = (
        "nats of an image and position, mean over the test images; a row is a group, a cell one of its channels, the "
        "largest first; the colors are logarithmic. Dark channels say nothing of an image."
    )
    drawn = _image(kl_heat_map(per_channel, plan.latent_shapes()), "KL per latent channel", about)
    return _other_checkpoint(metrics, sha256) + drawn


def evaluation_section(folder: RunFolder, checkpoint: str, sha256: str | None) -> Markup:
    """The table of the evaluation file, or the command that makes it; with the page's checkpoint and its SHA-256."""
    command = _evaluation_command(folder, checkpoint)
    try:
        metrics = _read_evaluation(folder)
        if metrics is None:
            text = "The test images have not been evaluated yet (no evaluation.json). This command does it:"
            return _paragraph(text) + command
        section = _other_checkpoint(metrics, sha256) + _block(table(metrics))
        return section + (Markup() if metrics.get("checkpoint_sha256") == sha256 else command)
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}"
        text = f"evaluation.json can't be read as an evaluation ({reason}). This command makes it anew:"
        return _paragraph(text) + command


def _read_evaluation(folder: RunFolder) -> dict[str, Any] | None:
    """The metrics of the run's test images; None where there are none yet. ValueError where the file is another."""
    file = folder.evaluation_file()
    if not file.exists():
        return None
    metrics = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(metrics, dict):
        raise ValueError(f"{file.name}: not a JSON object")
    return metrics


def _evaluation_command(folder: RunFolder, checkpoint: str) -> Markup:
    """The command that measures all that the page shows."""
    which = "" if checkpoint == "latest" else f" --checkpoint={checkpoint}"
    line = f"python -m train.evaluate --workdir={shlex.quote(str(folder.path))} --metrics=elbo,iw,latents{which}"
    return _block(line)


def _other_checkpoint(metrics: dict[str, Any], sha256: str | None) -> Markup:
    if metrics.get("checkpoint_sha256") == sha256:
        return Markup()
    return Markup(
        '<p class="note"><b>Of another checkpoint</b> than the one on this page: step {}, SHA-256 {}.</p>'
    ).format(metrics.get("step", "not known"), str(metrics.get("checkpoint_sha256", "not known"))[:16])


# Pieces of HTML; whatever is no Markup is escaped.


def _paragraph(text: str) -> Markup:
    return Markup("<p>{}</p>").format(text)


def _block(text: str) -> Markup:
    return Markup("<pre>{}</pre>").format(text)


def _grid(figures: Sequence[Markup]) -> Markup:
    return Markup('<div class="charts">{}</div>').format(Markup().join(figures))


def _table(rows: Sequence[tuple[str, str]]) -> Markup:
    """A table of names and values."""
    lines = Markup().join(Markup('<tr><th scope="row">{}</th><td>{}</td></tr>').format(*row) for row in rows)
    return Markup("<table><tbody>{}</tbody></table>").format(lines)


def _image(pixels: np.ndarray, title: str, about: str) -> Markup:
    """A figure with an image that is part of the page: uint8 `[height, width, channels]`, as `image_grid` gives it."""
    height, width, channels = pixels.shape
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    image = '<img src="data:image/png;base64,{}" width="{}" height="{}" alt="{}">'
    return figure(title, about, Markup(image).format(data, width, height, title))
