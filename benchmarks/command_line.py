"""What the benchmarks' command lines have in common."""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.train_step import UNEVEN, say


def benchmark_parser(name: str, documentation: str) -> argparse.ArgumentParser:
    """A parser whose `--help` is the module's documentation, with the option `--json`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write the figures there as well")
    return parser


def json_file(text: str) -> pathlib.Path:
    """A file that can be written when the figures are there."""
    path = pathlib.Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: not a file in an existing folder")
    return path


def at_least_one(text: str) -> int:
    """A whole number from 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number and at least 1")
    return number


def positive_seconds(text: str) -> float:
    """A time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


def write_figures(result: dict[str, Any], file: pathlib.Path | None) -> None:
    """Writes what `--json` asks for, if it does."""
    if file:
        file.write_text(json.dumps(result, indent=2) + "\n")


def are_uneven(repeated: Sequence[float]) -> bool:
    """Whether repeated times are too uneven to be believed."""
    return bool(repeated) and max(repeated) > UNEVEN * min(repeated)


def tell_uneven(times: Mapping[str, Sequence[float]]) -> None:
    """Says which of the repeated times are too uneven to be believed."""
    for name, repeated in times.items():
        if are_uneven(repeated):
            say(f"note: the times of {name} are uneven; something else was running, so measure again")
