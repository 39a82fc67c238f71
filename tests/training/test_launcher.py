import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from nvae_tf.training import launcher as launcher_module
from nvae_tf.training.launcher import StopRequest, StopRequested, gpus_of_processes, run_workers
from tests import ROOT, refuses
from tests.command_fixtures import until
from train import launch

# A worker knows its number, `remember` leaves a line for the test, and after `ready` signals may come.
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
STOPS_WHEN_ASKED = "for number in (1, 2, 15): signal.signal(number, stop)\nready()"
LAUNCHER = """
import pathlib, sys
from nvae_tf.training.launcher import run_workers
folder = pathlib.Path(sys.argv[1])
command = [sys.executable, "-S", "-c", sys.argv[2], str(folder)]
sys.exit(run_workers(command, [{}, {}], folder / "logs", 30.0, lambda text: print(text, flush=True)))
"""


def run(folder, program, gpus=({}, {}), grace=30.0):
    """Runs workers; returns the exit code and what was reported."""
    lines = []
    command = [sys.executable, "-S", "-c", PREFACE + program, str(folder)]
    return run_workers(command, gpus, folder / "logs", grace, lines.append), lines


def remembered(folder, index):
    file = folder / f"remembered-{index}"
    return file.read_text().splitlines() if file.exists() else []


def pids(folder):
    lines = [line for index in (0, 1) for line in remembered(folder, index)]
    return [int(line.split()[1]) for line in lines if line.startswith("process ")]


def running(folder):
    """The processes that run; what its parent has not asked for yet (a zombie) does not."""
    there = {process.pid: process.info["status"] for process in psutil.process_iter(["status"])}
    return [pid for pid in pids(folder) if there.get(pid, "zombie") != "zombie"]


@contextlib.contextmanager
def launcher(folder, program, through=()):
    """A launcher in a process group of its own, as a shell makes one, once both workers are ready."""
    command = [*through, sys.executable, "-c", LAUNCHER, str(folder), PREFACE + program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    try:
        until(lambda: len(pids(folder)) == 2)
        yield process
    finally:
        process.kill()
        for pid in running(folder):
            os.kill(pid, signal.SIGKILL)


def test_workers_know_their_places_and_the_output_of_the_first_is_shown(tmp_path, capfd):
    program = "remember(os.environ['TF_CONFIG']); print('out', index); print('error', index, file=sys.stderr)"
    assert run(tmp_path, program, [{}] * 3) == (0, [])
    program = "remember(os.environ['CUDA_VISIBLE_DEVICES']); print('again', index)"
    gpus = ["0,1", "GPU-ab,3", "7,8"]
    run(tmp_path, program, [{"CUDA_VISIBLE_DEVICES": own} for own in gpus])
    assert [remembered(tmp_path, index)[1] for index in range(3)] == gpus
    configs = [json.loads(remembered(tmp_path, index)[0]) for index in range(3)]
    assert [config["task"] for config in configs] == [{"type": "worker", "index": index} for index in range(3)]
    workers = configs[0]["cluster"]["worker"]
    assert all(config["cluster"] == {"worker": workers} for config in configs)
    assert len(set(workers)) == 3 and all(worker.startswith("127.0.0.1:") for worker in workers)
    assert capfd.readouterr() == ("out 0\nagain 0\n", "error 0\n")
    log = (tmp_path / "logs" / "worker-1.log").read_text()
    assert log.index("out 1\n") < log.index("again 1\n") and "error 1\n" in log


def test_when_one_fails_the_others_are_stopped(tmp_path):
    program = "index == 1 and [wait_for([0, 2]), print('the cause'), sys.exit(3)]\n" + STOPS_WHEN_ASKED
    code, (reported,) = run(tmp_path, program, [{}] * 3)
    assert code == 3
    assert reported.startswith("worker 1 ended with exit code 3") and reported.endswith("the cause")
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
    code, reported = run(tmp_path, deaf, grace=0.4)
    assert code == 128 + signal.SIGKILL and "worker 1 ended with exit code 137" in reported[-1]
    assert reported[0].startswith("worker 0 did not end within 0.4 s")
    assert len(pids(tmp_path)) == 2
    until(lambda: not running(tmp_path))


@pytest.mark.parametrize("through", [(), ("nohup",)])
def test_a_signal_to_the_whole_group_reaches_each_worker_once(tmp_path, through):
    with launcher(tmp_path, STOPS_WHEN_ASKED, through) as process:
        if through:
            os.killpg(process.pid, signal.SIGHUP)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert output in ("", "nohup: ignoring input\n")
    for index in (0, 1):
        assert remembered(tmp_path, index)[1:] == [f"signal {signal.SIGINT.value}"]


@pytest.mark.parametrize("before", [0, 1])
def test_a_signal_that_comes_before_a_worker_is_started_reaches_it(before, tmp_path, monkeypatch):
    start, started = launcher_module._start, []

    def start_after_a_signal(*arguments):
        if len(started) == before:
            signal.raise_signal(signal.SIGINT)
        started.append(start(*arguments))
        return started[-1]

    monkeypatch.setattr(launcher_module, "_start", start_after_a_signal)
    assert run(tmp_path, "time.sleep(9)", grace=3.0) == (130, []) and len(started) == 2


def test_a_third_ctrl_c_kills(tmp_path):
    program = "signal.signal(signal.SIGINT, lambda number, frame: remember('signal')); ready(); time.sleep(60)"
    with launcher(tmp_path, program) as process:
        for count in (1, 2):
            process.send_signal(signal.SIGINT)
            until(lambda count=count: remembered(tmp_path, 1).count("signal") == count)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 128 + signal.SIGKILL


def test_a_killed_launcher_leaves_no_worker_behind(tmp_path):
    with launcher(tmp_path, STOPS_WHEN_ASKED) as process:
        process.kill()
        until(lambda: not running(tmp_path))
    for index in (0, 1):
        assert remembered(tmp_path, index)[1:] == [f"signal {signal.SIGTERM}"]


@pytest.mark.parametrize(
    ("arguments", "visible", "num_known", "expected"),
    [
        ((2, 1), None, None, ["0", "1"]),
        ((2, 2), "7, 5,GPU-ab,1,0", None, ["7,5", "GPU-ab,1"]),
        ((2, 2), None, 2, "takes 4 GPUs, there are 2"),
        ((2, 1), "", None, "takes 2 GPUs, there are 0"),
    ],
)
def test_gpus_are_assigned(tmp_path, monkeypatch, arguments, visible, num_known, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("nvae_tf.training.launcher.GPUS_OF_DRIVER", tmp_path / "driver")
    for index in range(num_known or 0):
        (tmp_path / "driver" / f"0000:{index}:00.0").mkdir(parents=True)
    if isinstance(expected, str):
        refuses(expected, gpus_of_processes, *arguments)
    else:
        assert gpus_of_processes(*arguments) == [{"CUDA_VISIBLE_DEVICES": own} for own in expected]


def test_a_launcher_in_a_cluster_is_refused_and_logs_lie_beside_the_run_folder(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert "TF_CONFIG is set" in refused("train.launch", "--processes=2", "--", "--workdir=x")
    monkeypatch.delenv("TF_CONFIG")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "_WORKER_ARGUMENTS", ["--workdir=runs/two/"])
    folders = []
    monkeypatch.setattr(launcher_module, "run_workers", lambda command, gpus, folder, *_: folders.append(folder))
    with pytest.raises(SystemExit):
        launch.main(2)
    assert folders == [pathlib.Path("runs/two-logs")]
    (tmp_path / "file").touch()
    for wrong in ("runs/two/logs", "file"):
        refuses(f"^--log_dir={wrong}", launch.main, 2, log_dir=wrong)


def test_a_signal_is_remembered_until_the_run_looks_and_a_second_ctrl_c_ends_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested):
            stop.check()
        assert stop.signal_number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.getsignal(signal.SIGTERM) is before


CLUSTERS = ROOT / "nvae_tf" / "training" / "clusters"
# What srun sets for the last of four tasks on two nodes.
LAST_TASK = dict(SLURM_JOB_ID="70003", SLURM_NTASKS="4", SLURM_STEP_NUM_NODES="2", SLURM_STEP_NODELIST="node[07-08]")
LAST_TASK |= dict(SLURM_PROCID="3", SLURM_NODEID="1", SLURM_LOCALID="1")
FLAGS = ["--config=configs/digits.py", "--workdir=a folder"]
SHOWS_ITS_TASK = 'echo "$TF_CONFIG"; printf "%s\\n" "$@"'
# In the background, because bash holds a signal back until a program in the foreground ends.
SLEEP = "echo ready; sleep 30 > /dev/null 2>&1 & wait"
STOPS_THE_JOB = f'trap "echo stopped; exit 143" TERM; {SLEEP}'


@pytest.fixture
def commands_in(tmp_path):
    """Makes stand-ins for commands; gives the environment in which they are found."""

    def make(**bodies):
        for name, body in bodies.items():
            file = tmp_path / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"#!/usr/bin/env bash\n{body}\n")
            file.chmod(0o755)
        return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    return make


def start(arguments, environment):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["bash", *map(str, arguments)], cwd=ROOT, env=environment, **pipes)


def slurm_worker(commands_in, python, **changes):
    scontrol = '[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"'
    environment = commands_in(python=python, scontrol=scontrol) | LAST_TASK | changes
    return start([CLUSTERS / "slurm_worker.sh", *FLAGS], environment)


def test_a_slurm_task_finds_its_cluster_or_is_refused_in_another_order(commands_in):
    output, _ = slurm_worker(commands_in, SHOWS_ITS_TASK).communicate(timeout=30)
    tf_config, *arguments = output.splitlines()
    assert arguments == ["-m", "nvae_tf.train.main", *FLAGS]
    tf_config = json.loads(tf_config)
    assert tf_config["task"] == {"type": "worker", "index": 3}
    nodes, ports = zip(*(worker.split(":") for worker in tf_config["cluster"]["worker"]), strict=True)
    assert nodes == ("node07", "node07", "node08", "node08")
    assert ports[:2] == ports[2:] and len(set(ports)) == 2
    assert all(1024 < int(port) < 32768 for port in ports)
    for changes in ({"SLURM_PROCID": "2"}, {"SLURM_NTASKS": "5"}):
        process = slurm_worker(commands_in, SHOWS_ITS_TASK, **changes)
        output, errors = process.communicate(timeout=30)
        assert (process.returncode, output) == (2, "") and "--distribution=block" in errors


def test_a_slurm_task_passes_the_stop_on_and_waits_and_only_a_failure_is_one_for_srun(commands_in):
    assert slurm_worker(commands_in, "exit 2").wait(timeout=30) == 2
    process = slurm_worker(commands_in, STOPS_THE_JOB)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=30)[0] == "stopped\n"
    assert process.returncode == 0


@pytest.fixture
def slurm_job(commands_in, tmp_path):
    """Starts slurm.sbatch with stand-ins for Slurm; what they were called with is in a file."""
    calls = tmp_path / "calls"

    def make(srun):
        note = f'echo "$(basename "$0") $*" >> "{calls}"'
        environment = commands_in(
            srun=f'{note}; echo $$ > "{tmp_path}/srun"; {srun}',
            scancel=f'{note}; kill -TERM "$(cat "{tmp_path}/srun")"',
            scontrol=note,
        )
        return start([CLUSTERS / "slurm.sbatch", *FLAGS], environment | {"SLURM_JOB_ID": "42"}), calls

    return make


def test_a_slurm_job_whose_time_is_up_is_stopped_and_queued_again(slurm_job):
    process, calls = slurm_job(STOPS_THE_JOB)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=30)
    assert output.endswith("\nstopped\n")
    call, *others = calls.read_text().splitlines()
    assert call.endswith(f"bash nvae_tf/training/clusters/slurm_worker.sh {' '.join(FLAGS)}")
    assert others == ["scancel --signal=TERM 42", "scontrol requeue 42"]


def test_a_canceled_slurm_job_waits_for_its_workers_and_stays_canceled(slurm_job):
    process, calls = slurm_job(f'trap "sleep 0.3; echo stopped; exit 143" TERM; {SLEEP}')
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    # Slurm sends it to the workers itself.
    time.sleep(0.1)
    os.kill(int((calls.parent / "srun").read_text()), signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "stopped\n"
    assert process.returncode == 143
    assert len(calls.read_text().splitlines()) == 1


def test_a_pod_finds_its_cluster_and_the_objects_of_the_manifest_belong_together(commands_in):
    manifest = {part["kind"]: part for part in yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text())}
    service, job = manifest["Service"], manifest["Job"]
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(container["env"][0]["value"])
    assert container["command"] == ["bash", "-c"]
    environment = commands_in(python=SHOWS_ITS_TASK) | {each["name"]: each["value"] for each in container["env"]}
    process = start(["-c", *container["args"]], environment | {"JOB_COMPLETION_INDEX": "1"})
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    tf_config, *arguments = output.splitlines()
    assert arguments == ["-m", "nvae_tf.train.main", *container["args"][2:]]
    name, domain, port = job["metadata"]["name"], service["metadata"]["name"], container["ports"][0]["containerPort"]
    workers = [f"{name}-{index}.{domain}:{port}" for index in (0, 1)]
    assert json.loads(tf_config) == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": 1}}
