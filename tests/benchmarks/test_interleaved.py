"""The pipe between a benchmark and its workers, with workers that need neither TensorFlow nor PyTorch."""

import sys

import pytest

from benchmarks import train_step
from benchmarks.interleaved import Worker, WorkerEnded

SERVE = "from benchmarks import interleaved; interleaved.serve(step, lambda: {'name': 'toy'})"


def python(program):
    return [sys.executable, "-c", program]


def test_answers_come_through_whatever_the_worker_prints():
    program = f"def step():\n    print('noise')\n    return 0.25\n{SERVE}"
    with Worker("toy", python(program)) as worker:
        assert [worker.ask("step") for _ in range(2)] == [{"seconds": 0.25}] * 2
        summary = worker.ask("summary")
    assert summary.pop("peak_memory_bytes") > 1e6
    assert summary == {"name": "toy"}


def test_workers_step_in_turn(tmp_path):
    log = tmp_path / "log"

    def start(name):
        program = f"def step():\n    open({str(log)!r}, 'a').write({name!r})\n    return 1.0\n{SERVE}"
        return Worker(name, python(program))

    with start("a") as first, start("b") as second:
        for _ in range(3):
            train_step.ask_each({"a": first, "b": second}, "step")
    assert log.read_text() == "ababab"


def test_a_worker_that_fails_is_named():
    with Worker("toy", python("raise SystemExit(3)")) as worker:
        with pytest.raises(WorkerEnded, match="`toy` ended with exit status 3"):
            worker.ask("step")


def test_a_worker_that_is_killed_is_told_of():
    program = f"import os\ndef step():\n    os.kill(os.getpid(), 9)\n{SERVE}"
    with Worker("toy", python(program)) as worker:
        with pytest.raises(WorkerEnded, match="memory ran out"):
            worker.ask("step")


def test_leaving_the_block_ends_a_worker_in_the_middle_of_a_step():
    program = f"import time\ndef step():\n    time.sleep(600)\n{SERVE}"
    with Worker("toy", python(program)) as worker:
        print("step", file=worker._process.stdin, flush=True)
    assert worker._process.returncode == -9


def test_figures_are_ratios_of_medians():
    rounds = [{"ours": ours, "yardstick": 2.0} for ours in (1.0, 3.0, 8.0)]
    summaries = {
        "ours": {"versions": {"tensorflow": "1"}, "variables": 7, "peak_memory_bytes": 5},
        "yardstick": {"versions": {"torch": "2"}, "peak_memory_bytes": 6},
    }
    result = train_step.figures(rounds, summaries)
    assert result["ratio"] == 1.5
    assert result["ratio_of_fastest"] == 0.5
    assert (result["step_seconds"], result["yardstick_seconds"]) == (3.0, 2.0)
    assert (result["variables"], result["peak_memory_bytes"]) == (7, 5)
    assert result["versions"].keys() >= {"tensorflow", "torch"}


def test_without_a_yardstick_there_is_no_ratio():
    summaries = {"ours": {"versions": {}, "peak_memory_bytes": 5}}
    result = train_step.figures([{"ours": 1.0}], summaries)
    assert result["ratio"] is None
    assert result["step_seconds"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset=mnits"], "invalid choice: 'mnits'"),
        (["--preset=mnist", "--steps=0"], "at least 1 step"),
        (["--preset=mnist", "--json=/no/such/folder/file.json"], "existing folder"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(arguments, message, capsys):
    with pytest.raises(SystemExit):
        train_step.parse_arguments(arguments)
    assert message in capsys.readouterr().err
