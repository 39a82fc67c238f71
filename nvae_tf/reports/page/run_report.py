"""The whole page about a run, from its folder."""

import datetime
import json
import os
import pathlib
from typing import NamedTuple

from nvae_tf.config import ExperimentConfig
from nvae_tf.errors import first_line
from nvae_tf.latent_plan import LatentPlan, latent_plan
from nvae_tf.progress import StatusLine
from nvae_tf.reports.page.curve_sections import FAMILIES, latents_over_time, loss_curves
from nvae_tf.reports.page.evaluation_table import evaluation_section, latent_use_section
from nvae_tf.reports.page.markup import escaped, paragraph, table
from nvae_tf.reports.page.page import Section, whole_page
from nvae_tf.reports.page.pictures import ReportPictures
from nvae_tf.reports.page.run_curves import read_metrics, read_scalars
from nvae_tf.reports.page.settings_table import settings_section
from nvae_tf.training.checkpoints import checkpoint_sha256
from nvae_tf.training.loading import TrainedRun, load_run
from nvae_tf.training.run_folder import RunFolder, read_run_config


class Report(NamedTuple):
    """The page, and what it lacks, a line each."""

    page: str
    missing: list[str]


def report_of_run(
    workdir: str | os.PathLike, checkpoint: str, seed: int, data_path: str | None, status: StatusLine
) -> Report:
    """Reads all that the run has written, draws pictures, and puts the page together.

    What is missing, or damaged, becomes a sentence on the page.

    Args:
      workdir: the run folder.
      checkpoint: "latest" or "best".
      seed: of the pictures.
      data_path: where the images lie, if no longer where they were during training.
      status: where progress is shown.

    Raises:
      FileNotFoundError, ValueError: it is no run folder, or its settings can't be used.
    """
    folder = RunFolder(pathlib.Path(workdir))
    config = read_run_config(folder)
    plan = latent_plan(config.model)
    trained, problem = _loaded(folder, checkpoint)
    sha256 = checkpoint_sha256(trained.checkpoint) if trained else None
    pictures = ReportPictures(trained, data_path, seed, status) if trained else None
    without = paragraph(f"There are no pictures, for want of a model: {problem}")
    status.show_if_due("reading curves")
    metrics, scalars = read_metrics(folder.metrics_file), read_scalars(folder.tensorboard, FAMILIES)
    sections = [
        Section("settings", "Settings", settings_section(json.loads(folder.config_file.read_text(encoding="utf-8")))),
        Section("curves", "Loss curves", loss_curves(metrics)),
        Section("groups", "Latent groups over time", latents_over_time(scalars, plan.latent_shapes())),
        Section("samples", "Samples", pictures.samples() if pictures else without),
        Section("pictures", "Test images", pictures.of_test_images() if pictures else without),
        Section("shared", "What the groups decide", pictures.shared_groups() if pictures else without),
        Section("latents", "Use of the latents", latent_use_section(folder, checkpoint, sha256, plan)),
        Section("evaluation", "Evaluation", evaluation_section(folder, checkpoint, sha256)),
    ]
    name = f"{config.data.name}, {folder.path.absolute().name}"
    heading = f"<h1>NVAE run: {escaped(name)}</h1>" + _facts(config, plan, checkpoint, trained, sha256)
    missing = pictures.missing if pictures else [f"pictures: {problem}"]
    return Report(whole_page(f"NVAE run: {name}", heading, sections), missing)


def _loaded(folder: RunFolder, checkpoint: str) -> tuple[TrainedRun | None, str]:
    """The run's model, or why there is none."""
    try:
        return load_run(folder.path, checkpoint), ""
    except (ValueError, OSError) as error:
        return None, first_line(error)


def _facts(
    config: ExperimentConfig, plan: LatentPlan, checkpoint: str, trained: TrainedRun | None, sha256: str | None
) -> str:
    data, model = config.data, config.model
    scales = [f"{len(scale.groups)} at {scale.height}×{scale.width}" for scale in plan.scales]
    rows = [
        ["Data set", f"{data.name}: {model.image_height}×{model.image_width} pixels, {_channels(model)}"],
        ["Latent groups", f"{plan.num_groups} of {plan.num_latent_per_group} channels: {', '.join(scales)}"],
    ]
    if trained:
        weights = "running means of the weights" if trained.has_running_means else "weights as trained"
        parameters = sum(variable.shape.num_elements() for variable in trained.model.trainable_variables)
        rows += [
            ["Step", f"{trained.step:,} of {config.objective.total_steps:,}"],
            ["Checkpoint", f"{checkpoint}, {weights}, SHA-256 {sha256[:16]}…"],
            ["Parameters", f"{parameters:,}"],
        ]
    else:
        rows.append(["Checkpoint", f"none that can be used; the run goes to step {config.objective.total_steps:,}"])
    now = datetime.datetime.now(datetime.UTC)
    rows.append(["Date of this page", now.strftime("%Y-%m-%d %H:%M UTC")])
    return table([], rows, "facts")


def _channels(model) -> str:
    depth = f"{model.num_bits} bit{'' if model.num_bits == 1 else 's'}"
    return f"{model.image_channels} channel{'' if model.image_channels == 1 else 's'}, {depth} each"
