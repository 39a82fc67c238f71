"""What all benchmarks share around the measuring: options, the machine, tables, and the JSON file of results."""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import psutil

from nvae_tf.files import atomic_write, git_revision

ROOT = pathlib.Path(__file__).parents[1]
THREADS = 2  # of every workload
_BUSY = 0.7  # a load average at the start above which something else is running


def say(line: str) -> None:
    """Reports progress; standard output is for the results alone."""
    print(line, file=sys.stderr, flush=True)


def benchmark_parser(name: str, documentation: str) -> argparse.ArgumentParser:
    """A parser whose `--help` is the module's documentation, with the option `--json`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write the results there as well")
    return parser


def json_file(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: not a file in an existing folder")
    return path


def at_least(least: float, kind: type = int) -> Callable[[str], float]:
    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= kind(text) < float("inf"):
                return kind(text)
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text}: must be {what} and at least {least}")

    return read


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r}: must be some of {', '.join(known)}")
        return list(dict.fromkeys(text.split(",")))

    return read


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def parse_with_yardstick(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    parser.add_argument("--no-yardstick", action="store_true", help="our own times alone, without a ratio")
    options = parser.parse_args(arguments)
    options.no_yardstick |= bool(getattr(options, "against", None))
    if not options.no_yardstick and not has_torch():
        parser.error("the yardstick needs PyTorch, which is not installed: `make torch`, or give --no-yardstick")
    return options


def stamp() -> dict[str, Any]:
    """Where, when and with what results are taken; says so if the machine is busy."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    if (load := os.getloadavg()[0]) > _BUSY:
        say(f"note: the load average is {load:.1f}: something else is running, or was a moment ago")
    versions = {"python": platform.python_version()}
    for package in ("tensorflow", "keras", "numpy", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine = {"processor": processor, "cores": os.cpu_count(), "threads_used": THREADS, "load_average_at_start": load}
    machine |= {"system": f"{platform.system()} {platform.machine()}", "memory_bytes": psutil.virtual_memory().total}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": now, "machine": machine, "versions": versions, "revision": git_revision(ROOT)}


def run(options: argparse.Namespace, measure: Callable[[argparse.Namespace], dict[str, Any]]) -> dict[str, Any]:
    """Measures, prints the results by their names, and writes them if `--json` names a file."""
    about, measured = stamp(), measure(options)
    result = about | measured
    print("\n".join([text(measured), *place(result)]))
    write_json(result, options.json)
    return result


def text(measured: dict[str, Any]) -> str:
    """Results by their names in the file of `--json`; those of every single turn are in the file alone."""
    lines = []
    for name, value in ((name, value) for name, value in measured.items() if not name.startswith("every_")):
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key:<42}{_cell(item)}" for key, item in value.items())]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            columns = [key for key in dict.fromkeys(itertools.chain(*value)) if not key.startswith("every_")]
            lines += [f"{name}:", *markdown(columns, [[row.get(key, "") for key in columns] for row in value])]
        else:
            lines.append(f"{name:<44}{_cell(value)}")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000.0 else f"{value:,.0f}"
    return "-" if value is None else f"{value:,}" if type(value) is int else str(value)


def place(result: dict[str, Any]) -> list[str]:
    machine, versions = result["machine"], result["versions"]
    return [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, "
        f"{machine['system']}, load {machine['load_average_at_start']:.1f}",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + f", {result['date']}",
    ]


def markdown(heading: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table; `|` in a cell does not end it, and cells that a row lacks are empty."""
    lines = [heading, ["---"] * len(heading)]
    lines += [[_cell(cell).replace("|", "\\|") for cell in row] + [""] * (len(heading) - len(row)) for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def write_json(result: dict[str, Any], file: pathlib.Path | None) -> None:
    if file:
        atomic_write(file, json.dumps(result, indent=2) + "\n")
