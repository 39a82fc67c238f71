"""The figures of `benchmarks.train_scaling`: from what was measured to rows, and to a table for people."""

import dataclasses
import datetime
import platform
from typing import Any, NamedTuple

import numpy as np

from benchmarks.train_step import UNEVEN

COLUMNS = (
    ("replicas", lambda row: str(row["replicas"])),
    ("recompute", lambda row: row["recompute"]),
    ("accumulate_steps", lambda row: str(row["accumulate_steps"])),
    ("images a step", lambda row: f"{row['images_a_step']:,}"),
    ("step, median", lambda row: f"{row['step_seconds']:.4f} s"),
    ("10% to 90%", lambda row: f"{row['step_seconds_10_percent']:.4f} to {row['step_seconds_90_percent']:.4f} s"),
    ("images/s", lambda row: f"{row['images_per_second']:,.1f}"),
    ("efficiency", lambda row: f"{row['efficiency']:.0%}" if row["efficiency"] else "-"),
    ("peak memory", lambda row: gigabytes(row["peak_memory_bytes"])),
    ("before the first step", lambda row: gigabytes(row["memory_before_first_step_bytes"])),
    ("time to first step", lambda row: f"{row['first_step_seconds']:.1f} s"),
    ("graph nodes", lambda row: f"{row['graph_nodes']:,}"),
)
COLUMNS_OF_VARIANT = 4


class Variant(NamedTuple):
    """What one row differs from the others in: settings of the group `train`."""

    replicas: int
    recompute: str
    accumulate_steps: int

    def __str__(self) -> str:
        return f"replicas={self.replicas} recompute={self.recompute} accumulate_steps={self.accumulate_steps}"


@dataclasses.dataclass
class Record:
    """What was measured of a variant: seconds a step in every turn, the worker's words, or why there are none."""

    turns: list[list[float]] = dataclasses.field(default_factory=list)
    summaries: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failure: str | None = None


def figures(records: dict[Variant, Record], batch_size: int) -> dict[str, Any]:
    rows = [row(variant, record, batch_size) for variant, record in records.items()]
    rates = {variant: values.get("images_per_second") for variant, values in zip(records, rows, strict=True)}
    for variant, values in zip(records, rows, strict=True):
        ours, one = rates[variant], rates.get(variant._replace(replicas=1))
        values["efficiency"] = ours / (variant.replicas * one) if ours and one else None
    versions = {"python": platform.python_version()}
    for summary in (summary for record in records.values() for summary in record.summaries):
        versions |= summary["versions"]
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"rows": rows, "versions": versions, "date": date}


def row(variant: Variant, record: Record, batch_size: int) -> dict[str, Any]:
    """Returns one variant's figures; where its worker has failed, little more than why."""
    values = variant._asdict() | {"images_a_step": variant.replicas * batch_size, "failure": record.failure}
    if not record.turns or not record.summaries:
        return values
    low, median, high = (float(np.percentile(np.concatenate(record.turns), rank)) for rank in (10, 50, 90))
    summaries = record.summaries
    largest = {name: max(summary[name] for summary in summaries) for name in ("graph_nodes", "refused_steps")}
    medians = {
        name: float(np.median([summary[name] for summary in summaries]))
        for name in ("trace_seconds", "first_step_seconds", "memory_before_first_step_bytes")
    }
    return values | {
        "step_seconds": median,
        "step_seconds_10_percent": low,
        "step_seconds_90_percent": high,
        "images_per_second": variant.replicas * batch_size / median,
        "peak_memory_bytes": max(peak_bytes(summary) for summary in summaries),
        **medians,
        **largest,
        "every_step_seconds": record.turns,
    }


def peak_bytes(summary: dict[str, Any]) -> int:
    """Returns the peak of the GPU with the highest one, or without GPUs of the process."""
    return max(summary["gpu_peak_bytes"], default=summary["peak_memory_bytes"])


def table(result: dict[str, Any]) -> str:
    """Returns the figures for people, as Markdown."""
    lines = [
        f"{result['preset']}, {result['batch_size']} images a replica, {result['precision']}, xla={result['xla']}, "
        f"{result['rounds']} rounds, {result['date']}",
        "",
        "| " + " | ".join(name for name, _ in COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += [line_of(row) for row in result["rows"]]
    machine = result["machine"]
    lines += ["", *notes(result), ""]
    devices = f"{len(machine['gpus'])} x {machine['gpus'][0]}, " if machine["gpus"] else ""
    lines += [f"{devices}{machine['processor']}, {machine['cores']} cores, load {machine['load_average_at_start']:.1f}"]
    lines += [", ".join(f"{name} {version}" for name, version in result["versions"].items())]
    return "\n".join(lines)


def line_of(row: dict[str, Any]) -> str:
    if row["failure"] is None:
        return "| " + " | ".join(show(row) for _, show in COLUMNS) + " |"
    cells = [show(row) for _, show in COLUMNS[:COLUMNS_OF_VARIANT]] + [f"none: {row['failure']}"]
    return "| " + " | ".join(cells) + " |" + " |" * (len(COLUMNS) - len(cells))


def notes(result: dict[str, Any]) -> list[str]:
    """Returns what a reader must know of the columns."""
    machine = result["machine"]
    same = "Efficiency: images/s over replicas x the images/s of 1 replica, each with the same batch (weak scaling)"
    if not machine["gpus"]:
        return [
            f"{same}; here replicas share the CPU's {machine['cores']} cores, so that 2 can hardly have more than 50%.",
            "Memory: of the process, with all replicas, TensorFlow itself and the graph.",
        ]
    if result["xla"] == "auto":
        same += "; xla=auto compiles the whole step of 1 replica, and that of several in parts"
    return [f"{same}.", "Memory: TensorFlow's, of the GPU with most in use; what CUDA itself takes is not in it."]


def doubts(rows: list[dict[str, Any]]) -> list[str]:
    """Returns what speaks against the figures."""
    found = []
    for row in (row for row in rows if row["failure"] is None):
        name = Variant(row["replicas"], row["recompute"], row["accumulate_steps"])
        if row["step_seconds_90_percent"] > UNEVEN * row["step_seconds_10_percent"]:
            found.append(f"{name}: the steps are uneven; something else was running, so measure again")
        if row["refused_steps"]:
            found.append(f"{name}: {row['refused_steps']:.0f} steps were refused, and take less time than others")
    return found


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
