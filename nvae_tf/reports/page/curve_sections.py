"""Curves of a run as HTML: how training went, and which latent groups came to be used."""

from collections.abc import Sequence

import numpy as np

from nvae_tf.reports.page.charts import Series, line_chart
from nvae_tf.reports.page.heat_maps import heat_map
from nvae_tf.reports.page.markup import paragraph
from nvae_tf.reports.page.run_curves import Curve, GroupCurves, group_curves

# Of TensorBoard's files, see `nvae_tf/training/outputs.py`.
FAMILIES = ("kl_per_group", "train_kl_per_group", "active_units", "spectral_norm")
_NATS = "nats per image"
_CHARTS = (
    ("NELBO (negative evidence lower bound)", _NATS, {"training": "train_nelbo_nats", "test": "test_nelbo_nats"}),
    (
        "Reconstruction (negative log-likelihood)",
        _NATS,
        {"training": "train_reconstruction_nats", "test": "test_reconstruction_nats"},
    ),
    ("KL of posterior and prior", _NATS, {"training": "train_kl_nats", "test": "test_kl_nats"}),
    ("NELBO in bits", "bits per real value", {"test": "test_bits_per_dim"}),
    ("Learning rate", "no unit", {"learning rate": "learning_rate"}),
    ("KL weight β", "factor of the KL in the loss", {"KL weight": "kl_weight"}),
    ("Speed of training", "images per second", {"speed": "images_per_second"}),
)


def loss_curves(metrics: dict[str, Curve]) -> str:
    """Charts of `metrics.csv`."""
    if not metrics:
        return paragraph(
            "There are no figures yet: metrics.csv gets a line every train.evaluate_every_steps steps and at the end."
        )
    count = len(next(iter(metrics.values())).steps)
    charts, missing = [], []
    for title, unit, columns in _CHARTS:
        lines = [Series(name, *metrics[column]) for name, column in columns.items() if _has_values(metrics, column)]
        if lines:
            charts.append(line_chart(title, unit, lines))
        else:
            missing.append(title)
    text = (
        "From metrics.csv. Test: means over all images of the test part. Training: means over the steps since the last "
        "multiple of train.log_every_steps, with the weights as they were at each. Lower is better for all in nats and "
        "bits. Point at a mark for its value."
    )
    if count == 1:
        text += " There is only one evaluation so far, so there are single points instead of lines."
    if missing:
        text += f" Without values in metrics.csv: {'; '.join(missing)}."
    return paragraph(text) + f'<div class="charts">{"".join(charts)}</div>'


def latents_over_time(scalars: dict[str, Curve], latent_shapes: Sequence[tuple[int, int, int]]) -> str:
    """Heat maps of the KL and the active units of every group, and the spectral norms, of TensorBoard's files."""
    maps = [
        _map(scalars, latent_shapes, "kl_per_group", "KL per group, test images", _NATS, True),
        _map(scalars, latent_shapes, "train_kl_per_group", "KL per group, training batches", _NATS, True),
        _map(scalars, latent_shapes, "active_units", "Active units per group", f"of {latent_shapes[0][2]}", False),
    ]
    norms = [
        line_chart(f"Spectral norm, {words}", "of convolution kernels as matrices", [Series(words, *scalars[tag])])
        for words, tag in (("the largest", "spectral_norm/largest"), ("sum of all", "spectral_norm/sum"))
        if tag in scalars
    ]
    found = [chart for chart in [*maps, *norms] if chart]
    if not found:
        return paragraph(
            "There are no TensorBoard files with figures of the groups in this run folder: training writes them every "
            "train.log_every_steps and train.evaluate_every_steps steps, into tensorboard/."
        )
    text = (
        "From TensorBoard's files. Group 0 is the top of the hierarchy; beside its number stand height and width of "
        "its latent. A group that stays dark is not used. A unit is a latent channel of a group, active where its KL "
        "exceeds 0.01 nats of an image and position."
    )
    return paragraph(text) + f'<div class="charts">{"".join(found)}</div>'


def _map(scalars, latent_shapes, family: str, title: str, unit: str, is_logarithmic: bool) -> str:
    curves: GroupCurves | None = group_curves(scalars, family)
    if curves is None or not np.isfinite(curves.values).any():
        return ""
    names = [_group_name(group, latent_shapes) for group in curves.groups]
    return heat_map(title, unit, names, curves.steps, curves.values, is_logarithmic)


def _group_name(group: int, latent_shapes) -> str:
    if group >= len(latent_shapes):
        return f"group {group}"
    height, width, _ = latent_shapes[group]
    return f"{group} ({height}×{width})"


def _has_values(metrics: dict[str, Curve], column: str) -> bool:
    return column in metrics and bool(np.isfinite(metrics[column].values).any())
