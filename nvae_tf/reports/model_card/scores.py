"""The figures that `train.evaluate` has written, each with how it was made."""

import dataclasses
import json
import math
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

# Of a figure's name in the file: its type on the Hub, its name, its unit, what it was made with besides.
_BOUNDS = (
    ("importance_weighted_nats", "importance_weighted_bound", "importance-weighted bound", "nats an image"),
    ("importance_weighted_bits_per_dim", "importance_weighted_bits_per_dim", "importance-weighted bound", "bits/dim"),
    ("nelbo_nats", "nelbo", "NELBO (reconstruction + KL)", "nats an image"),
    ("bits_per_dim", "bits_per_dim", "NELBO (reconstruction + KL)", "bits/dim"),
    ("reconstruction_nats", "reconstruction", "reconstruction", "nats an image"),
    ("kl_nats", "kl", "KL", "nats an image"),
)
_MADE_WITH = {
    "num_images": int,
    "seed": int,
    "checkpoint": str,
    "step": int,
    "checkpoint_sha256": str,
    "weights": str,
    "tensorflow": str,
    "date": str,
}
# Whatever a damaged file, or one of another version, may lead to.
_UNREADABLE = (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True)
class Score:
    """One figure.

    Attributes:
      kind: its type among a card's metrics.
      name: for people.
      value: finite.
      unit: its unit; empty for none.
      half_width_95: half of the 95% confidence interval of a mean over the images, in the same unit; None if unknown.
      arguments: what it was made with, by the names of the file.
    """

    kind: str
    name: str
    value: float
    unit: str
    half_width_95: float | None
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one evaluation file says.

    Attributes:
      dataset: the data set's name.
      split: "train" or "test".
      scores: the figures.
      made_with: number of images, seed, checkpoint with its step and SHA-256, weights, versions, date; those that are
        recorded.
      command: what to type to make the figures again.
      pictures: files that it names and that exist, relative to the run folder.
    """

    dataset: str
    split: str
    scores: tuple[Score, ...]
    made_with: Mapping[str, Any]
    command: str
    pictures: tuple[str, ...]


def read_evaluation(file: pathlib.Path, workdir: str) -> Evaluation | None:
    """The figures of an evaluation file; None where there is none, or it can't be read as one.

    Args:
      file: in the run folder.
      workdir: the run folder's name in the command.
    """
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
        made_with = {name: kind(figures[name]) for name, kind in _MADE_WITH.items() if figures.get(name) is not None}
        scores = (*_bounds(figures, made_with), *_latents(figures, made_with), *_distance(figures, made_with))
        named = figures.get("latents", {}).get("pictures", ())
        pictures = tuple(name for name in named if _is_inside(name) and (file.parent / name).is_file())
        command = _command(figures, workdir)
        return Evaluation(str(figures["dataset"]), str(figures["split"]), scores, made_with, command, pictures)
    except _UNREADABLE:
        return None


def _bounds(figures: Mapping[str, Any], made_with: Mapping[str, Any]) -> list[Score]:
    half_widths = figures.get("half_widths_95", {})
    scores = []
    for key, kind, name, unit in _BOUNDS:
        if key not in figures:
            continue
        samples = {"importance_samples": int(figures["importance_samples"])} if key.startswith("importance") else {}
        half_width = None if half_widths.get(key) is None else _finite(half_widths[key])
        scores.append(Score(kind, name, _finite(figures[key]), unit, half_width, made_with | samples))
    return scores


def _latents(figures: Mapping[str, Any], made_with: Mapping[str, Any]) -> list[Score]:
    if "latents" not in figures:
        return []
    latents = figures["latents"]
    channels = int(latents["latent_channels"]) * len(latents["active_units_per_group"])
    arguments = made_with | {"active_from_nats": _finite(latents["active_from_nats"]), "latent_channels": channels}
    return [
        Score("active_units", "active units", _finite(latents["active_units"]), f"of {channels:,}", None, arguments)
    ]


def _distance(figures: Mapping[str, Any], made_with: Mapping[str, Any]) -> list[Score]:
    if "fid" not in figures:
        return []
    fid = figures["fid"]
    # Samples are compared with training images, whatever the part that was evaluated.
    how = {name: value for name, value in made_with.items() if name != "num_images"}
    how |= {name: int(fid[name]) for name in ("samples", "real_images", "batch_norm_iterations")}
    how |= {"temperature": _temperature(fid), "extractor": str(fid["extractor"])}
    how["extractor_is_published"] = bool(fid["extractor_is_published"])
    return [Score("fid", "FID", _finite(fid["value"]), "", None, how)]


def _temperature(fid: Mapping[str, Any]) -> str:
    """As the flag has it."""
    value = fid["temperature"]
    return ",".join(f"{_finite(number):g}" for number in (value if isinstance(value, list) else [value]))


def _command(figures: Mapping[str, Any], workdir: str) -> str:
    metrics = {"elbo": "nelbo_nats", "iw": "importance_weighted_nats", "latents": "latents", "fid": "fid"}
    measured = [metric for metric, key in metrics.items() if key in figures]
    flags = [f"--workdir={workdir}", f"--checkpoint={figures['checkpoint']}", f"--split={figures['split']}"]
    flags += [f"--metrics={','.join(measured)}", f"--seed={figures['seed']}"]
    if "iw" in measured:
        flags.append(f"--importance_samples={figures['importance_samples']}")
    if "fid" in measured:
        fid = figures["fid"]
        flags += [f"--fid_samples={fid['samples']}", f"--temperature={_temperature(fid)}"]
        if fid["batch_norm_iterations"]:
            flags.append(f"--batch_norm_iterations={fid['batch_norm_iterations']}")
        if not str(fid["extractor"]).startswith("inception-"):
            # The name tells the module and the version of its file, not the function.
            flags.append("--extractor=MODULE:FUNCTION")
    return shlex.join(["python", "-m", "train.evaluate", *flags])


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not a finite figure")
    return value


def _is_inside(name: str) -> bool:
    path = pathlib.PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
