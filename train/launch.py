"""Trains with several worker processes on this machine.

    nvae-launch --processes=2 -- --config=digits --workdir=runs/two --config.train.batch_size=16

Starts N processes of `nvae-train` with the flags after the --. They find each other by TF_CONFIG, on ports of
127.0.0.1. train.batch_size counts for each device of each process. For all GPUs of one machine a single `nvae-train` is
enough, and simpler; docs/clusters.md also has several machines. The output of worker 0 is shown; the output of the
others is appended to worker-1.log, worker-2.log ... in --log_dir.

Ctrl-C and SIGTERM are passed on to all workers, which end with a checkpoint; a second Ctrl-C ends them at once, a third
kills them. The same command continues from the checkpoint. When a worker crashes the others are ended, and the last
lines of its output are shown. The workers also end if this process is killed, or the terminal closed (see nohup, tmux).

Exit code: 0 done, 2 a mistake in the command, 129 interrupted because the terminal was closed, 130 by Ctrl-C, 143 by
SIGTERM; after a crash the code of the worker that crashed first, 128 and the signal's number if a signal killed it.
"""

import os
import pathlib
import re
import shlex
import sys
from typing import Annotated

from nvae_tf import command_line, errors, files, progress
from nvae_tf.training import launcher

_GPUS_HELP = "GPUs that each process gets for itself, of CUDA_VISIBLE_DEVICES or of all. 0: every process sees all."
_GRACE_HELP = "When one worker has ended, seconds that the others may take to save and stop; then they are killed."
_LOG_HELP = "Folder for the output of workers 1, 2 ... If not given, the run folder's name and -logs, beside it."
_EXAMPLE = "nvae-launch --processes=2 -- --config=digits --workdir=runs/two"
_WORKER_ARGUMENTS: list[str] = []  # the arguments after the --


def main(
    processes: Annotated[int, "Number of worker processes.", 1],
    gpus_per_process: Annotated[int, _GPUS_HELP, 0] = 0,
    grace_seconds: Annotated[float, _GRACE_HELP, 0.0] = 60.0,
    log_dir: Annotated[str | None, _LOG_HELP] = None,
) -> None:
    """Checks what can be checked here, then starts the workers; ends the process with their exit code."""
    if "TF_CONFIG" in os.environ:
        raise ValueError("TF_CONFIG is set, which nvae-launch sets itself: unset it, or start nvae-train instead")
    command_line.check_config_flags(_WORKER_ARGUMENTS)
    given = command_line.flag_value(_WORKER_ARGUMENTS, "workdir")
    if not given:
        raise ValueError(f"--workdir is missing after the --; for example `{_EXAMPLE}`")
    workdir = pathlib.Path(given)
    folder = pathlib.Path(log_dir or f"{workdir if workdir.name else workdir.absolute()}-logs")
    # `nvae-train` accepts only an empty run folder for a new run.
    if folder.is_file() or folder.resolve().is_relative_to(workdir.resolve()):
        raise ValueError(f"--log_dir={log_dir}: must be a folder that is not in the run folder")
    gpus = launcher.gpus_of_processes(processes, gpus_per_process)

    def report(text: str) -> None:
        progress.StatusLine(sys.stderr).print(f"nvae-launch: {text}")

    if processes > 1:
        files.check_writable(folder, f"--log_dir={folder}")
        report(f"{processes} worker processes; here is the output of worker 0, the others' is in {folder}.")
    command = [sys.executable, "-m", f"{__package__}.main", *_WORKER_ARGUMENTS]
    exit_code = launcher.run_workers(command, gpus, folder, grace_seconds, report)
    if exit_code in launcher.STOPPED_CODES:
        again = shlex.join(["nvae-launch", *sys.argv[1:], "--", *_WORKER_ARGUMENTS])
        report(f"all workers have stopped. The same command continues from the latest checkpoint:\n    {again}")
    sys.exit(exit_code)


def run() -> None:
    """The command `nvae-launch`."""
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    with errors.exit_on_user_error():
        for word in sys.argv[1:place]:
            if re.match("--?(workdir|config)", word):
                raise ValueError(f"{word}: flags of nvae-train stand after a --; for example `{_EXAMPLE}`")
    _WORKER_ARGUMENTS[:] = sys.argv[place + 1 :]
    del sys.argv[place:]
    command_line.run(main)


if __name__ == "__main__":
    run()
