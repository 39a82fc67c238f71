"""The metrics of an evaluation file for people: rows of the page of a run, and the text of `evaluation.txt`."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nvae_tf.progress import counted

ACTIVE_FROM = 0.01  # nats per image and position
# Distances of samples from the training images, in the features of Inception or of the user's own extractor.
_DISTANCES = {"fid": "FID", "frechet": "Fréchet distance"}
_OUTLIER_SCORES = {"mahalanobis": "Mahalanobis", "kl": "sum of KLs", "nelbo_at_mean": "NELBO at the means"}
# Earlier files have the names "nelbo" and "llr", the likelihood ratio of Havtorn et al. (2021).
_OUTLIER_SCORES |= {"nelbo": "NELBO at the means", "llr": "LLR"}
_PROVENANCE = ("{num_images:,} ", "images of the {split} part of {dataset}", " ({data})", ", seed {seed}")
_PROVENANCE += ("\n{checkpoint} checkpoint", ", step {step:,}", ", {weights}", ", SHA-256 {checkpoint_sha256:.16}...")


def active_units(kl_per_channel_nats: np.ndarray, latent_shapes: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The number of active units of every group, int `[groups]`, from the KL `[groups, latent channels]` of images."""
    # Vahdat & Kautz (2020) count from 0.1 nats per image and position on.
    positions = np.array([height * width for height, width, _ in latent_shapes])
    return np.sum(kl_per_channel_nats / positions[:, np.newaxis] > ACTIVE_FROM, axis=1)


def digits(value: float, count: int = 4) -> str:
    """A number with `count` significant digits, or all digits before the point: `0.05417`, `9,740`, `10,400`."""
    return f"{value:,.{count}g}" if abs(value) < 10**count - 0.5 else f"{value:,.0f}"


def interval(value: float, half_width: float | None) -> str:
    """A value and half the width of its interval, which gets two digits: `35.95 ± 0.94`."""
    if not half_width:
        return digits(value)
    places = max(0, 1 - math.floor(math.log10(half_width)))
    return f"{value:,.{places}f} ± {half_width:,.{places}f}"


def rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields the name, the value with its unit and 95% interval, and the origin of every metric."""
    yield from _bounds(metrics)
    if latents := metrics.get("latents"):
        channels = latents["latent_channels"] * len(latents["active_units_per_group"])
        how = f"latent channels whose KL is above {latents['active_from_nats']:g} nats per image and position"
        yield "active units", f"{latents['active_units']:,} of {channels:,}", how
        if kept := latents.get("active_only"):  # a file of an earlier version lacks it
            how = f"the {kept['channels']} with the largest KL, the others at the prior's mean; all channels together "
            how += f"{digits(kept['reconstruction_nats_of_all_channels'])} nats; mean of {kept['num_images']:,} images"
            value = f"{digits(kept['reconstruction_nats'])} nats per image"
            yield "reconstruction, a tenth of the channels", value, how
    for key, name in _DISTANCES.items():
        if fid := metrics.get(key):
            how = f"{fid['samples']:,} samples at temperature {fid['temperature']}"
            how += ", reweighted prior" if fid.get("prior") == "reweighted" else ""
            how += f", {fid['real_images']:,} training images, features of {fid['extractor']}"
            unknown = key == "fid" and not fid.get("extractor_is_published")
            yield name, f"{fid['value']:.2f}", how + ", not known as the published Inception graph" * unknown
    probe = metrics.get("probe", {"labels": (), "accuracy": {}})
    for number, count in enumerate(probe["labels"]):
        for classifier, curves in probe["accuracy"].items():
            values = ", ".join(f"{values[number]:.3f} {name}" for name, values in curves.items())
            how = f"accuracy on {probe['test_images']:,} test images"
            if number + 1 < len(probe["labels"]):  # the last are all labels
                how += f", mean of {probe['splits']} choices of the labels"
            yield f"{classifier}, {count:,} labels", values, how
    if noise := metrics.get("noise"):
        how = f"of a little noise more, what is in the signal at the posterior's means; {noise['num_images']:,} images"
        yield "noise that passes", f"{noise['passes']:.1%}", how
        for key, name, unit in (("psnr", "PSNR", " dB"), ("ssim", "SSIM", "")):
            if key in noise:
                noisy = f"{digits(noise[f'{key}_of_images'])}{unit}"
                yield name, f"{digits(noise[key])}{unit}", f"of that signal; of the noisy images it is {noisy}"
    for name, measured in metrics.get("outliers", {"sets": {}})["sets"].items():
        areas = [f"{area:.3f} {_OUTLIER_SCORES.get(key, key)}" for key, area in measured["auroc"].items()]
        how = f"area under the ROC curve, {measured['num_images']:,} of these against the {metrics.get('split')} images"
        yield f"AUROC, {name}", ", ".join(areas), how


def _bounds(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields the rows of the bounds on the likelihood and of their parts."""
    # A file of another version may lack some of the provenance.
    number = f"{metrics['num_images']:,} " if metrics.get("num_images") else ""
    halves, images = metrics.get("half_widths_95", {}), f"mean of {number}{metrics.get('split')} images"
    samples = counted(metrics.get("importance_samples", 0), "sample")
    bounds = (
        ("importance_weighted_nats", f"importance-weighted, {samples}", images),
        ("nelbo_nats", "NELBO", f"reconstruction + KL, 1 sample per image; {images}"),
        ("reconstruction_nats", "reconstruction", "negative log-likelihood of an image given its latents"),
        ("kl_nats", "KL", "of posterior and prior, the sum over all groups"),
    )
    for key, name, how in bounds:
        if key not in metrics:
            continue
        yield name, f"{interval(metrics[key], halves.get(key))} nats per image", how
        if key in ("importance_weighted_nats", "nelbo_nats") and "num_values" in metrics:
            in_bits = 1.0 / (metrics["num_values"] * math.log(2.0))
            bits = interval(metrics[key] * in_bits, halves.get(key, 0.0) * in_bits)
            yield f"{name}, in bits", f"{bits} bits/dim", f"nats / {metrics['num_values']:,} values / ln 2"


def table(metrics: Mapping[str, Any]) -> str:
    """The evaluation file as text: what was evaluated, as far as the file says it, the metrics, and their parts."""
    known, about = {name: value for name, value in metrics.items() if value is not None}, ""
    for part in _PROVENANCE:
        with contextlib.suppress(KeyError):
            about += part.format_map(known)
    lines = [(name, value) for name, value, _ in rows(metrics)]
    parts = ["\n".join(f"{name:44s} {value}" for name, value in part) for part in (lines, _details(metrics))]
    return "\n\n".join([about, *filter(None, parts)])


def _details(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the parts of the metrics: bounds with fewer samples, the KL of every scale and group, and the like."""
    for number, nats in metrics.get("importance_weighted_nats_by_samples", {}).items():
        if int(number) != metrics["importance_samples"]:
            yield f"importance-weighted, {counted(int(number), 'sample')}", f"{nats:,.2f} nats per image"
    for scale, nats in zip(metrics.get("scales", ()), metrics.get("kl_per_scale_nats", ()), strict=True):
        size = f"{scale['height']}x{scale['width']}"
        yield f"KL of scale {size}", f"{nats:,.2f} nats per image"
        for group in scale["groups"]:
            yield f"KL of group {group} ({size})", f"{metrics['kl_per_group_nats'][group]:,.2f} nats per image"
    if effective := metrics.get("effective_samples"):
        text = "{mean:.1f} in the mean, {median:.1f} in the median, at least {smallest:.1f}".format_map(effective)
        yield f"effective samples of {metrics['importance_samples']:,}", text
    if latents := metrics.get("latents"):
        for group, count in enumerate(latents["active_units_per_group"]):
            yield f"active units of group {group}", f"{count} of {latents['latent_channels']}"
    if (outliers := metrics.get("outliers")) and not outliers["calibrated"]:
        yield "no Mahalanobis distance, no p-values:", "nvae-calibrate has not been run for this checkpoint"
    elif outliers:
        for name, measured in outliers["sets"].items():
            value = "{mahalanobis:.1%} Mahalanobis, {kl:.1%} sum of KLs".format_map(measured["flagged"])
            yield f"p-value at most {outliers['flagged_below']:g}, {name}", value
    for name, _, how in rows(metrics):
        if name in _DISTANCES.values():
            yield name, how
    for key, name in _DISTANCES.items():
        if shift := metrics.get(key, {}).get("batch_norm_shift"):
            yield f"batch norm of {name}", shift
