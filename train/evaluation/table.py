"""The figures of an evaluation for people."""

from typing import Any


def table(figures: dict[str, Any]) -> str:
    """A readable table of the evaluation file: what was evaluated, then what was measured."""
    parts = [_heading(figures)]
    if "nelbo_nats" in figures:
        parts.append(_bounds(figures))
    if "latents" in figures:
        parts.append(_latents(figures))
    if "fid" in figures:
        parts.append(_fid(figures["fid"]))
    return "\n\n".join(parts)


def _heading(figures: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{figures['num_images']:,} images of the {figures['split']} part of {figures['dataset']} "
            f"({figures['data']}), seed {figures['seed']}",
            f"{figures['checkpoint']} checkpoint, step {figures['step']:,}, {figures['weights']}, "
            f"SHA-256 {figures['checkpoint_sha256'][:16]}...",
        ]
    )


def _bounds(figures: dict[str, Any]) -> str:
    bits = figures["bits_per_dim"] / figures["nelbo_nats"] if figures["nelbo_nats"] else 0.0
    half_widths = figures["half_widths_95"]

    def line(name: str, nats: float, half_width: float | None = None) -> str:
        spread = "" if half_width is None else f"{half_width:.3f}"
        return f"{name:36s}{nats:12.3f}{spread:>10s}{nats * bits:10.4f}"

    lines = [f"{'':36s}{'nats':>12s}{'+- (95%)':>10s}{'bits/dim':>10s}"]
    lines.append(line("NELBO", figures["nelbo_nats"], half_widths["nelbo_nats"]))
    by_samples = figures.get("importance_weighted_nats_by_samples", {})
    for number, nats in by_samples.items():
        is_last = int(number) == figures["importance_samples"]
        samples = "1 sample" if number == "1" else f"{int(number):,} samples"
        half_width = half_widths["importance_weighted_nats"] if is_last else None
        lines.append(line(f"importance-weighted, {samples}", nats, half_width))
    lines.append(line("reconstruction", figures["reconstruction_nats"], half_widths["reconstruction_nats"]))
    lines.append(line("KL", figures["kl_nats"], half_widths["kl_nats"]))
    for scale, nats in zip(figures["scales"], figures["kl_per_scale_nats"], strict=True):
        size = f"{scale['height']}x{scale['width']}"
        lines.append(line(f"KL of scale {size}", nats))
        lines += [
            line(f"KL of group {group} ({size})", figures["kl_per_group_nats"][group]) for group in scale["groups"]
        ]
    if by_samples:
        effective = figures["effective_samples"]
        lines.append(
            f"effective samples of {figures['importance_samples']:,}: {effective['mean']:.1f} in the mean, "
            f"{effective['median']:.1f} in the median, at least {effective['smallest']:.1f}"
        )
    return "\n".join(lines)


def _latents(figures: dict[str, Any]) -> str:
    latents = figures["latents"]
    active, channels = latents["active_units_per_group"], latents["latent_channels"]
    lines = [f"active units: {sum(active):,} of {channels * len(active):,} latent channels"]
    lines += [f"  group {group:3d}: {count} of {channels}" for group, count in enumerate(active)]
    return "\n".join(lines + [f"picture: {name}" for name in latents["pictures"]])


def _fid(fid: dict[str, Any]) -> str:
    return (
        f"FID {fid['value']:.3f}: {fid['samples']:,} samples at temperature {fid['temperature']} against "
        f"{fid['real_images']:,} images, features of {fid['extractor']}"
        + (f"\n  {fid['batch_norm_shift']}" if fid["batch_norm_iterations"] else "")
    )
