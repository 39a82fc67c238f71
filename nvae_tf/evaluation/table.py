"""The metrics of an evaluation file as a table for people: `evaluation.txt`, the page of a run, its model card."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

_PROVENANCE = ("{num_images:,} ", "images of the {split} part of {dataset}", " ({data})", ", seed {seed}")
_PROVENANCE += ("\n{checkpoint} checkpoint", ", step {step:,}", ", {weights}", ", SHA-256 {checkpoint_sha256:.16}...")


def table(metrics: Mapping[str, Any]) -> str:
    """The evaluation file for people: what was evaluated, as far as it is known, then what was measured."""
    known, about = {name: value for name, value in metrics.items() if value is not None}, ""
    for part in _PROVENANCE:
        with contextlib.suppress(KeyError):
            about += part.format_map(known)
    parts = [about]
    if "nelbo_nats" in metrics:
        parts.append("\n".join(_bounds(metrics)))
    if "latents" in metrics:
        active, channels = metrics["latents"]["active_units_per_group"], metrics["latents"]["latent_channels"]
        lines = [f"active units: {sum(active):,} of {channels * len(active):,} latent channels"]
        lines += [f"  group {group:3d}: {count} of {channels}" for group, count in enumerate(active)]
        parts.append("\n".join(lines + [f"picture: {name}" for name in metrics["latents"]["pictures"]]))
    if "fid" in metrics:
        fid = metrics["fid"]
        parts.append(
            f"FID {fid['value']:.3f}: {fid['samples']:,} samples at temperature {fid['temperature']} against "
            f"{fid['real_images']:,} images, features of {fid['extractor']}"
            + ("" if fid.get("extractor_is_published") else ", not known as the published Inception graph")
            + (f"\n  {fid['batch_norm_shift']}" if fid["batch_norm_iterations"] else "")
        )
    return "\n\n".join(parts)


def _bounds(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Lines for bounds, their parts, and the KL of every scale, each followed by those of its groups."""
    bits_of_nats = metrics["bits_per_dim"] / metrics["nelbo_nats"] if metrics["nelbo_nats"] else 0.0
    half_widths = metrics.get("half_widths_95", {})

    def row(name: str, nats: float, measured: str | None = None) -> str:
        half_width = half_widths.get(measured)
        spread = "" if half_width is None else f"{half_width:.3f}"
        return f"{name:36s}{nats:12.3f}{spread:>10s}{nats * bits_of_nats:10.4f}"

    yield f"{'':36s}{'nats':>12s}{'+- (95%)':>10s}{'bits/dim':>10s}"
    yield row("NELBO", metrics["nelbo_nats"], "nelbo_nats")
    for number, nats in metrics.get("importance_weighted_nats_by_samples", {}).items():
        measured = "importance_weighted_nats" if int(number) == metrics["importance_samples"] else None
        yield row(f"importance-weighted, {int(number):,} sample{'' if number == '1' else 's'}", nats, measured)
    yield row("reconstruction", metrics["reconstruction_nats"], "reconstruction_nats")
    yield row("KL", metrics["kl_nats"], "kl_nats")
    for scale, nats in zip(metrics["scales"], metrics["kl_per_scale_nats"], strict=True):
        size = f"{scale['height']}x{scale['width']}"
        yield row(f"KL of scale {size}", nats)
        for group in scale["groups"]:
            yield row(f"KL of group {group} ({size})", metrics["kl_per_group_nats"][group])
    if effective := metrics.get("effective_samples"):
        yield (
            f"effective samples of {metrics['importance_samples']:,}: {effective['mean']:.1f} in the mean, "
            f"{effective['median']:.1f} in the median, at least {effective['smallest']:.1f}"
        )
