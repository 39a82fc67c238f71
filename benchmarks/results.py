"""What all benchmarks share around the measuring: options, the machine, tables, and the JSON file of results."""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import typing
from collections.abc import Callable, Collection
from typing import Any

import psutil

from nvae_tf.errors import exit_on_user_error
from nvae_tf.files import atomic_write, git_revision

ROOT = pathlib.Path(__file__).parents[1]
THREADS = 2  # of every workload
_JSON_HELP = "write the results there as well"


def say(line: str) -> None:
    """Reports progress; standard output is for the results alone."""
    print(line, file=sys.stderr, flush=True)


def benchmark_parser(name: str, documentation: str) -> argparse.ArgumentParser:
    """A parser whose `--help` is the module's documentation, with the option `--json`."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m {name}", None, documentation, formatter_class=layout)
    parser.add_argument("--json", type=json_file, metavar="FILE", help=_JSON_HELP)
    return parser


def parse_with_yardstick(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    parser.add_argument("--no-yardstick", action="store_true", help="our own times alone, without a ratio")
    options = parser.parse_args(arguments)
    options.no_yardstick |= bool(options.against)
    if not options.no_yardstick and importlib.util.find_spec("torch") is None:
        parser.error("the yardstick needs PyTorch, which is not installed: `make torch`, or give --no-yardstick")
    return options


def run_recipe(name: str, documentation: str, *recipes: Callable[..., dict[str, Any]]) -> None:
    """Runs the function that the command line names, with a flag for each of its parameters.

    A parameter whose annotation is a `typing.Literal` is written without its name.
    """
    parser = benchmark_parser(name, documentation)
    commands = parser.add_subparsers(metavar="RECIPE", required=True)
    for recipe in recipes:
        command = commands.add_parser(recipe.__name__, description=recipe.__doc__)
        command.set_defaults(recipe=recipe)
        # Without a default, which would take the place of what stands before the recipe's name.
        command.add_argument("--json", type=json_file, metavar="FILE", default=argparse.SUPPRESS, help=_JSON_HELP)
        for parameter in inspect.signature(recipe).parameters.values():
            flag, default, kind = f"--{parameter.name}", parameter.default, parameter.annotation
            if kind is bool:
                command.add_argument(flag, action="store_true")
            elif choices := typing.get_args(kind):
                command.add_argument(parameter.name, choices=choices)
            else:
                read = at_least(0 if parameter.name == "seed" else 1) if kind is int else kind
                command.add_argument(flag, type=read, default=default, required=default is parameter.empty)
    options = vars(parser.parse_args())
    recipe, file = options.pop("recipe"), options.pop("json")
    with exit_on_user_error():
        run(lambda: recipe(**options), file)


def json_file(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: not a file in an existing folder")
    return path


def at_least(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number and at least {least}")
        return int(text)

    return read


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r}: must be some of {', '.join(known)}")
        return list(dict.fromkeys(text.split(",")))

    return read


def stamp() -> dict[str, Any]:
    """Where, when and with what results are taken."""
    model, versions = None, [f"python {platform.python_version()}"]
    with contextlib.suppress(OSError):  # only Linux has the file
        model = re.search("model name.*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    size, load = psutil.virtual_memory().total / 1e9, os.getloadavg()[0]
    machine = f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores, {size:.0f} GB, "
    for name in ("tensorflow", "keras", "numpy", "torch"):
        # TensorFlow may be that of another package, such as tensorflow-cpu.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{machine}{platform.system()} {platform.machine()}, load {load:.1f}",
        "versions": ", ".join(versions),
        "revision": git_revision(ROOT),
    }


def run(measure: Callable[[], dict[str, Any]], file: pathlib.Path | None) -> None:
    """Measures, prints the results by their names, and writes them if `--json` names a file."""
    result = stamp() | measure()
    print(text(result))
    write_json(result, file)


def text(measured: dict[str, Any]) -> str:
    """Results by their names in the file of `--json`; those of every single turn are in the file alone."""
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


def write_json(result: dict[str, Any], file: pathlib.Path | None) -> None:
    if file:
        atomic_write(file, json.dumps(result, indent=2) + "\n")
