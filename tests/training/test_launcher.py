"""The launcher with real processes: small programs in place of train.main, no TensorFlow."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from nvae_tf.training.worker_environments import check_environment, gpus_of_processes, worker_environments
from nvae_tf.training.worker_processes import WorkerPlan, run_workers
from train import launch

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRACE = 0.4
# A worker knows its number, `remember` leaves a line for the test, and `ready` tells that signals may come.
PREFACE = """
import json, os, pathlib, signal, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
def remember(text):
    with open(pathlib.Path(sys.argv[1]) / f"remembered-{index}", "a") as file:
        file.write(f"{text}\\n")
def wait_for(others):
    files = [pathlib.Path(sys.argv[1]) / f"remembered-{other}" for other in others]
    while not all(file.exists() and file.stat().st_size for file in files):
        time.sleep(0.01)
def stop(number, frame):
    remember(f"signal {number}")
    time.sleep(0.2)  # a second delivery would come now
    sys.exit(128 + number)
def ready():
    remember(f"process {os.getpid()}")
    time.sleep(60)
"""
STOPS_AS_TOLD = "signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop); ready()"
STOPS_UNLESS_ITS_NUMBER_IS_1 = "signal.signal(signal.SIGTERM, signal.SIG_IGN if index == 1 else stop); ready()"
LAUNCHER = """
import pathlib, sys
from nvae_tf.training.worker_environments import worker_environments
from nvae_tf.training.worker_processes import WorkerPlan, run_workers
folder, program, grace = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
plan = WorkerPlan(
    [sys.executable, "-S", "-c", program, str(folder)], lambda: worker_environments(2, None), folder / "logs", grace, 1
)
sys.exit(run_workers(plan, lambda text: print(text, flush=True)))
"""


def plan(folder, program, processes=2, **changes):
    command = [sys.executable, "-S", "-c", PREFACE + program, str(folder)]
    settings = {"grace_seconds": 30.0, "patience_seconds": 0.2} | changes
    return WorkerPlan(command, lambda: worker_environments(processes, None), folder / "logs", **settings)


def run(folder, program, **changes):
    """Runs workers; returns the exit code and what was told."""
    told = []
    return run_workers(plan(folder, program, **changes), told.append), told


def remembered(folder, index):
    file = folder / f"remembered-{index}"
    return file.read_text().splitlines() if file.exists() else []


def pids(folder):
    lines = [line for index in (0, 1) for line in remembered(folder, index)]
    return [int(line.split()[1]) for line in lines if line.startswith("process ")]


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited for half a minute"
        time.sleep(0.02)


def is_there(pid):
    """Whether a process runs; what its parent has not asked for yet (a zombie) does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def launcher(folder, program, grace=30.0, through=()):
    """A launcher in a process group of its own, as a shell makes one, once both workers are ready."""
    command = [*through, sys.executable, "-c", LAUNCHER, str(folder), PREFACE + program, str(grace)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        until(lambda: len(pids(folder)) == 2)
        yield process
    finally:
        process.kill()
        for pid in filter(is_there, pids(folder)):
            os.kill(pid, signal.SIGKILL)


def test_every_worker_knows_the_cluster_and_its_place(tmp_path):
    code, told = run(tmp_path, "remember(os.environ['TF_CONFIG'])", processes=3)
    assert (code, told) == (0, [])
    configs = [json.loads(remembered(tmp_path, index)[0]) for index in range(3)]
    assert [config["task"] for config in configs] == [{"type": "worker", "index": index} for index in range(3)]
    workers = configs[0]["cluster"]["worker"]
    assert all(config["cluster"] == {"worker": workers} for config in configs)
    assert len(set(workers)) == 3 and all(worker.startswith("127.0.0.1:") for worker in workers)


def test_the_first_workers_output_is_shown_and_the_others_kept(tmp_path, capfd):
    run(tmp_path, "print('out', index); print('error', index, file=sys.stderr)")
    run(tmp_path, "print('again', index)")
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("out 0\nagain 0\n", "error 0\n")
    assert [file.name for file in (tmp_path / "logs").iterdir()] == ["worker-1.log"]
    log = (tmp_path / "logs" / "worker-1.log").read_text()
    assert log.index("out 1\n") < log.index("again 1\n") and "error 1\n" in log


def test_when_one_fails_the_others_are_stopped(tmp_path):
    program = "index == 1 and [wait_for([0, 2]), print('the cause'), sys.exit(3)]\n" + STOPS_AS_TOLD
    code, told = run(tmp_path, program, processes=3)
    assert code == 3
    assert told[0].startswith("worker 1 ended with exit code 3") and told[0].endswith("the cause")
    assert told[1].endswith("told to stop: worker 0, 2.") and len(told) == 2
    for index in (0, 2):
        assert remembered(tmp_path, index)[1:] == [f"signal {signal.SIGTERM}"]


def test_one_that_does_not_stop_is_killed_with_all_it_has_started(tmp_path):
    # The shell ignores SIGTERM as its parent does.
    deaf = (
        "if index == 0:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        '    import subprocess; remember(f\'process {subprocess.Popen(["sleep", "60"]).pid}\'); ready()\n'
        "wait_for([0]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    code, told = run(tmp_path, deaf, grace_seconds=GRACE)
    assert code == 128 + signal.SIGKILL
    assert "worker 1 was killed by SIGKILL" in told[0] and "killed: worker 0." in told[2]
    assert len(pids(tmp_path)) == 2
    until(lambda: not any(map(is_there, pids(tmp_path))))


def test_a_mistake_that_all_have_made_is_told_by_the_first(tmp_path):
    # Worker 1 is first to find it.
    code, told = run(tmp_path, "time.sleep(0.2 * (1 - index)); print('error: --x'); sys.exit(2)", patience_seconds=10.0)
    assert (code, told) == (2, ["worker 0 ended with exit code 2."])


def test_what_follows_from_a_failure_is_not_its_cause(tmp_path):
    program = (
        "if index == 1: remember(os.getpid()); sys.exit(5)\n"
        "wait_for([1]); first = int(pathlib.Path(sys.argv[1], 'remembered-1').read_text())\n"
        "while pathlib.Path(f'/proc/{first}').exists(): time.sleep(0.01)\n"
        "sys.exit(1)"
    )
    code, told = run(tmp_path, program, patience_seconds=10.0)
    assert code == 5
    assert told[0].startswith("worker 1 ended with exit code 5")
    assert told[1:] == ["after that worker 0 ended with exit code 1."]


@pytest.mark.parametrize(("restarts", "crashes", "code", "starts"), [(2, 1, 0, 2), (2, 2, 0, 3), (1, 9, 3, 2)])
def test_a_crash_starts_all_again_but_not_for_ever(tmp_path, restarts, crashes, code, starts):
    program = (
        "def starts(of): return pathlib.Path(sys.argv[1], f'remembered-{of}').read_text().count('start')\n"
        "remember('start'); print('this is start', starts(index)); wait_for([0])\n"
        "while starts(0) < starts(index): time.sleep(0.01)\n"
        f"sys.exit(3 if index and starts(index) <= {crashes} else 0)"
    )
    done, told = run(tmp_path, program, restarts=restarts)
    assert done == code
    assert remembered(tmp_path, 0) == remembered(tmp_path, 1) == ["start"] * starts
    assert [line[:14] for line in told if line.startswith("restart")] == [
        f"restart {i} of {restarts}" for i in range(1, starts)
    ]
    failures = [line for line in told if line.startswith("worker 1")]
    # The log has all starts, what is told of one is its own.
    assert [line.splitlines()[1:] for line in failures] == [
        [f"    this is start {number}"] for number in range(1, len(failures) + 1)
    ]


@pytest.mark.parametrize("code", [0, 2, 130, 143])
def test_an_end_that_is_no_crash_is_the_end(tmp_path, code):
    done, told = run(tmp_path, f"remember('start'); sys.exit({code})", restarts=3)
    assert done == code and remembered(tmp_path, 1) == ["start"]
    assert not [line for line in told if "restart" in line]


def test_a_start_that_fails_leaves_no_worker(tmp_path):
    (tmp_path / "logs").touch()
    with pytest.raises(FileExistsError):
        run(tmp_path, "time.sleep(3); remember('not ended')")
    assert remembered(tmp_path, 0) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_reaches_each_worker_once(tmp_path, number):
    with launcher(tmp_path, STOPS_AS_TOLD) as process:
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert output == ""
    for index in (0, 1):
        assert remembered(tmp_path, index)[1:] == [f"signal {number}"]


def test_a_closed_terminal_lets_workers_save_what_they_have(tmp_path):
    with launcher(tmp_path, STOPS_AS_TOLD) as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=30) == 143
    assert remembered(tmp_path, 1)[1:] == [f"signal {signal.SIGTERM}"]


def test_with_nohup_a_closed_terminal_means_nothing(tmp_path):
    with launcher(tmp_path, STOPS_AS_TOLD, through=["nohup"]) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert remembered(tmp_path, 1)[1:] == [f"signal {signal.SIGTERM}"]


def test_a_worker_that_saves_is_waited_for_but_not_for_ever(tmp_path):
    with launcher(tmp_path, STOPS_UNLESS_ITS_NUMBER_IS_1, grace=GRACE) as process:
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert output == f"not ended within {GRACE} s and killed: worker 1.\n"


def test_a_third_ctrl_c_kills(tmp_path):
    program = "signal.signal(signal.SIGINT, lambda number, frame: remember('signal')); ready(); time.sleep(60)"
    with launcher(tmp_path, program) as process:
        for count in (1, 2):
            process.send_signal(signal.SIGINT)
            until(lambda count=count: remembered(tmp_path, 1).count("signal") == count)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 128 + signal.SIGKILL


def test_a_killed_launcher_leaves_no_worker_behind(tmp_path):
    with launcher(tmp_path, STOPS_UNLESS_ITS_NUMBER_IS_1, grace=1.0) as process:
        process.kill()
        until(lambda: not any(map(is_there, pids(tmp_path))))
    assert remembered(tmp_path, 0)[1:] == [f"signal {signal.SIGTERM}"]


def test_gpus_are_dealt_out(tmp_path):
    no_driver = tmp_path / "none"
    assert gpus_of_processes(2, 0, {}, no_driver) is None
    assert gpus_of_processes(2, 1, {}, no_driver) == ["0", "1"]
    assert gpus_of_processes(2, 2, {"CUDA_VISIBLE_DEVICES": "7, 5,GPU-ab,1,0"}, no_driver) == ["7,5", "GPU-ab,1"]
    environments = worker_environments(2, ["7,5", "GPU-ab,1"])
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["7,5", "GPU-ab,1"]


@pytest.mark.parametrize("visible", ["", "0", "0,-1,2", "-1"])
def test_too_few_visible_gpus_are_told(visible):
    with pytest.raises(ValueError, match=f"takes 2 GPUs, CUDA_VISIBLE_DEVICES={visible} has [01]$"):
        gpus_of_processes(2, 1, {"CUDA_VISIBLE_DEVICES": visible})


def test_the_driver_knows_how_many_gpus_there_are(tmp_path):
    for name in ("0000:17:00.0", "0000:65:00.0"):
        (tmp_path / name).mkdir()
    assert gpus_of_processes(2, 1, {}, tmp_path) == ["0", "1"]
    with pytest.raises(ValueError, match="takes 4 GPUs, the machine's driver knows 2"):
        gpus_of_processes(2, 2, {}, tmp_path)


def test_a_cluster_inside_a_cluster_is_refused():
    check_environment({})
    with pytest.raises(ValueError, match="^TF_CONFIG is set"):
        check_environment({"TF_CONFIG": "{}"})


def test_arguments_after_the_dashes_are_the_workers():
    assert launch.split_arguments(["launch", "--processes=2", "--", "--workdir=x", "--"]) == (
        ["launch", "--processes=2"],
        ["--workdir=x", "--"],
    )
    assert launch.split_arguments(["launch", "--help"]) == (["launch", "--help"], [])
    with pytest.raises(ValueError, match="^--config.train.seed=1: .* come after a --"):
        launch.split_arguments(["launch", "--processes=2", "--config.train.seed=1"])


@pytest.mark.parametrize("arguments", [["--workdir=runs/two/"], ["-workdir", "runs/two", "--config=x"]])
def test_logs_lie_beside_the_run_folder(arguments):
    assert launch.log_folder(launch.run_folder(arguments), None) == pathlib.Path("runs/two-logs")


def test_logs_lie_nowhere_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch.log_folder(pathlib.Path("."), None) == tmp_path.with_name(f"{tmp_path.name}-logs")
    (tmp_path / "file").touch()
    for wrong in ("runs/two", "runs/two/logs", f"{tmp_path}/runs/two/logs", "file"):
        with pytest.raises(ValueError, match=f"^--log_dir={wrong}"):
            launch.log_folder(pathlib.Path("runs/two"), wrong)
    with pytest.raises(ValueError, match="^--workdir is missing"):
        launch.run_folder(["--config=x"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--processes=0", "--", "--workdir=x"], "--processes=0"),
        (["--processes=2", "--"], "nothing after the --"),
        (["--proceses=2", "--", "--workdir=x"], "proceses"),
        (["--processes=2", "--", "--config.train.batch_sise=2", "--workdir=x"], "--config.train.batch_size"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(commands, arguments, told):
    process = commands.run(["-m", "train.launch", *arguments])
    assert (process.returncode, process.stdout) == (2, "")
    assert told in process.stderr and process.stderr.count("\n") == 1 and process.stderr.startswith("error: ")


def test_a_mistake_that_train_main_finds_is_told_once(commands, tmp_path):
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path / 'two'}", "--config.train.batch_size=0"]
    process = commands.run(["-m", "train.launch", "--processes=2", "--", *flags])
    assert process.returncode == 2
    assert process.stderr.count("error: train.batch_size = 0") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["two-logs"]


def test_the_launcher_never_loads_tensorflow():
    program = "import sys, train.launch; print('tensorflow' in sys.modules, 'numpy' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert output == "False False\n"
