"""When a measurement of `benchmarks.all` counts as a regression, on made-up numbers."""

import json

import numpy as np
import pytest

from benchmarks import all_comparison
from benchmarks.all_comparison import compare, table_of_changes
from benchmarks.interleaved import relative_standard_error

FAILED = {"workload": "nelbo", "preset": "mnist", "batch_size": 16, "failure": "killed"}


def row(ratio=4.0, noise=0.01, rounds=15, **changes):
    times = {"ratio": ratio, "median_seconds": ratio, "noise": noise, "seconds": [ratio] * rounds}
    named = {"workload": "training", "preset": "mnist", "batch_size": 16, "yardstick": "mnist", "failure": None}
    others = {"yardstick_seconds": [1.0] * rounds, "first_step_seconds": 10.0, "peak_memory_bytes": 2e9}
    return named | times | others | changes


def result(*rows):
    machine = {"processor": "P", "cores": 2, "system": "Linux", "threads_used": 2, "memory_bytes": 8}
    return {"format": 1, "date": "2026", "machine": machine, "versions": {"keras": "3"}, "results": list(rows)}


def test_the_noise_is_the_spread_of_medians():
    random = np.random.default_rng(0)
    medians = np.median(random.normal(2.0, 0.1, size=(4000, 15)), axis=1)
    estimates = [relative_standard_error(list(random.normal(2.0, 0.1, size=15))) for _ in range(400)]
    assert np.mean(estimates) == pytest.approx(np.std(medians) / 2.0, rel=0.15)
    assert relative_standard_error([1.0]) is None
    # One slow round of many is no noise.
    times = [1.0, 1.01, 0.99] * 5
    assert relative_standard_error([*times, 9.0]) < 2.0 * relative_standard_error(times)


TIME = ["time, yardstick"]
WITHOUT = {"yardstick": None, "ratio": None}
NOISY = {"seconds": [3.4, 4.0, 4.8], "noise": 0.0}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # Beyond the noise of both, and beyond 7%.
        (row(4.0, 0.007), row(4.56, 0.007), TIME),
        (row(4.0, 0.0), row(4.24, 0.0), []),
        (row(4.0, 0.0), row(4.32, 0.0), TIME),
        # Few rounds need a larger change; of a single one no noise is known.
        (row(4.0, 0.02, 3), row(4.48, 0.02, 3), []),
        (row(4.0, 0.02, 3), row(5.2, 0.02, 3), TIME),
        (row(4.0, None, 1), row(4.7, 0.0, 9), TIME),
        # Memory and the first step have limits of their own.
        (row(), row(peak_memory_bytes=2.08e9), []),
        (row(), row(peak_memory_bytes=2.12e9), ["peak memory, GB"]),
        (row(), row(first_step_seconds=12.9), []),
        (row(), row(first_step_seconds=13.1), ["first step, yardstick"]),
        (row(first_step_seconds=None), row(first_step_seconds=None), []),
        # A slower hour is none where the yardstick was slower too; without it times in seconds count.
        (row(), row(median_seconds=8.0, first_step_seconds=20.0), []),
        (row(), row(median_seconds=8.0, first_step_seconds=20.0) | WITHOUT, ["time, s", "first step, s"]),
        # The noise of what is compared, not of the ratio.
        (row() | NOISY, row(median_seconds=5.0) | WITHOUT | NOISY, []),
    ],
)
def test_what_grows_beyond_its_noise_and_its_limit_is_a_regression(before, after, expected):
    comparison = compare(result(before), result(after))
    assert [change.quantity for change in comparison.changes if change.is_regression] == expected
    assert ("without a yardstick" in "".join(comparison.notes)) == (after["yardstick"] is None)


def test_uneven_times_are_not_judged_but_noted():
    uneven = row(yardstick_seconds=[1.0] * 14 + [1.6])
    comparison = compare(result(uneven), result(row(ratio=9.0, peak_memory_bytes=9e9)))
    assert [change.quantity for change in comparison.changes] == ["peak memory, GB"] and comparison.regressions == 1
    assert "training mnist: its times are not compared, those of the earlier file are uneven" in comparison.notes


def test_what_can_not_be_compared_is_noted():
    before = result(row(), row(preset="cifar10"), row(workload="nelbo"), row(workload="sampling"))
    after = result(row(batch_size=8), FAILED, row(workload="export"), row(workload="sampling"))
    after["machine"] = before["machine"] | {"processor": "Q"}
    after["versions"] = {"keras": "4", "torch": "2"}
    comparison = compare(before, after)
    assert {change.name for change in comparison.changes} == {"sampling mnist"}
    notes = "\n".join(comparison.notes)
    for part in ("processor was P and is Q", "keras was 3 and is 4", "torch was missing and is 2"):
        assert part in notes
    assert "training mnist: not compared, the batch was 16 and is 8" in notes
    assert (
        "export mnist: the earlier file has no times" in notes and "not measured this time: training cifar10" in notes
    )


def test_what_has_failed_since_is_a_regression_and_the_table_has_both_directions():
    before = result(row(), row(preset="cifar10"), row(workload="nelbo"))
    comparison = compare(before, result(row(ratio=5.0), row(ratio=2.0, preset="cifar10"), FAILED))
    assert comparison.regressions == 2 and compare(result(FAILED), result(FAILED)).regressions == 0
    text = table_of_changes(comparison, result())
    assert "**regression**: nelbo mnist: has failed, and had not in the earlier file: killed" in text
    assert "| training mnist | time, yardstick | 4 | 5 | +25.0% | 7.0% | **regression** |" in text
    assert "| training cifar10 | time, yardstick | 4 | 2 | -50.0% | 7.0% | better |" in text
    assert text.endswith("2 regressions")


@pytest.mark.parametrize(
    "content", ["{", "[]", json.dumps(result() | {"format": 0}), json.dumps(result({"workload": "x"}))]
)
def test_another_file_is_refused_in_one_line(content, tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(SystemExit) as ended:
        all_comparison.main([str(file), str(file)])
    message = capsys.readouterr().err
    assert ended.value.code == 2 and str(file) in message and message.count("\n") == 1
