"""`benchmarks.all`: its results, table and file, and what becomes of workloads that fail."""

import pytest

from benchmarks import all as all_benchmarks
from benchmarks.all import COLUMNS, Job, Turns, failed, new_result, summarize, table
from benchmarks.all_comparison import read_result
from benchmarks.interleaved import WorkerEnded
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


def exit_code(arguments):
    with pytest.raises(SystemExit) as ended:
        all_benchmarks.main(arguments)
    return ended.value.code


def test_a_job_has_the_ratio_of_medians_and_the_noise_of_the_rounds_ratios():
    # The machine was half as fast in every second round: no noise in the ratio.
    row = summarize(Job("nelbo", "mnist"), "cifar10", Turns([3.0, 6.0, 3.0], [1.0, 2.0, 1.0], SUMMARY))
    assert (row["ratio"], row["median_seconds"], row["noise"]) == (3.0, 3.0, 0.0)
    assert row["batch_size"] == 16 and row["first_step_seconds"] == 9.0
    assert (WORKLOADS["training"].yardstick("mnist"), WORKLOADS["sampling"].yardstick("mnist")) == ("mnist", "cifar10")
    alone = summarize(Job("nelbo", "mnist"), None, Turns([3.0, 6.0, 3.0], [], SUMMARY))
    assert alone["ratio"] is None and alone["noise"] > 0.3


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
    all_benchmarks.main([*arguments, f"--json={tmp_path / 'a.json'}"])
    quick(sampling=1.5)
    assert exit_code([*arguments, f"--compare={tmp_path / 'a.json'}"]) == 3 and "+50.0%" in capsys.readouterr().out
