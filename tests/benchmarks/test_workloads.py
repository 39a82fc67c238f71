import json
import sys

import psutil
import pytest
import tensorflow as tf

from benchmarks import operation_times, train_step
from benchmarks.workloads import worker

SERVE = "from benchmarks import workloads; workloads.serve(step, lambda: {'name': 'toy'})"


def program(text):
    return worker("toy", [sys.executable, "-c", text])


def test_answers_come_through_whatever_the_worker_prints_and_one_that_ends_is_named():
    with program(f"def step():\n    print('noise')\n    return 0.25\n{SERVE}") as ask:
        assert [ask("step") for _ in range(2)] == [{"seconds": 0.25}] * 2
        summary = ask("summary")
    assert summary["peak_memory_bytes"] > 1e6 and summary["name"] == "toy"
    with program(f"import os\ndef step():\n    os.kill(os.getpid(), 9)\n{SERVE}") as ask:
        with pytest.raises(ChildProcessError, match="`toy`: exit status -9"):
            ask("step")


def test_leaving_the_block_ends_a_worker_and_its_processes():
    start = "import subprocess\nchild = subprocess.Popen(['sleep', '60'])"
    with program(f"{start}\ndef step():\n    return child.pid\n{SERVE}") as ask:
        child = psutil.Process(ask("step")["seconds"])
        assert child.is_running()
    gone, alive = psutil.wait_procs([child], timeout=5)
    assert not alive or child.status() == psutil.STATUS_ZOMBIE


def test_quick_work_is_timed_several_times_at_once_and_a_command_has_no_first_step_but_its_own_memory():
    text = "import time\nfrom benchmarks import workloads\nworkloads._MODULES = ()\nworkloads._TURN_SECONDS = 0.05\n"
    text += "class Work:\n    calls = 0\n    def __call__(self):\n        self.calls += 1\n        time.sleep(0.001)\n"
    text += "    def summary(self):\n        return {'calls': self.calls, 'peak_memory_bytes': 1000}\n"
    for is_command in (False, True):
        with program(f"{text}workloads.serve_work(Work, {is_command})") as ask:
            times = [ask("step")["seconds"] for _ in range(2)]
            summary = ask("summary")
        assert 2 < summary["calls"] <= 101 and min(times) >= 0.001 and summary["peak_memory_bytes"] == 1000
        assert (summary["first_step_seconds"] is None) == is_command


@pytest.mark.slow
def test_a_training_step_with_another_setting(tmp_path, monkeypatch):
    run_round = train_step.run_round

    def with_a_clock(*arguments):
        clock = {"seconds": 2.0, "every_second": [4.0, 2.0], "peak_memory_bytes": 6}
        return run_round(*arguments) | {"yardstick": clock}

    monkeypatch.setattr(train_step, "run_round", with_a_clock)
    file = tmp_path / "now.json"
    train_step.main(["--preset=digits", "--steps=1", "--no-yardstick", f"--json={file}", "train.batch_size=4"])
    result = json.loads(file.read_text())
    assert result["batch_size"] == 4 and 0.0 < result["step_seconds"] < result["first_step_seconds"]
    assert result["ratio"] == result["step_seconds"] / result["yardstick_seconds"] == result["step_seconds"] / 2.0
    assert result["graph_nodes"] > 1000 and result["peak_memory_bytes"] > 3e8


def test_operations_are_counted_a_turn_and_in_one_group_each(tmp_path):
    matrix = tf.random.normal([300, 300])

    @tf.function(autograph=False)
    def turn():
        return tf.raw_ops.SoftplusGrad(gradients=matrix, features=matrix @ (matrix @ matrix))

    turn()
    with tf.profiler.experimental.Profile(str(tmp_path)):
        for _ in range(3):
            turn()
    rows = {row["operations"]: row for row in operation_times.operation_times(tmp_path, turns=3)}
    assert rows["swish"]["count"] == 1 and rows["matrix products (1x1 convolutions, dense)"]["count"] == 2
    assert 0 < rows["swish"]["seconds"] < 1 and sum(row["share"] for row in rows.values()) == pytest.approx(1.0)
    assert rows["convolutions"]["count"] == 0 and rows["all others"]["count"] < 5
