"""`benchmarks.all`: the command, its table and file, and what becomes of workloads that fail."""

import json
import subprocess
import sys

import psutil
import pytest

from benchmarks import all as all_benchmarks
from benchmarks.all_table import COLUMNS, table
from benchmarks.interleaved import Worker, WorkerEnded
from benchmarks.result_file import new_result, read_result
from benchmarks.workload_measurement import Job, Turns, failed, figures, take_turns
from benchmarks.workloads import WORKLOADS

SUMMARY = {"first_step_seconds": 9.0, "import_seconds": 4.0, "peak_memory_bytes": 3_210_000_000}
SERVE = "from benchmarks import interleaved; interleaved.serve(step, lambda: {})"


@pytest.fixture
def quick(monkeypatch):
    """`quick(job=outcome)`: figures at once, or the exception that measuring raises, by the job's workload."""

    def replace(**outcomes):
        def measure(job, rounds, with_yardstick):
            outcome = outcomes[job.workload]
            if isinstance(outcome, BaseException):
                raise outcome
            return figures(job, None, Turns([outcome] * rounds, [], SUMMARY))

        monkeypatch.setattr(all_benchmarks, "measure", measure)

    return replace


def toy(step):
    return Worker("toy", [sys.executable, "-c", f"def step():\n    {step}\n{SERVE}"])


def exit_code(arguments):
    with pytest.raises(SystemExit) as ended:
        all_benchmarks.main(arguments)
    return ended.value.code


def test_a_job_has_the_ratio_of_medians_and_the_noise_of_the_rounds_ratios():
    # The machine was half as fast in every second round: no noise in the ratio.
    row = figures(Job("nelbo", "mnist"), "cifar10", Turns([3.0, 6.0, 3.0], [1.0, 2.0, 1.0], SUMMARY))
    assert (row["ratio"], row["median_seconds"], row["noise"]) == (3.0, 3.0, 0.0)
    assert row["batch_size"] == 16 and row["first_step_seconds"] == 9.0
    alone = figures(Job("nelbo", "mnist"), None, Turns([3.0, 6.0, 3.0], [], SUMMARY))
    assert alone["ratio"] is None and alone["noise"] > 0.3


def test_quick_workloads_warm_up_and_slow_ones_have_a_steadier_clock(capsys):
    count = "n = globals().setdefault('n', [0]); n[0] += 1; return float(n[0])"
    with toy(count) as ours, toy(count) as clock, toy(count) as slow, toy(count) as slow_clock:
        for worker in (ours, slow):
            worker.ask = with_summary(worker.ask)
        turns = take_turns(Job("nelbo", "digits"), ours, clock, 2)
        slow_turns = take_turns(Job("export", "digits"), slow, slow_clock, 2)
    assert (turns.seconds, turns.yardstick_seconds) == ([3.0, 4.0], [3.0, 4.0])
    # The medians of steps 3, 4, 5 and of 6, 7, 8.
    assert (slow_turns.seconds, slow_turns.yardstick_seconds) == ([1.0, 2.0], [4.0, 7.0])


def with_summary(ask):
    return lambda word: ask(word) | (SUMMARY if word == "summary" else {})


def test_the_table_has_a_line_for_every_result_also_for_one_that_failed():
    result = new_result() | {"complete": True}
    training = figures(Job("training", "cifar10"), "cifar10", Turns([6.0, 6.3], [1.5, 1.5], SUMMARY))
    command = SUMMARY | {"first_step_seconds": None}
    result["results"] = [
        training,
        figures(Job("export", "mnist"), None, Turns([250.0], [], command)),
        failed(Job("nelbo", "mnist"), "killed | memory"),
    ]
    text = table(result)
    assert "| training step | cifar10 | 4 | 6.15 s | cifar10 | 4.1 | 3.1% | 2 | 9 s | 3.21 GB |" in text
    assert "| export.export_saved_model, checked | mnist | - | 250 s | - | - | - | 1 | - | 3.21 GB |" in text
    assert "| failed: killed \\| memory |" in text
    lines = [line for line in text.replace("\\|", "").splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert result["date"] in text and result["machine"]["processor"] in text and "keras 3" in text
    assert "Interrupted" not in text and "Interrupted" in table(result | {"complete": False})


def test_a_workload_that_fails_leaves_the_others_their_turn(quick, tmp_path, capsys):
    quick(
        sampling=1.0, nelbo=WorkerEnded("Traceback\nMemoryError: full\nThe worker `nelbo mnist` ended."), training=2.0
    )
    file = tmp_path / "now.json"
    arguments = ["--only=sampling,nelbo,training", "--presets=mnist", "--no-yardstick", "--rounds=2", f"--json={file}"]
    assert exit_code(arguments) == 1
    printed = capsys.readouterr()
    assert "failed: MemoryError: full The worker `nelbo mnist` ended." in printed.out
    assert "Traceback" in printed.err and "Traceback" not in printed.out
    rows = read_result(file)["results"]
    assert [row["workload"] for row in rows] == ["sampling", "nelbo", "training"]
    assert [row.get("seconds") for row in rows] == [[1.0] * 2, None, [2.0] * 2]


def test_an_interrupted_run_has_what_there_was(quick, tmp_path, capsys):
    quick(sampling=1.0, nelbo=KeyboardInterrupt())
    file = tmp_path / "now.json"
    assert exit_code(["--only=sampling,nelbo", "--presets=mnist", "--no-yardstick", f"--json={file}"]) == 130
    result = read_result(file)
    assert not result["complete"] and len(result["results"]) == 1
    assert "Interrupted" in capsys.readouterr().out


def test_a_later_file_with_a_regression_is_told_by_the_exit_code(quick, tmp_path, capsys):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    arguments = ["--only=sampling", "--presets=mnist", "--no-yardstick", "--rounds=3"]
    quick(sampling=1.0)
    all_benchmarks.main([*arguments, f"--json={files[0]}"])
    all_benchmarks.main([*arguments, f"--compare={files[0]}"])
    assert capsys.readouterr().out.endswith("0 regressions\n")
    quick(sampling=1.5)
    assert exit_code([*arguments, f"--json={files[1]}", f"--compare={files[0]}"]) == 3
    assert "+50.0%" in capsys.readouterr().out


def test_the_workloads_have_their_own_presets_or_the_ones_asked_for():
    jobs = all_benchmarks.parse_arguments(["--no-yardstick"]).jobs
    assert [job.preset for job in jobs if job.workload == "training"] == ["mnist", "cifar10", "celeba64"]
    assert Job("sampling", "cifar10") in jobs and Job("sampling", "celeba64") not in jobs
    digits = all_benchmarks.parse_arguments(["--no-yardstick", "--presets=digits"]).jobs
    # There is no published file of digits.
    assert [job.workload for job in digits] == [name for name in WORKLOADS if name != "import"]


def test_each_yardstick_is_the_one_that_resembles_the_work():
    assert WORKLOADS["training"].yardstick("mnist") == "mnist"
    assert {WORKLOADS["training"].yardstick(preset) for preset in ("cifar10", "celeba64")} == {"cifar10"}
    assert WORKLOADS["sampling"].yardstick("mnist") == "cifar10"
    assert {name for name, workload in WORKLOADS.items() if workload.is_slow} == {
        "importance_weighted",
        "export",
        "import",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=training,smapling"], "'smapling': must be some of training, "),
        (["--presets=mnits"], "'mnits': must be some of digits, mnist"),
        (["--rounds=0"], "at least 1"),
        (
            ["--only=import", "--presets=digits"],
            "--only=import: is not measured with these --presets, but with mnist, cifar10",
        ),
        (["--json=/no/such/folder/file.json"], "existing folder"),
        (["--compare=/no/such/file.json"], "--compare: /no/such/file.json: can't be read"),
        (["--json=a.json", "--compare=./a.json"], "would overwrite"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(all_benchmarks.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(SystemExit) as ended:
        all_benchmarks.parse_arguments(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_what_is_asked_for_by_name_and_needs_torch_is_refused_without_it(capsys, monkeypatch):
    monkeypatch.setattr(all_benchmarks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        all_benchmarks.parse_arguments(["--only=import", "--no-yardstick"])
    assert ended.value.code == 2 and "--only=import: needs PyTorch" in capsys.readouterr().err
    jobs = all_benchmarks.parse_arguments(["--no-yardstick"]).jobs
    assert "import" not in {job.workload for job in jobs} and "left out: it needs PyTorch" in capsys.readouterr().err


def test_help_lists_the_workloads_without_tensorflow():
    show = (
        "import sys\nfrom benchmarks import all\ntry:\n    all.main(['--help'])\nfinally:\n    print(list(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True)
    assert all(name in done.stdout for name in WORKLOADS)
    assert "'argparse'" in done.stdout and "'tensorflow'" not in done.stdout and "'torch'" not in done.stdout


def test_a_worker_ends_with_the_processes_that_it_started():
    start = "import subprocess, sys\nchild = subprocess.Popen(['sleep', '60'])"
    with Worker("toy", [sys.executable, "-c", f"{start}\ndef step():\n    return child.pid\n{SERVE}"]) as worker:
        child = psutil.Process(worker.ask("step")["seconds"])
        assert child.is_running()
    gone, alive = psutil.wait_procs([child], timeout=5)
    assert not alive or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_real_run(tmp_path, capsys):
    # Without the yardstick, which takes minutes beside other processes.
    file = tmp_path / "now.json"
    quick = ["--presets=digits", "--rounds=1", "--no-yardstick", "--only=nelbo,saved_model_sampling"]
    all_benchmarks.main([*quick, f"--json={file}"])
    result = json.loads(file.read_text())
    assert result["complete"] and len(result["results"]) == 2
    for row in result["results"]:
        assert row["failure"] is None and row["seconds"] == [row["median_seconds"]]
        assert 0.0 < row["median_seconds"] < row["first_step_seconds"] < 60.0
        assert row["peak_memory_bytes"] > 3e8
    assert "| NELBO of a batch | digits | 60 |" in capsys.readouterr().out
