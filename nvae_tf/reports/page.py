"""The pages of `nvae-report`: about a run, and to compare runs. A single HTML file each, no script, no network."""

import collections
import contextlib
import json
import math
import pathlib
import re
import shlex
import types
from collections.abc import Callable, Iterator, Sequence

import jinja2
import numpy as np
import tensorflow as tf
from markupsafe import Markup
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

from nvae_tf.config import config_to_dict, named_settings
from nvae_tf.data.pipeline import chosen_images, evaluation_batches, images_alone, iterate
from nvae_tf.data.sources import load_split, spread_numbers
from nvae_tf.errors import first_line
from nvae_tf.generation import sampling
from nvae_tf.generation.image_grid import read_images
from nvae_tf.progress import StatusLine, duration
from nvae_tf.reports import figures
from nvae_tf.reports.figures import Curves
from nvae_tf.reports.model_card import UNREADABLE, gather
from nvae_tf.runs.checkpoints import checkpoint_sha256
from nvae_tf.runs.loading import TrainedRun, load_run
from nvae_tf.runs.run_folder import METRICS_COLUMNS, MetricsFile, RunFolder, read_run_config

TEMPERATURES = (1.0, 0.9, 0.8, 0.7)
# CSS pixels. A phone shows a figure at about this width, so its text stays readable there.
_WIDTH = 430
# How many samples are shown of small images and of large ones; among how many images neighbors are looked for.
_MANY, _FEW, _LARGE_FROM, _NEAREST_AMONG = 36, 16, 128, 10_000
_COLUMNS, _STEPS = 8, 5
# Title, unit, and lines: curves by their labels, or the part of names that curves of training and test share.
_CHARTS = (
    ("NELBO (negative evidence lower bound), lower is better", "nats per image", "nelbo_nats"),
    ("Reconstruction (negative log-likelihood)", "nats per image", "reconstruction_nats"),
    ("KL of posterior and prior", "nats per image", "kl_nats"),
    ("Learning rate", "per step", {"learning rate": "learning_rate"}),
    ("Weight of the KL in the loss", "factor", {"KL weight": "kl_weight"}),
    ("Speed of training", "images per second", {"speed": "images_per_second"}),
)
# A function of a section and of what is drawn, whose `with` block gets a function that adds a figure to the section.
_Drawing = Callable[[str, str], contextlib.AbstractContextManager[Callable[[Figure], None]]]
_TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("nvae_tf.reports"), autoescape=True, trim_blocks=True)
_TEMPLATES.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)


def report_of_run(workdir, checkpoint: str, seed: int, data_path, status: StatusLine) -> tuple[str, list[str]]:
    """Returns the page of a run, and a line for each part that it lacks.

    A sentence on the page stands in the place of what is missing or damaged. The checkpoint is "latest" or "best";
    `data_path` is where the data is now. Raises what `read_run_config` raises.
    """
    folder, missing, trained = RunFolder(workdir), [], None
    config = read_run_config(folder)
    drawn: dict[str, list[Markup]] = collections.defaultdict(list)

    @contextlib.contextmanager
    def drawing(section: str, what: str) -> Iterator[Callable[[Figure], None]]:
        status.show_if_due(f"drawing {what}")
        try:
            yield lambda figure: drawn[section].append(_svg(figure))
        except (ValueError, OSError) as error:
            missing.append(f"{what}: {first_line(error)}")

    with drawing("", "images of the model"):
        trained = load_run(folder.path, checkpoint)
    sha256 = checkpoint_sha256(trained.checkpoint) if trained else None
    about = figures.Provenance(folder.path.absolute().name, trained and trained.step, None, seed, sha256)
    about = about._replace(channels=config.data.display_channels)
    facts = gather(folder, trained and sum(math.prod(weight.shape) for weight in trained.model.trainable_variables))
    curves, seconds = read_curves(folder)
    _draw_charts(folder, curves, facts, drawing)
    if trained:
        _draw_images(trained, about, data_path, drawing)
    shown = {"facts": facts, "trained": trained, "about": about, "drawn": drawn, "time": seconds and duration(seconds)}
    shown |= {"settings": config_to_dict(config), "missing": missing}
    shown["is_damaged"] = facts.test_evaluation is None and folder.evaluation_file().exists()
    shown["command"] = f"--workdir={shlex.quote(str(folder.path))} --metrics=elbo,iw,latents --checkpoint={checkpoint}"
    return _TEMPLATES.get_template("page.html").render(shown), missing


def compare_runs(workdirs: Sequence[str]) -> str:
    """Returns the page that compares runs by scores, curves and settings that differ. It needs no checkpoint."""
    folders = {workdir: RunFolder(workdir) for workdir in workdirs}
    settings = [named_settings(read_run_config(folder)) for folder in folders.values()]
    rows = {name: [values[name] for values in settings] for name in settings[0]}
    differing = {name: values for name, values in rows.items() if any(value != values[0] for value in values)}
    curves = {workdir: read_curves(folder)[0] for workdir, folder in folders.items()}
    charts = []
    for title, unit, column in _CHARTS[:3]:
        for part in ("test", "training"):
            name = f"{part[:5]}_{column}"
            if lines := {workdir: by_name[name] for workdir, by_name in curves.items() if name in by_name}:
                charts.append(_svg(figures.training_curves(f"{title}: {part} images", unit, lines, _WIDTH)))
    facts, scores = {workdir: gather(folder) for workdir, folder in folders.items()}, {}
    for workdir, run in facts.items():
        for name, value, _ in run.test_evaluation.rows if run.test_evaluation else ():
            scores.setdefault(name, {})[workdir] = value
    shown = {"facts": facts, "scores": scores, "settings": differing, "curves": charts}
    return _TEMPLATES.get_template("comparison.html").render(shown)


def _svg(figure: Figure) -> Markup:
    """Returns a figure as an element of the page, in the colors of the page, light or dark."""
    text = figures.figure_bytes(figure, "svg", transparent=True).decode()
    noise = r'<metadata>.*?</metadata>| xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"| id="\w+_\d+"'
    text = re.sub(noise, "", text[text.index("<svg") :], flags=re.DOTALL)
    # A browser makes large images smaller with smooth edges.
    text = text.replace("image-rendering:crisp-edges;image-rendering:pixelated", "")
    colors = {"ink": figures.INK, "faint": figures.FAINT, "rule": figures.RULE}
    for name, color in (colors | {f"line{number}": color for number, color in enumerate(figures.LINES)}).items():
        text = text.replace(color, f"var(--{name})")
    part = min(100.0, 100.0 * figure.get_figwidth() * figure.dpi / _WIDTH)
    return Markup(text.replace("<svg", f'<svg role="img" style="width: {part:.0f}%"', 1))


def _draw_charts(folder: RunFolder, curves: Curves, facts: types.SimpleNamespace, drawing: _Drawing) -> None:
    """Draws every figure that needs no model."""
    run_name, plan, shapes = folder.path.absolute().name, facts.plan, facts.plan.latent_shapes()
    per_group, per_channel = (), np.array(())
    with contextlib.suppress(*UNREADABLE):
        metrics = facts.test_evaluation.metrics
        origin = {name: metrics[name] for name in ("step", "seed", "checkpoint_sha256")}
        about = figures.Provenance(run_name, data="test images", **origin)
        per_group, per_channel = metrics["kl_per_group_nats"], np.array(metrics["latents"]["kl_per_channel_nats"])
    if per_channel.shape == (len(shapes), shapes[0][2]) and len(per_group) == len(shapes):
        with drawing("latents", "KL of the groups and channels") as add:
            add(figures.kl_per_group(per_group, shapes, about, _WIDTH))
            add(figures.kl_per_channel(per_channel, shapes, about, _WIDTH))
    scales = {}
    for scale in plan.scales:
        with contextlib.suppress(KeyError, ValueError):
            steps, values = zip(*(curves[f"kl_per_group/{group:02d}"] for group in scale.groups), strict=True)
            scales[f"{scale.height}×{scale.width}"] = steps[0], np.sum(values, axis=0).tolist()
    charts = [("latents", "KL of the latents of each scale, test images", "nats per image", scales)]
    for title, unit, columns in _CHARTS:
        if isinstance(columns, str):
            columns = {"training": f"train_{columns}", "test": f"test_{columns}"}
        lines = {label: curves[name] for label, name in columns.items() if name in curves}
        charts.append(("curves", title, unit, lines))
    for section, title, unit, lines in charts:
        if finite := {name: curve for name, curve in lines.items() if np.isfinite(curve[1]).any()}:
            with drawing(section, title) as add:
                add(figures.training_curves(title, unit, finite, _WIDTH))
    steps, images = read_training_samples(folder, facts.config.model.image_width, _COLUMNS)
    if steps:
        with drawing("strip", "past samples") as add:
            add(figures.training_strip(images, steps, figures.Provenance(run_name, None, 0.7, 0), _WIDTH))


def _draw_images(trained: TrainedRun, about: figures.Provenance, data_path: str | None, drawing: _Drawing) -> None:
    """Draws every figure that needs the model."""
    model, seed = trained.model, about.seed
    at_one, on_test = about._replace(temperature=1.0), about._replace(data="test images")
    count = _FEW if min(model.config.image_height, model.config.image_width) >= _LARGE_FROM else _MANY
    kinds = [(f"at temperature {number}", about._replace(temperature=number), "model") for number in TEMPERATURES]
    if not isinstance(model.reweighted_prior, str):
        kinds.append(("of the reweighted prior", at_one._replace(data="reweighted prior"), "reweighted"))
    for kind, about_samples, prior in kinds:
        with drawing("samples", f"samples {kind}") as add:
            images = sampling.generate_images(model, count, about_samples.temperature, seed, prior=prior)
            add(figures.samples(images, about_samples, width=_WIDTH, classes=trained.class_names))
    with drawing("test", "reconstructions of test images and interpolation between them") as add:
        spec = trained.config.data_at(data_path)
        images, labels, _ = chosen_images(load_split(spec, "test"), spec, "test", at_most=_COLUMNS, seed=seed)
        made = sampling.reconstruct_images(model, images, seed=seed, labels=labels)
        add(figures.reconstructions(images, made, on_test, width=_WIDTH))
        images, labels = images[:4], None if labels is None else labels[:4]
        path = sampling.interpolate_images(model, images, _STEPS, seed=seed, labels=labels)
        add(figures.interpolation(images, path, _STEPS, on_test, _WIDTH))
    with drawing("nearest", "the training images nearest to samples") as add:
        spec = images_alone(trained.config.data_at(data_path))
        source, samples = load_split(spec, "train"), sampling.generate_images(model, 6, 1.0, seed)
        numbers = range(math.ceil(min(source.count, _NEAREST_AMONG) / 100))
        batches = iterate(evaluation_batches(source, spec, 100, seed, numbers), source)
        _, distances, images = sampling.nearest_images(samples, batches, 5)
        add(figures.nearest(samples, images, distances, "training", at_one, _WIDTH))
    with drawing("groups", "what the latent groups decide") as add:
        kept, images = sampling.rows_sharing_groups(model, _COLUMNS, seed)
        add(figures.group_decisions(images, kept, model.plan.num_groups, at_one, _WIDTH))


def read_curves(folder: RunFolder) -> tuple[Curves, float]:
    """Reads the curves of a run by their names in `metrics.csv`, and the seconds that training took.

    A curve is steps in ascending order, and values, NaN for a gap. It comes from TensorBoard's files, which have every
    logged step, where they have more points of it. They have the KL of single groups, too, as `kl_per_group/00`.
    """
    points: dict[str, dict[int, float]] = collections.defaultdict(dict)
    with contextlib.suppress(OSError):
        for step, row in MetricsFile(folder.metrics_file).rows.items():
            for name in set(METRICS_COLUMNS[1:]) & row.keys():  # all but the step
                points[name][step] = float(row[name] or "nan")
    logged, seconds = _read_events(folder.tensorboard)
    for tag, values in logged.items():
        name = re.sub("^(schedule|speed)/", "", re.sub("^(test|train)/", r"\1_", tag))
        # These tags lack the unit.
        name = f"{name}_nats" if name in ("train_reconstruction", "train_kl") else name
        points[name] = max(points[name], values, key=len)
    reconstruction, kl = points["train_reconstruction_nats"], points["train_kl_nats"]
    nelbo = {step: value + kl[step] for step, value in reconstruction.items() if step in kl}
    points["train_nelbo_nats"] = max(points["train_nelbo_nats"], nelbo, key=len)
    curves = {name: sorted(values.items()) for name, values in points.items() if values}
    return {name: tuple(map(list, zip(*curve, strict=True))) for name, curve in curves.items()}, seconds


def _read_events(folder: pathlib.Path) -> tuple[dict[str, dict[int, float]], float]:
    """Reads TensorBoard's scalars by tag and step, the latest of a step, and the seconds that its files span.

    Files are read one event at a time (TensorBoard's accumulator keeps all images in memory), up to their damage.
    """
    points: dict[str, dict[int, float]] = collections.defaultdict(dict)
    seconds = 0.0
    for file in sorted(folder.glob("*tfevents*")):  # a file's name begins with the time of its making
        times = []
        with contextlib.suppress(tf.errors.OpError, OSError):
            for event in EventFileLoader(str(file)).Load():
                times.append(event.wall_time)
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "scalars":
                        points[value.tag][event.step] = float(tensor_util.make_ndarray(value.tensor))
        seconds += times[-1] - times[0] if times else 0.0
    return points, seconds


def read_training_samples(folder: RunFolder, width: int, columns: int) -> tuple[list[int], np.ndarray]:
    """Reads up to five steps at which training has drawn samples, and the first images of each.

    Images are `[steps, columns, height, width, channels]`, uint8. There are no steps where a file is damaged.
    """
    files = sorted(folder.samples.glob("step-*.png"))
    files = [files[number] for number in spread_numbers(len(files), 5)]
    with contextlib.suppress(ArithmeticError, OSError, ValueError, SyntaxError):
        images = np.array([read_images(file, width, columns)[:columns] for file in files])
        return [int(file.stem[5:]) for file in files], images
    return [], np.array([])
