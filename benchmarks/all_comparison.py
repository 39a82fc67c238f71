"""What has become slower or larger since an earlier file of `benchmarks.all --json`.

    python -m benchmarks.all_comparison EARLIER.json LATER.json

Times are compared as ratios to the yardstick where both files have the same one, else in seconds. A time is a
regression where it grew by more than its noise explains: 3 standard deviations of both medians together, or, as rounds
are few, the quantile of Student's t that is as rare; and by more than 7%, because processes of the same code differ, by
up to 6%, whatever the noise within each, or by 10% in seconds without a yardstick. A time of a single round has no
noise: 15%. Where the slowest turn, ours or the yardstick's, took more than 1.5 of the fastest, times are not compared,
and that is noted. Peak memory may grow by 5%, the time to the first step, which is measured once, by 30%. What has
failed and had not before is a regression as well. Exit code: 0 none, 2 a mistake in the command, 3 a regression.
"""

import argparse
import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from scipy.special import ndtr, stdtrit

from benchmarks.interleaved import are_uneven, relative_standard_error
from benchmarks.results import markdown
from nvae_tf.errors import exit_on_user_error, first_line

FORMAT = 1
REGRESSION_CODE = 3
DEVIATIONS = 3.0
RATIO_FLOOR, SECONDS_FLOOR, SINGLE_ROUND = 0.07, 0.10, 0.15
MEMORY_LIMIT, FIRST_STEP_LIMIT = 0.05, 0.30
# What of a machine must be the same.
_MACHINE = ("processor", "cores", "system", "threads_used", "memory_bytes")
# What a result has where `failure` is None.
_MEASURED = {"yardstick", "ratio", "median_seconds", "noise", "seconds", "yardstick_seconds", "batch_size"}
_MEASURED |= {"workload", "preset", "first_step_seconds", "peak_memory_bytes"}


def read_result(file: pathlib.Path, flag: str = "") -> dict[str, Any]:
    """Reads a file of `benchmarks.all --json`; ValueError, which begins with `flag`, if it is missing or another."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{flag}{file}: can't be read ({first_line(error)})") from error
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        measured = [row for row in result["results"] if row["failure"] is None]
        if result["format"] == FORMAT and all(_MEASURED <= row.keys() for row in measured):
            return result
    raise ValueError(f"{flag}{file}: no file of benchmarks.all --json, or of another version of it; measure anew")


class Change(NamedTuple):
    """A measurement that both files have."""

    name: str  # workload and preset
    quantity: str  # what was measured, with its unit
    before: float
    after: float
    limit: float  # the relative growth that is still no regression

    @property
    def is_regression(self) -> bool:
        """Whether it grew by more than the limit."""
        return self.after / self.before - 1.0 > self.limit


class Comparison(NamedTuple):
    """All changes, the workloads that have failed and had not before, and what a reader must know."""

    changes: list[Change]
    failures: list[str]
    notes: list[str]

    @property
    def regressions(self) -> int:
        """How many measurements grew by more than their limit, or are there no more because the workload has failed."""
        return sum(change.is_regression for change in self.changes) + len(self.failures)


def compare(earlier: dict[str, Any], later: dict[str, Any]) -> Comparison:
    """Compares the contents of two files; workloads that only one has are passed over, and noted."""
    before, after = (
        {f"{row['workload']} {row['preset']}": row for row in result["results"]} for result in (earlier, later)
    )
    notes = list(_notes(earlier, later))
    changes, failures, in_seconds = [], [], False
    for name, row in after.items():
        old = before.get(name)
        if old is None or old["failure"] is not None:
            notes.append(f"{name}: the earlier file has no times of it")
        elif row["failure"] is not None:
            failures.append(f"{name}: has failed, and had not in the earlier file: {row['failure']}")
        elif old["batch_size"] != row["batch_size"]:
            notes.append(f"{name}: not compared, the batch was {old['batch_size']} and is {row['batch_size']}")
        else:
            pair = {"earlier": old, "later": row}.items()
            uneven = [w for w, r in pair if are_uneven(r["seconds"]) or are_uneven(r["yardstick_seconds"])]
            notes += [f"{name}: its times are not compared, those of the {when} file are uneven" for when in uneven]
            changes += [] if uneven else _changes_of_times(name, old, row)
            peaks = [row["peak_memory_bytes"] / 1e9 for row in (old, row)]
            changes.append(Change(name, "peak memory, GB", *peaks, MEMORY_LIMIT))
            in_seconds |= not _have_same_clock(old, row)
    if in_seconds:
        notes.append("times in seconds, without a yardstick, change with whatever else the machine does")
    if missing := [name for name in before if name not in after]:
        notes.append(f"not measured this time: {', '.join(missing)}")
    return Comparison(changes, failures, notes)


def time_limit(noises: list[float | None], rounds: list[int], floor: float) -> float:
    """The relative growth of a time that is no regression, from both medians' standard errors (None: one round)."""
    if None in noises:
        return SINGLE_ROUND
    factor = float(stdtrit(sum(rounds) - 2, ndtr(DEVIATIONS)))
    return max(floor, factor * math.hypot(*noises))


def _changes_of_times(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    rows = (before, after)
    same_clock = _have_same_clock(before, after)
    key, unit, floor = ("ratio", "yardstick", RATIO_FLOOR) if same_clock else ("median_seconds", "s", SECONDS_FLOOR)
    # That of the ratio, or where only one has a yardstick, of what is compared.
    noises = [row["noise"] if same_clock else relative_standard_error(row["seconds"]) for row in rows]
    limit = time_limit(noises, [len(row["seconds"]) for row in rows], floor)
    yield Change(name, f"time, {unit}", before[key], after[key], limit)
    firsts = [row["first_step_seconds"] for row in rows]
    if None not in firsts:
        # A yardstick step says how fast the machine was at that hour.
        clocks = [row["median_seconds"] / row["ratio"] if same_clock else 1.0 for row in rows]
        yield Change(name, f"first step, {unit}", firsts[0] / clocks[0], firsts[1] / clocks[1], FIRST_STEP_LIMIT)


def _have_same_clock(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before["yardstick"] is not None and before["yardstick"] == after["yardstick"]


def _notes(earlier: dict[str, Any], later: dict[str, Any]) -> Iterator[str]:
    versions = sorted(earlier["versions"].keys() | later["versions"].keys())
    advice = "; ratios differ less than seconds"
    for group, names, what, then in (
        ("machine", _MACHINE, "another machine", advice),
        ("versions", versions, "other versions", ""),
    ):
        for name in names:
            before, after = (result[group].get(name, "missing") for result in (earlier, later))
            if before != after:
                yield f"{what}: {name} was {before} and is {after}{then}"


def table_of_changes(comparison: Comparison, earlier: dict[str, Any]) -> str:
    rows = []
    for change in comparison.changes:
        growth = change.after / change.before - 1.0
        values = f"{change.before:.3g}", f"{change.after:.3g}", f"{growth:+.1%}", f"{change.limit:.1%}"
        better = "better" if change.before / change.after - 1.0 > change.limit else ""
        rows.append([change.name, change.quantity, *values, "**regression**" if change.is_regression else better])
    lines = [f"Compared with revision {earlier.get('revision') or 'unknown'}, {earlier['date']}", ""]
    lines += markdown(("workload", "measured", "before", "now", "change", "may grow by", ""), rows) if rows else []
    lines += [""] + [f"**regression**: {failure}" for failure in comparison.failures]
    lines += [f"note: {note}" for note in comparison.notes]
    found = comparison.regressions
    return "\n".join([*lines, "", f"{found} regressions" if found != 1 else "1 regression"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.all_comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("earlier", type=pathlib.Path, metavar="EARLIER.json")
    parser.add_argument("later", type=pathlib.Path, metavar="LATER.json")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        earlier, later = read_result(options.earlier), read_result(options.later)
    comparison = compare(earlier, later)
    print(table_of_changes(comparison, earlier))
    if comparison.regressions:
        sys.exit(REGRESSION_CODE)


if __name__ == "__main__":
    main()
