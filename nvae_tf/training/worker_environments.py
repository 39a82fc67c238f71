"""What tells the worker processes of one machine apart: TF_CONFIG, and which GPUs each of them sees."""

import contextlib
import itertools
import json
import os
import pathlib
import socket
from collections.abc import Mapping

TF_CONFIG = "TF_CONFIG"
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
_HOST = "127.0.0.1"
GPUS_OF_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Looks for a cluster that this process is part of already.

    Raises:
      ValueError: `TF_CONFIG` is set.
    """
    if TF_CONFIG in environment:
        raise ValueError(
            f"{TF_CONFIG} is set in the environment: train.launch sets it itself, for each of its workers. Unset it; "
            "or start `python -m train.main` instead, where something else (Slurm, Kubernetes, ...) starts the workers"
        )


def tf_configs(processes: int) -> list[str]:
    """`TF_CONFIG` of each worker; each has a port on this machine that was free a moment ago."""
    workers = [f"{_HOST}:{port}" for port in _free_ports(processes)]
    return [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        for index in range(processes)
    ]


def _free_ports(count: int) -> list[int]:
    # All are held at the same time, so that no two are the same.
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def gpus_of_processes(
    processes: int,
    gpus_per_process: int,
    environment: Mapping[str, str] = os.environ,
    gpus_of_driver: pathlib.Path = GPUS_OF_DRIVER,
) -> list[str] | None:
    """`CUDA_VISIBLE_DEVICES` of each process: a slice of this process's, or of 0, 1, 2 ...

    Returns:
      None where `gpus_per_process` is 0: all processes see what this one sees.

    Raises:
      ValueError: there are fewer GPUs.
    """
    if not gpus_per_process:
        return None
    wanted = processes * gpus_per_process
    visible = environment.get(VISIBLE_GPUS)
    if visible is None:
        names = [str(index) for index in range(wanted)]
        there, where = len(list(gpus_of_driver.glob("*"))), "the machine's driver knows"
        # Without the folder nobody knows how many there are.
        there = there if gpus_of_driver.is_dir() else wanted
    else:
        # CUDA takes none of those from the first negative number on.
        names = list(itertools.takewhile(lambda name: not name.startswith("-"), visible.replace(" ", "").split(",")))
        names = [name for name in names if name]
        there, where = len(names), f"{VISIBLE_GPUS}={visible} has"
    if there < wanted:
        raise ValueError(
            f"--processes={processes} --gpus_per_process={gpus_per_process}: takes {wanted} GPUs, {where} {there}"
        )
    return [",".join(names[first : first + gpus_per_process]) for first in range(0, wanted, gpus_per_process)]


def worker_environments(processes: int, gpus: list[str] | None) -> list[dict[str, str]]:
    """The whole environment of each worker."""
    environments = [os.environ | {TF_CONFIG: tf_config} for tf_config in tf_configs(processes)]
    if gpus is not None:
        environments = [each | {VISIBLE_GPUS: names} for each, names in zip(environments, gpus, strict=True)]
    return environments
