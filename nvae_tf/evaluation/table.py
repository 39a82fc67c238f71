"""The figures of an evaluation for people."""

from typing import Any

from nvae_tf.evaluation.bound_rows import bound_rows, effective_samples_line


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
    lines = [f"{'':36s}{'nats':>12s}{'+- (95%)':>10s}{'bits/dim':>10s}"]
    for row in bound_rows(figures):
        spread = "" if row.half_width is None else f"{row.half_width:.3f}"
        lines.append(f"{row.name:36s}{row.nats:12.3f}{spread:>10s}{row.bits:10.4f}")
    return "\n".join([*lines, *filter(None, [effective_samples_line(figures)])])


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
