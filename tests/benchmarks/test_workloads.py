import sys

import psutil
import pytest

from benchmarks import train_step
from benchmarks.all import Measured
from benchmarks.workloads import Worker, WorkerEnded

SERVE = "from benchmarks import workloads; workloads.serve(step, lambda: {'name': 'toy'})"


def python(program):
    return [sys.executable, "-c", program]


def test_answers_come_through_whatever_the_worker_prints():
    program = f"def step():\n    print('noise')\n    return 0.25\n{SERVE}"
    with Worker("toy", python(program)) as worker:
        assert [worker.ask("step") for _ in range(2)] == [{"seconds": 0.25}] * 2
        summary = worker.ask("summary")
    assert summary.pop("peak_memory_bytes") > 1e6
    assert summary == {"name": "toy"}


def test_a_worker_that_ends_is_named():
    for program, message in (
        ("raise SystemExit(3)", "`toy` ended with exit status 3"),
        (f"import os\ndef step():\n    os.kill(os.getpid(), 9)\n{SERVE}", "memory ran out"),
    ):
        with Worker("toy", python(program)) as worker:
            with pytest.raises(WorkerEnded, match=message):
                worker.ask("step")


def test_leaving_the_block_ends_a_worker_in_the_middle_of_a_step_and_its_processes():
    start = "import subprocess, time\nchild = subprocess.Popen(['sleep', '60'])"
    then = "    step.__code__ = (lambda: time.sleep(600)).__code__\n    return child.pid"
    program = f"{start}\ndef step():\n{then}\n{SERVE}"
    with Worker("toy", python(program)) as worker:
        child = psutil.Process(worker.ask("step")["seconds"])
        assert child.is_running()
        print("step", file=worker._process.stdin, flush=True)
    assert worker._process.returncode == -9
    gone, alive = psutil.wait_procs([child], timeout=5)
    assert not alive or child.status() == psutil.STATUS_ZOMBIE


def test_quick_work_is_timed_several_times_at_once_and_a_command_has_no_first_step_but_its_own_memory():
    program = "import time\nfrom benchmarks import workloads\nworkloads._MODULES = ()\nclass Work:\n    calls = 0\n"
    program += "    def __call__(self):\n        self.calls += 1\n        time.sleep(0.001)\n"
    program += "    def summary(self):\n        return {'calls': self.calls, 'peak_memory_bytes': 1000}\n"
    for is_command in (False, True):
        with Worker("toy", python(f"{program}workloads.serve_work(Work, {is_command})")) as worker:
            times = [worker.ask("step")["seconds"] for _ in range(2)]
            summary = worker.ask("summary")
        # Twenty at a time on a machine that does nothing else.
        assert summary["calls"] == 2 if is_command else 10 < summary["calls"] <= 42
        assert min(times) >= 0.001 and summary["peak_memory_bytes"] == 1000
        assert (summary["first_step_seconds"] is None) == is_command


def test_a_training_step_has_ratios_of_medians():
    ours = Measured([1.0, 3.0, 8.0], {"variables": 7, "peak_memory_bytes": 5})
    result = train_step.summarize(ours, Measured([2.0, 2.0, 2.0], {"peak_memory_bytes": 6}))
    assert (result["ratio"], result["ratio_of_fastest"]) == (1.5, 0.5)
    assert (result["step_seconds"], result["yardstick_seconds"]) == (3.0, 2.0) and result["variables"] == 7
    assert (result["peak_memory_bytes"], result["yardstick_peak_memory_bytes"]) == (5, 6)
    assert train_step.summarize(ours, None)["ratio"] is None
