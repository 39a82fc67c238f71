"""The bounds of an evaluation file as rows, for the table of `train.evaluate` and the page of `train.report`."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class BoundRow(NamedTuple):
    """A mean over the images.

    Attributes:
      name: what it is of.
      nats: of an image.
      bits: of a real value.
      half_width: half of the 95% confidence interval, in nats; None where it was not measured.
      half_width_bits: the same in bits of a real value.
      is_of_group: whether it is the KL of one group.
    """

    name: str
    nats: float
    bits: float
    half_width: float | None = None
    half_width_bits: float | None = None
    is_of_group: bool = False


def bound_rows(figures: Mapping[str, Any]) -> list[BoundRow]:
    """Bounds, their parts, and the KL of every scale, each followed by those of its groups."""
    bits_of_nats = figures["bits_per_dim"] / figures["nelbo_nats"] if figures["nelbo_nats"] else 0.0
    half_widths = figures.get("half_widths_95", {})

    def row(name: str, nats: float, measured: str | None = None, is_of_group: bool = False) -> BoundRow:
        half_width = half_widths.get(measured)
        in_bits = None if half_width is None else half_width * bits_of_nats
        return BoundRow(name, nats, nats * bits_of_nats, half_width, in_bits, is_of_group)

    rows = [row("NELBO", figures["nelbo_nats"], "nelbo_nats")]
    for number, nats in figures.get("importance_weighted_nats_by_samples", {}).items():
        is_last = int(number) == figures["importance_samples"]
        name = f"importance-weighted, {int(number):,} sample{'' if number == '1' else 's'}"
        rows.append(row(name, nats, "importance_weighted_nats" if is_last else None))
    rows.append(row("reconstruction", figures["reconstruction_nats"], "reconstruction_nats"))
    rows.append(row("KL", figures["kl_nats"], "kl_nats"))
    for scale, nats in zip(figures["scales"], figures["kl_per_scale_nats"], strict=True):
        size = f"{scale['height']}x{scale['width']}"
        rows.append(row(f"KL of scale {size}", nats))
        of_groups = [(group, figures["kl_per_group_nats"][group]) for group in scale["groups"]]
        rows += [row(f"KL of group {group} ({size})", value, is_of_group=True) for group, value in of_groups]
    return rows


def effective_samples_line(figures: Mapping[str, Any]) -> str | None:
    """How many samples counted, in words; None where there is no importance-weighted bound."""
    effective = figures.get("effective_samples")
    return effective and (
        f"effective samples of {figures['importance_samples']:,}: {effective['mean']:.1f} in the mean, "
        f"{effective['median']:.1f} in the median, at least {effective['smallest']:.1f}"
    )
