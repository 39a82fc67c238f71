"""Trains with several worker processes on this machine.

    nvae-launch --processes=2 -- --config=digits --workdir=runs/two --config.train.batch_size=16

Starts N processes of `nvae-train` with the flags after the --. They find each other by TF_CONFIG, on ports of
127.0.0.1. train.batch_size counts for each device of each process. For all GPUs of one machine a single
`nvae-train` is enough, and simpler; docs/clusters.md also has several machines.

The output of worker 0 is shown. The output of the others is appended to worker-1.log, worker-2.log ... in --log_dir.

Ctrl-C and SIGTERM are passed on to all workers, which end with a checkpoint; a second Ctrl-C ends them at once, a third
kills them. The same command continues from the checkpoint. When a worker crashes the others are ended, since they would
wait for it, and the last lines of its output are shown. If this process itself is killed, its workers are ended too. A
closed terminal ends them as well: use nohup or tmux.

Exit code: 0 done, 2 a mistake in the command, 129 interrupted because the terminal was closed, 130 by Ctrl-C, 143 by
SIGTERM; after a crash the exit code of the worker that crashed first, 128 and the signal's number if it was killed by
one.
"""

import os
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from nvae_tf import command_line
from nvae_tf.errors import exit_on_user_error
from nvae_tf.files import check_writable
from nvae_tf.progress import StatusLine
from nvae_tf.training import launcher
from nvae_tf.training.launcher import STOPPED_CODES

PROCESSES = flags.DEFINE_integer("processes", None, "Number of worker processes.", lower_bound=1, required=True)
_GPUS_HELP = "GPUs that each process gets for itself, of CUDA_VISIBLE_DEVICES or of all. 0: every process sees all."
GPUS_PER_PROCESS = flags.DEFINE_integer("gpus_per_process", 0, _GPUS_HELP, lower_bound=0)
_GRACE_HELP = "When one worker has ended, seconds that the others may take to save and stop; then they are killed."
GRACE_SECONDS = flags.DEFINE_float("grace_seconds", 60.0, _GRACE_HELP, lower_bound=0.0)
_LOG_HELP = "Folder for the output of workers 1, 2 ... If not given, the run folder's name and -logs, beside it."
# absl.logging has a flag of this name, for programs that let it write files.
LOG_DIR = flags.DEFINE_string("log_dir", None, _LOG_HELP, allow_override=True)
_EXAMPLE = "nvae-launch --processes=2 -- --config=digits --workdir=runs/two"


def log_folder(workdir: pathlib.Path, log_dir: str | None) -> pathlib.Path:
    """Where the workers' output goes: not into the run folder, which `nvae-train` accepts only empty for a new run."""
    if log_dir is None:
        named = workdir if workdir.name else workdir.absolute()
        return named.with_name(f"{named.name}-logs")
    folder = pathlib.Path(log_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--log_dir={log_dir}: a file; give the name of a folder")
    if folder.resolve().is_relative_to(workdir.resolve()):
        raise ValueError(f"--log_dir={log_dir}: in the run folder, which nvae-train wants for itself; give another")
    return folder


def main(worker_arguments: Sequence[str]) -> None:
    """Checks what can be checked here, then starts the workers; ends the process with their exit code."""
    if "TF_CONFIG" in os.environ:
        raise ValueError(
            "TF_CONFIG is set in the environment: nvae-launch sets it itself, for each of its workers. Unset it; "
            "or start `nvae-train` instead, where something else (Slurm, Kubernetes, ...) starts the workers"
        )
    if not worker_arguments:
        raise ValueError(f"nothing after the --: give the flags of nvae-train there, as in `{_EXAMPLE}`")
    command_line.check_config_flags(worker_arguments)
    workdir = command_line.flag_value(worker_arguments, "workdir")
    if not workdir:
        raise ValueError(f"--workdir is missing after the --; for example `{_EXAMPLE}`")
    folder = log_folder(pathlib.Path(workdir), LOG_DIR.value)
    gpus = launcher.gpus_of_processes(PROCESSES.value, GPUS_PER_PROCESS.value)

    def report(text: str) -> None:
        StatusLine(sys.stderr).keep(f"nvae-launch: {text}")

    if PROCESSES.value > 1:
        check_writable(folder, f"--log_dir={folder}")
        report(f"{PROCESSES.value} worker processes; here is the output of worker 0, the others' is in {folder}.")
    command = [sys.executable, "-m", f"{__package__}.main", *worker_arguments]
    exit_code = launcher.run_workers(command, gpus, folder, GRACE_SECONDS.value, report)
    if exit_code in STOPPED_CODES:
        again = shlex.join(["nvae-launch", *sys.argv[1:], "--", *worker_arguments])
        report(f"all workers have stopped. The same command continues from the latest checkpoint:\n    {again}")
    sys.exit(exit_code)


def run() -> None:
    """The command `nvae-launch`."""
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    sys.argv, worker_arguments = sys.argv[:place], sys.argv[place + 1 :]
    with exit_on_user_error():
        for argument in sys.argv:
            if re.match(r"--?(no)?(config|workdir)\b", argument):
                raise ValueError(f"{argument}: a flag of nvae-train; these come after a --, as in `{_EXAMPLE}`")
    # The module's flags are read from what is left in sys.argv.
    command_line.run(lambda: main(worker_arguments), flags)


if __name__ == "__main__":
    run()
