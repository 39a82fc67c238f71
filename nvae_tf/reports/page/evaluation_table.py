"""What `train.evaluate` has measured, as HTML, or how to have it measured."""

import json
import pathlib
import shlex
from typing import Any

import numpy as np

from nvae_tf.evaluation.evaluate import bound_rows, effective_samples_line
from nvae_tf.evaluation.latent_usage import kl_heat_map
from nvae_tf.generation.arguments import temperature_text
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.reports.page.markup import command, escaped, paragraph, picture, table
from nvae_tf.training.run_folder import RunFolder

# Whatever a damaged file, or one of another version, may lead to.
_UNREADABLE = (AttributeError, LookupError, OSError, TypeError, ValueError)


def read_evaluation(folder: RunFolder) -> dict[str, Any] | None:
    """The figures of the run's test images; None where there are none yet.

    Raises:
      ValueError: the file is no JSON object.
    """
    file = folder.evaluation_file()
    if not file.exists():
        return None
    figures = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(figures, dict):
        raise ValueError(f"{file.name}: not a JSON object")
    return figures


def evaluation_section(folder: RunFolder, checkpoint: str, sha256: str | None) -> str:
    """The table of the evaluation file, or the command that makes it.

    Args:
      folder: the run's.
      checkpoint: "latest" or "best", what the page is about.
      sha256: of this checkpoint; None where there is none.
    """
    try:
        figures = read_evaluation(folder)
        parts = [] if figures is None else [_about(figures, sha256), _bounds(figures), _latents(figures), _fid(figures)]
    except _UNREADABLE as error:
        told = f"{type(error).__name__}: {error}"
        text = f"evaluation.json can't be read as an evaluation ({told}). This command makes it anew:"
        return paragraph(text) + command(evaluation_command(folder.path, checkpoint))
    if figures is None:
        text = "The test images have not been evaluated yet (no evaluation.json). This command does it:"
        return paragraph(text) + command(evaluation_command(folder.path, checkpoint))
    if figures.get("checkpoint_sha256") != sha256:
        parts.append(command(evaluation_command(folder.path, checkpoint)))
    return "".join(parts)


def latent_use_section(folder: RunFolder, checkpoint: str, sha256: str | None, plan: LatentPlan) -> str:
    """The picture of the KL of every latent channel, where the evaluation has it."""
    try:
        per_channel = np.array((read_evaluation(folder) or {})["latents"]["kl_per_channel_nats"], np.float64)
        if per_channel.shape != (plan.num_groups, plan.num_latent_per_group) or not np.isfinite(per_channel).all():
            raise ValueError("latents.kl_per_channel_nats is of another model")
    except _UNREADABLE:
        text = (
            "evaluation.json has no KL of single latent channels of this model (metric latents). This command adds it:"
        )
        return paragraph(text) + command(evaluation_command(folder.path, checkpoint))
    drawn = picture(
        kl_heat_map(per_channel, plan.latent_shapes()),
        "KL per latent channel",
        "nats of an image and position, mean over the test images; a row is a group, a cell one of its channels, the "
        "largest first; the colors are logarithmic. Dark channels tell nothing of an image.",
    )
    return _other_checkpoint(read_evaluation(folder), sha256) + drawn


def evaluation_command(workdir: pathlib.Path, checkpoint: str) -> str:
    """The command that measures all that the page shows."""
    which = "" if checkpoint == "latest" else f" --checkpoint={checkpoint}"
    return f"python -m train.evaluate --workdir={shlex.quote(str(workdir))} --metrics=elbo,iw,latents{which}"


def _other_checkpoint(figures: dict[str, Any], sha256: str | None) -> str:
    if figures.get("checkpoint_sha256") == sha256:
        return ""
    return (
        '<p class="note"><b>Of another checkpoint</b> than the one on this page: '
        f"step {escaped(figures.get('step', 'not known'))}, "
        f"SHA-256 {escaped(str(figures.get('checkpoint_sha256', 'not known'))[:16])}.</p>"
    )


def _about(figures: dict[str, Any], sha256: str | None) -> str:
    text = (
        f"{figures.get('num_images', 0):,} images of the {figures.get('split')} part of {figures.get('dataset')} "
        f"({figures.get('data')}), seed {figures.get('seed')}; {figures.get('checkpoint')} checkpoint, step "
        f"{figures.get('step', 0):,}, {figures.get('weights')}, {figures.get('date')}."
    )
    return _other_checkpoint(figures, sha256) + paragraph(text)


def _bounds(figures: dict[str, Any]) -> str:
    if "nelbo_nats" not in figures:
        return paragraph("Bounds on the likelihood have not been measured (metrics elbo and iw).")
    header = ["Mean over the images", "nats per image", "95%", "bits per real value", "95%"]
    rows, of_groups = [], []
    for row in bound_rows(figures):
        cells = [row.name, f"{row.nats:.3f}", "", f"{row.bits:.4f}", ""]
        if row.half_width is not None:
            cells[2], cells[4] = f"± {row.half_width:.3f}", f"± {row.half_width_bits:.4f}"
        (of_groups if row.is_of_group else rows).append(cells)
    groups = table(["Group", header[1], header[3]], [[cells[0], cells[1], cells[3]] for cells in of_groups])
    folded = f"<details><summary>KL of every group</summary>{groups}</details>"
    effective = effective_samples_line(figures)
    return table(header, rows) + (paragraph(f"{effective}.") if effective else "") + folded


def _latents(figures: dict[str, Any]) -> str:
    if "latents" not in figures:
        return ""
    latents = figures["latents"]
    total = latents["latent_channels"] * len(latents["active_units_per_group"])
    return paragraph(f"Active units: {latents['active_units']:,} of {total:,} latent channels.")


def _fid(figures: dict[str, Any]) -> str:
    if "fid" not in figures:
        return ""
    fid = figures["fid"]
    readjusted = f"; {fid['batch_norm_shift']}" if fid.get("batch_norm_iterations") else ""
    return paragraph(
        f"FID (Fréchet Inception distance, no unit, lower is better) {fid['value']:.3f}: {fid['samples']:,} samples at "
        f"{temperature_text(fid['temperature'])} against {fid['real_images']:,} images, features of {fid['extractor']}"
        f"{readjusted}."
    )
