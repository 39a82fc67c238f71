import json
import sys

import numpy as np
import pytest

from benchmarks import all as all_benchmarks
from benchmarks import all_comparison
from benchmarks.all import COLUMNS, Job, Turns, failed, new_result, summarize, table, take_turns
from benchmarks.all_comparison import compare, read_result, table_of_changes
from benchmarks.interleaved import Worker, WorkerEnded, relative_standard_error
from benchmarks.workloads import WORKLOADS

SUMMARY = {"first_step_seconds": 9.0, "import_seconds": 4.0, "peak_memory_bytes": 3_210_000_000}


@pytest.fixture
def quick(monkeypatch):
    """`quick(job=outcome)`: results at once, or the exception that measuring raises, by the job's workload."""

    def replace(**outcomes):
        def measure(job, rounds, yardstick):
            outcome = outcomes[job.workload]
            if isinstance(outcome, BaseException):
                raise outcome
            return Turns([outcome] * rounds, [], SUMMARY)

        monkeypatch.setattr(all_benchmarks, "measure", measure)

    return replace


def exit_code(arguments, command=all_benchmarks):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    return ended.value.code


def test_a_job_has_the_ratio_of_medians_and_the_noise_of_the_rounds_ratios():
    # The machine was half as fast in every second round: no noise in the ratio.
    row = summarize(Job("nelbo", "mnist"), "cifar10", Turns([3.0, 6.0, 3.0], [1.0, 2.0, 1.0], SUMMARY))
    assert (row["ratio"], row["median_seconds"], row["noise"]) == (3.0, 3.0, 0.0)
    assert row["batch_size"] == 16 and row["first_step_seconds"] == 9.0
    assert (WORKLOADS["training"].yardstick("mnist"), WORKLOADS["sampling"].yardstick("mnist")) == ("mnist", "cifar10")
    alone = summarize(Job("nelbo", "mnist"), None, Turns([3.0, 6.0, 3.0], [], SUMMARY))
    assert alone["ratio"] is None and alone["noise"] > 0.3


def test_quick_workloads_warm_up_and_slow_ones_have_a_steadier_clock():
    step = "from benchmarks import interleaved\ncount = iter(range(1, 100))\n"
    step += "interleaved.serve(lambda: float(next(count)), lambda: dict(first_step_seconds=9.0, import_seconds=4.0))"
    # The medians of the clock's steps 3, 4, 5 and of 6, 7, 8.
    for workload, seconds, clock_seconds in (("nelbo", [3.0, 4.0], [3.0, 4.0]), ("export", [1.0, 2.0], [4.0, 7.0])):
        with Worker("toy", [sys.executable, "-c", step]) as ours, Worker("toy", [sys.executable, "-c", step]) as clock:
            turns = take_turns(Job(workload, "digits"), ours, clock, 2)
        assert (turns.seconds, turns.yardstick_seconds) == (seconds, clock_seconds)


def test_the_table_has_a_line_for_every_result_also_for_one_that_failed():
    result = new_result() | {"complete": True}
    result["results"] = [
        summarize(Job("training", "cifar10"), "cifar10", Turns([6.0, 6.3], [1.5, 1.5], SUMMARY)),
        summarize(Job("export", "mnist"), None, Turns([250.0], [], SUMMARY | {"first_step_seconds": None})),
        failed(Job("nelbo", "mnist"), "killed | memory"),
    ]
    text = table(result)
    assert "| training step | cifar10 | 4 | 6.15 s | cifar10 | 4.1 | 3.1% | 2 | 9 s | 3.21 GB |" in text
    assert "| export.export_saved_model, checked | mnist | - | 250 s | - | - | - | 1 | - | 3.21 GB |" in text
    assert "| failed: killed \\| memory |" in text
    lines = [line for line in text.replace("\\|", "").splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert result["date"] in text and result["machine"]["processor"] in text and "keras 3" in text
    assert "Interrupted" not in text


def test_what_fails_leaves_the_others_their_turn_and_what_was_measured_is_kept(quick, tmp_path, capsys):
    ended = WorkerEnded("Traceback\nMemoryError: full\nThe worker `nelbo mnist` ended.")
    file = tmp_path / "now.json"
    arguments = ["--only=sampling,nelbo,training", "--presets=mnist", "--no-yardstick", "--rounds=2", f"--json={file}"]
    quick(sampling=1.0, nelbo=ended, training=2.0)
    assert exit_code(arguments) == 1
    printed = capsys.readouterr()
    assert "failed: MemoryError: full The worker `nelbo mnist` ended." in printed.out
    assert "Traceback" in printed.err and "Traceback" not in printed.out
    rows = read_result(file)["results"]
    assert [row["workload"] for row in rows] == ["sampling", "nelbo", "training"]
    assert [row.get("seconds") for row in rows] == [[1.0] * 2, None, [2.0] * 2]
    quick(sampling=1.0, nelbo=KeyboardInterrupt())
    assert exit_code(arguments) == 130 and "Interrupted" in capsys.readouterr().out
    assert not read_result(file)["complete"] and len(read_result(file)["results"]) == 1


def test_a_regression_has_an_exit_code(quick, tmp_path, capsys):
    arguments = ["--only=sampling", "--presets=mnist", "--no-yardstick", "--rounds=3"]
    quick(sampling=1.0)
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    all_benchmarks.main([*arguments, f"--json={files[0]}"])
    quick(sampling=1.5)
    assert exit_code([*arguments, f"--compare={files[0]}", f"--json={files[1]}"]) == 3
    assert "+50.0%" in capsys.readouterr().out and exit_code(files, all_comparison) == 3
    all_comparison.main(files[::-1])


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
    for count in (5, 15, 200):
        random = np.random.default_rng(0)
        medians = np.median(random.normal(2.0, 0.1, size=(4000, count)), axis=1)
        estimates = [relative_standard_error(list(random.normal(2.0, 0.1, size=count))) for _ in range(400)]
        assert np.mean(estimates) == pytest.approx(np.std(medians) / 2.0, rel=0.15)
    assert relative_standard_error([1.0]) is None
    times = [1.0, 1.01, 0.99] * 5
    assert relative_standard_error([*times, 9.0]) < 2.0 * relative_standard_error(times)


TIME = ["time, yardstick"]
WITHOUT = {"yardstick": None, "ratio": None}
NOISY = {"seconds": [3.4, 4.0, 4.8], "noise": 0.0}


def test_what_grows_beyond_its_noise_and_its_limit_is_a_regression():
    for before, after, expected in (
        # Beyond the noise of both, and beyond 7%.
        (row(4.0, 0.007), row(4.56, 0.007), TIME),
        (row(4.0, 0.0), row(4.24, 0.0), []),
        (row(4.0, 0.04), row(4.56, 0.04), []),
        (row(4.0, 0.0), row(4.32, 0.0), TIME),
        # Few rounds need a larger change; of a single one no noise is known.
        (row(4.0, 0.02, 3), row(4.48, 0.02, 3), []),
        (row(4.0, 0.02, 3), row(5.2, 0.02, 3), TIME),
        (row(4.0, None, 1), row(4.5, 0.0, 9), []),
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
        (row(), row(median_seconds=4.3) | WITHOUT, []),
        # The noise of what is compared, not of the ratio.
        (row() | NOISY, row(median_seconds=5.0) | WITHOUT | NOISY, []),
    ):
        comparison = compare(result(before), result(after))
        assert [change.quantity for change in comparison.changes if change.is_regression] == expected
        assert ("without a yardstick" in "".join(comparison.notes)) == (after["yardstick"] is None)


def test_false_alarms_are_rare_and_double_time_is_found():
    random = np.random.default_rng(0)

    def measured(ratio):
        rounds = ratio * random.normal(1.0, 0.1, size=3)
        return result(row(float(np.median(rounds)), relative_standard_error(list(rounds)), 3))

    def alarms(ratio):
        return sum(compare(measured(4.0), measured(ratio)).regressions > 0 for _ in range(500))

    assert alarms(4.0) <= 5 and alarms(8.0) >= 400


def test_what_can_not_be_compared_is_noted():
    for whose in ("seconds", "yardstick_seconds"):
        uneven = row(**{whose: [1.0] * 14 + [1.6]})
        comparison = compare(result(uneven), result(row(ratio=9.0, peak_memory_bytes=9e9)))
        assert [change.quantity for change in comparison.changes] == ["peak memory, GB"]
        assert comparison.regressions == 1
        assert "training mnist: its times are not compared, those of the earlier file are uneven" in comparison.notes
    before = result(row(), row(preset="cifar10"), row(workload="nelbo"), row(workload="sampling"))
    after = result(row(batch_size=8), FAILED, row(workload="export"), row(workload="sampling"))
    after["machine"] = before["machine"] | {"processor": "Q"}
    after["versions"] = {"keras": "4", "torch": "2"}
    comparison = compare(before, after)
    assert {change.name for change in comparison.changes} == {"sampling mnist"}
    notes = "\n".join(comparison.notes)
    for part in ("P and is Q; ratios differ less than seconds", "keras was 3 and is 4\n", "missing and is 2\n"):
        assert part in notes
    assert "training mnist: not compared, the batch was 16 and is 8" in notes
    assert "export mnist: the earlier file has no times" in notes
    assert "not measured this time: training cifar10" in notes


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
    assert exit_code([str(file), str(file)], all_comparison) == 2
    message = capsys.readouterr().err
    assert str(file) in message and message.count("\n") == 1
