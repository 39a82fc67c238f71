"""The server of `benchmarks.serving_load`, in a process of its own."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import psutil

_SECONDS_TO_START, _SECONDS_TO_END = 180.0, 30.0


class Server(NamedTuple):
    """A running server.

    Attributes:
      name: what it is.
      address: HOST:PORT of gRPC.
      model: the model's name on it.
      process: its number.
    """

    name: str
    address: str
    model: str
    process: int

    def memory_bytes(self) -> int:
        """What the server holds of the machine's memory now."""
        return psutil.Process(self.process).memory_info().rss


@contextlib.contextmanager
def started_server(path: pathlib.Path, batching: bool) -> Iterator[Server]:
    """Serves a folder of versions while the block runs: by `tensorflow_model_server` if TF_MODEL_SERVER names one.

    Raises:
      RuntimeError: it does not start; the message has what it said.
    """
    binary = os.environ.get("TF_MODEL_SERVER")
    with tempfile.TemporaryDirectory() as place:
        port = _free_port()
        own = _own_command(path, port, batching)
        command = _real_command(binary, path, port, batching, pathlib.Path(place)) if binary else own
        log = pathlib.Path(place, "log")
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _wait(process, port, log, path.name)
            yield Server(
                "tensorflow_model_server" if binary else "export.serve", f"localhost:{port}", path.name, process.pid
            )
        finally:
            process.terminate()
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _own_command(path: pathlib.Path, port: int, batching: bool) -> list[str]:
    command = [sys.executable, "-m", "export.serve", f"--model={path.name}", f"--path={path}", f"--port={port}"]
    return [*command, "--rest_port=0", *(["--batching"] if batching else [])]


def _real_command(binary: str, path: pathlib.Path, port: int, batching: bool, place: pathlib.Path) -> list[str]:
    command = [binary, f"--port={port}", f"--model_name={path.name}", f"--model_base_path={path.resolve()}"]
    if not batching:
        return command
    parameters = place / "batching.txt"
    parameters.write_text("max_batch_size { value: 32 }\nbatch_timeout_micros { value: 5000 }\n")
    return [*command, "--enable_batching", f"--batching_parameters_file={parameters}"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _wait(process: subprocess.Popen, port: int, log: pathlib.Path, model: str) -> None:
    from nvae_tf.serving.client import AVAILABLE, ServingError
    from nvae_tf.serving.grpc_client import ServingClient

    until = time.monotonic() + _SECONDS_TO_START
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(ServingError), ServingClient(f"localhost:{port}", model) as client:
            if any(status.state == AVAILABLE for status in client.model_status()):
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")
