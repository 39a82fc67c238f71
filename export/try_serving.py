"""Serves an export for a moment and asks it for samples by gRPC and by REST: does serving work on this machine?

    python -m export.try_serving --path=runs/demo/saved_model --output=runs/demo

PATH is a folder of numbered versions. The two commands that it runs, `export.serve` and `export.client`, are shown. The
pictures are OUTPUT/served_grpc.png and OUTPUT/served_rest.png; they are the same.

Exit code: 0 done, 2 a mistake in the command, or serving does not work.
"""

import argparse
import contextlib
import pathlib
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

from nvae_tf.serving.command_mistakes import OneLineParser, check_flag_names, exit_on_mistake, flag_names

PICTURES = ("served_grpc.png", "served_rest.png")
_MODEL = "model"
_SECONDS_TO_START, _SECONDS_TO_END = 300.0, 30.0


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, serves and asks."""
    with exit_on_mistake():
        flags = _read_flags(arguments)
        flags.output.mkdir(parents=True, exist_ok=True)
        with _served(flags.path) as (port, rest_port):
            for picture, server in zip(PICTURES, ([port], [rest_port, "--rest"]), strict=True):
                address, *protocol = server
                drawing = [f"--seed={flags.seed}", f"--count={flags.count}", f"--temperature={flags.temperature}"]
                where = [f"--server=localhost:{address}", *protocol, f"--model={_MODEL}"]
                _run(["-m", "export.client", "sample", *where, *drawing, f"--output={flags.output / picture}"])


def run() -> None:
    """The command `nvae-try-serving`."""
    main(sys.argv[1:])


@contextlib.contextmanager
def _served(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Serves the newest version on free ports, of gRPC and of REST, while the block runs."""
    command = ["-m", "export.serve", f"--model={_MODEL}", f"--path={path}", "--port=0", "--rest_port=0"]
    print(f"$ python {shlex.join(command)}", flush=True)
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=said, text=True)
        # A server that hangs is ended, and what it has said is told.
        deadline = threading.Timer(_SECONDS_TO_START, process.kill)
        deadline.start()
        try:
            ready = process.stdout.readline()
            if not ready.startswith("ready"):
                said.seek(0)
                lines = said.read().strip().splitlines() or ["it said nothing"]
                raise ValueError(lines[-1].removeprefix("error: "))
            deadline.cancel()
            print(ready, end="", flush=True)
            yield tuple(word.rpartition(":")[2].strip() for word in ready.split(","))
        finally:
            deadline.cancel()
            process.terminate()
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _run(command: list[str]) -> None:
    print(f"$ python {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code:
        raise ValueError(f"the client ended with exit code {code}")


def _read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="export.try_serving", description=__doc__)
    add = parser.add_argument
    add("--path", type=pathlib.Path, required=True, metavar="DIR", help="a folder of exported versions")
    add("--output", type=pathlib.Path, required=True, metavar="DIR", help="where the two pictures go")
    add("--count", type=int, default=64, help="how many samples (default: 64)")
    add("--seed", type=int, default=1, help="which series of samples (default: 1)")
    add("--temperature", type=float, default=1.0, help="above 0; lower is tamer (default: 1)")
    check_flag_names(arguments, flag_names(parser))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run()
