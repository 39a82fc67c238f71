"""What all benchmarks share around the measuring: options, the machine, tables, and the JSON file of results."""

import contextlib
import datetime
import importlib.metadata
import importlib.util
import inspect
import itertools
import os
import pathlib
import platform
import re
import statistics
import sys
from collections.abc import Callable
from json import dumps
from typing import Annotated, Any

import psutil

from nvae_tf import command_line
from nvae_tf.files import atomic_write, check_writable, git_revision

ROOT = pathlib.Path(__file__).parents[1]
THREADS = 2  # of every workload
Json = Annotated[str | None, "File to write the results to as well."]
NoYardstick = Annotated[bool, "Our own numbers alone, without PyTorch's yardstick and a ratio."]


def say(line: str) -> None:
    """Reports progress; standard output is for the results alone."""
    print(line, file=sys.stderr, flush=True)


def run_recipe(name: str, page: str, *recipes: Callable[..., dict[str, Any]]) -> None:
    """Runs the recipe that the command line names first, with a flag for each of its parameters, and --json."""
    by_name = {recipe.__name__: recipe for recipe in recipes}
    recipe = by_name[command_line.take_mode(f"recipe of {name}", by_name, page.strip())]
    parameters = inspect.signature(recipe).parameters

    def main(json: str | None, **options: Any) -> None:
        run(lambda: recipe(**options), json)

    main.__signature__ = inspect.Signature([*parameters.values(), inspect.signature(run).parameters["json"]])
    command_line.run(main, words="kind" if "kind" in parameters else None, page=inspect.getdoc(recipe))


def check_options(json: str | None, yardstick: bool = False) -> None:
    """ValueError where the results can't be written, or there is no PyTorch for the yardstick."""
    if json:
        check_writable(pathlib.Path(json).absolute().parent, f"--json={json}")
        if pathlib.Path(json).is_dir():
            raise ValueError(f"--json={json}: a folder, not a file")
    if yardstick and importlib.util.find_spec("torch") is None:
        raise ValueError("the yardstick needs PyTorch, which is not installed: `make torch`, or give --no_yardstick")


def stamp() -> dict[str, Any]:
    """Where, when and with what results are taken."""
    model, versions = None, [f"python {platform.python_version()}"]
    with contextlib.suppress(OSError):  # only Linux has the file
        model = re.search("model name.*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    size, load = psutil.virtual_memory().total / 1e9, os.getloadavg()[0]
    machine = f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores, {size:.0f} GB, "
    for name in ("tensorflow", "keras", "numpy", "torch"):
        # TensorFlow may come from another package, such as tensorflow-cpu.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{machine}{platform.system()} {platform.machine()}, load {load:.1f}",
        "versions": ", ".join(versions),
        "revision": git_revision(ROOT),
    }


def run(measure: Callable[[], dict[str, Any]], json: Json = None, yardstick: bool = False) -> None:
    """Measures, prints the results by their names, and writes them if `--json` names a file."""
    check_options(json, yardstick)
    result = stamp() | measure()
    print(text(result))
    write_json(result, json)


def text(measured: dict[str, Any]) -> str:
    """Results by their names in the file of `--json`; results of every single turn are in the file alone."""
    lines = []
    for name, value in ((name, value) for name, value in measured.items() if not name.startswith("every_")):
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key:<42}{_cell(item)}" for key, item in value.items())]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(dict.fromkeys(itertools.chain(*value)))
            table = [columns, ["---"] * len(columns), *([row.get(key, "") for key in columns] for row in value)]
            lines += [f"{name}:", *(f"| {' | '.join(map(_table_cell, row))} |" for row in table)]
        else:
            lines.append(f"{name:<44}{_cell(value)}")
    return "\n".join(lines)


def _table_cell(value: Any) -> str:
    """A number or a text; of several numbers the median, with the lowest and the highest in brackets."""
    if not isinstance(value, list):
        return _cell(value)
    if not value or None in value:
        return "-"
    return f"{statistics.median(value):.3g} ({min(value):.3g} to {max(value):.3g})"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000.0 else f"{value:,.0f}"
    return "-" if value is None else str(value)


def write_json(result: dict[str, Any], file: str | None) -> None:
    if file:
        atomic_write(pathlib.Path(file), dumps(result, indent=2) + "\n")
