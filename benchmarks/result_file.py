"""The JSON file of `benchmarks.all`: where and with what the figures were taken, and a list of results."""

import contextlib
import datetime
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from typing import Any

import psutil

from benchmarks.train_step import describe_machine
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_write

FORMAT = 1
_PACKAGES = ("tensorflow", "keras", "numpy", "torch")
_ROOT = pathlib.Path(__file__).parents[1]
# What a result has besides `failure`, None where there are figures.
_ALWAYS = {"workload", "preset", "batch_size", "failure"}
_FIGURES = {"yardstick", "ratio", "median_seconds", "noise", "seconds", "yardstick_seconds"}
_FIGURES |= {"first_step_seconds", "peak_memory_bytes"}


def new_result() -> dict[str, Any]:
    """A file's content before anything is measured."""
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine() | {"memory_bytes": psutil.virtual_memory().total},
        "versions": versions(),
        "revision": revision(),
        "complete": False,
        "results": [],
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that bear on the figures, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def revision() -> str | None:
    """The commit that is checked out, with `+` if files differ from it; None outside a Git work tree."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_result(file: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes the file, which a reader sees whole."""
    atomic_write(file, json.dumps(result, indent=2) + "\n")


def read_result(file: pathlib.Path) -> dict[str, Any]:
    """Reads it again.

    Raises:
      ValueError: it is missing or something else.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: can't be read ({first_line(error)})") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT or not _has_results(result):
        raise ValueError(f"{file}: no file of benchmarks.all --json, or of another version of it; measure anew")
    return result


def _has_results(result: dict[str, Any]) -> bool:
    results = result.get("results")
    return {"machine", "versions", "date"} <= result.keys() and all(
        isinstance(row, dict) and (_ALWAYS | (_FIGURES if row.get("failure") is None else set())) <= row.keys()
        for row in (results if isinstance(results, list) else [None])
    )
