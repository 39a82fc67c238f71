"""The figures of `benchmarks.all` for people, as Markdown."""

from collections.abc import Sequence
from typing import Any

from benchmarks.workloads import WORKLOADS

COLUMNS = (
    "workload",
    "preset",
    "batch",
    "time",
    "yardstick",
    "time / yardstick",
    "noise",
    "rounds",
    "time to first step",
    "peak memory",
)


def table(result: dict[str, Any]) -> str:
    """All results, where they were taken, and what the columns mean."""
    machine = result["machine"]
    place = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, "
        f"{machine['system']}, {machine['threads_used']} threads, load {machine['load_average_at_start']:.1f}"
    )
    parts = [f"{name} {version}" for name, version in result["versions"].items()]
    parts.append(f"revision {result['revision'] or 'unknown'}, {result['date']}")
    lines = [", ".join(parts), "", place, "", *markdown(COLUMNS, [cells(row) for row in result["results"]])]
    lines += ["", *explanations(result["results"])]
    if not result["complete"]:
        lines += ["", "Interrupted: not all workloads were measured."]
    return "\n".join(lines)


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; `|` in a cell does not end it."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *escaped)]


def cells(row: dict[str, Any]) -> list[str]:
    """One result; where it failed, the reason in place of the figures."""
    workload = WORKLOADS.get(row["workload"])
    named = [workload.what if workload else row["workload"], row["preset"], str(row["batch_size"] or "-")]
    if row["failure"] is not None:
        return named + [f"failed: {row['failure']}"] + [""] * (len(COLUMNS) - len(named) - 1)
    return named + [
        seconds(row["median_seconds"]),
        row["yardstick"] or "-",
        "-" if row["ratio"] is None else f"{row['ratio']:.3g}",
        percent(row["noise"]),
        str(len(row["seconds"])),
        seconds(row["first_step_seconds"]),
        f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
    ]


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s" if value < 100.0 else f"{value:.0f} s"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def explanations(results: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know of the columns."""
    lines = [
        "Time: the median of a batch or of a whole command. Noise: the standard error of the figure to compare, from",
        "the rounds. Time to first step: building the model, or loading it, and the first time, after the imports.",
        "Peak memory: of the workload's own process; of a command, that of the largest of its processes.",
    ]
    if any(row.get("yardstick") for row in results):
        lines += [
            "Yardstick: which small PyTorch workload (benchmarks/torch_yardstick.py) took turns. There is none for",
            "architectures and work other than training on MNIST and CIFAR-10: cifar10 is a clock there, no more.",
        ]
    return lines
