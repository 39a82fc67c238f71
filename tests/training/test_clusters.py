import json
import os
import signal
import subprocess
import time

import pytest
import yaml

from tests import ROOT

CLUSTERS = ROOT / "nvae_tf" / "training" / "clusters"
# What srun sets for the last of four tasks on two nodes.
LAST_TASK = dict(SLURM_JOB_ID="70003", SLURM_NTASKS="4", SLURM_STEP_NUM_NODES="2", SLURM_STEP_NODELIST="node[07-08]")
LAST_TASK |= dict(SLURM_PROCID="3", SLURM_NODEID="1", SLURM_LOCALID="1")
FLAGS = ["--config=configs/digits.py", "--workdir=a folder"]
SHOWS_ITS_TASK = 'echo "$TF_CONFIG"; printf "%s\\n" "$@"'
# In the background, because bash holds a signal back until a program in the foreground ends.
SLEEP = "echo ready; sleep 30 > /dev/null 2>&1 & wait"
STOPS_WHEN_ASKED = f'trap "echo stopped; exit 143" TERM; {SLEEP}'


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
    process = slurm_worker(commands_in, STOPS_WHEN_ASKED)
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
    process, calls = slurm_job(STOPS_WHEN_ASKED)
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
