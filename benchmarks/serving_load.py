"""Closed-loop load on a served export: requests a second, how long they take, and whether the server stands it.

    python -m benchmarks.serving_load --path=models/digits [--seconds=2] [--requests=10000] [--json=FILE]

The server is `export.serve`, in a process of its own on this machine: its times are not those of TensorFlow Serving's
binary, which TF_MODEL_SERVER can name instead. Clients share the cores with it. For every signature 1 to 32 clients
each ask for one row, wait for the answer, and ask again. Then a soak: so many requests of all signatures with malformed
ones among them (a wrong type, NaN, a negative temperature, a blob of 10 MB, a shape that says other than the bytes),
each of which must be refused as INVALID_ARGUMENT; the server's memory is read on the way.

Exit code: 0 no request failed that should not, 1 otherwise.
"""

import argparse
import contextlib
import itertools
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from benchmarks import results
from benchmarks.interleaved import say
from benchmarks.workloads import python
from nvae_tf.serving.client import ServedModel, ServingError
from nvae_tf.serving.grpc_client import LARGEST_MESSAGE_BYTES

CLIENTS = (1, 2, 4, 8, 16, 32)
SIGNATURES = ("sample", "encode", "decode", "reconstruct", "score")
MALFORMED = ("wrong type", "NaN", "negative temperature", "blob", "wrong size")
SOAK_CLIENTS = 8
SECONDS_OF_A_REQUEST, SECONDS_TO_START, SECONDS_TO_END = 60.0, 180.0, 30.0
Ask = Callable[[], Any]


class Round(NamedTuple):
    """What so many clients got of one signature."""

    clients: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


class Soak(NamedTuple):
    """A long run with malformed requests."""

    requests: int  # all, malformed ones among them
    errors: int  # of those that make sense
    malformed: int
    refused: int  # malformed ones that were refused as INVALID_ARGUMENT
    memory_bytes: list[int]  # of the server, after each tenth


class Server(NamedTuple):
    """A running server: its kind, HOST:PORT of gRPC, the model's name on it, and its process."""

    name: str
    address: str
    model: str
    process: psutil.Process


def measure(options: argparse.Namespace) -> dict[str, Any]:
    path, rounds = options.path, []
    with started_server(path) as server, contextlib.closing(Requests(*server[1:3])) as made:
        for signature, count in itertools.product(SIGNATURES, options.clients):
            found = run_round(made.one_row(signature), count, options.seconds)
            rounds.append({"signature": signature} | found._asdict())
            say(
                f"{signature:12}{count:3} clients {found.requests_per_second:8.1f} requests/s, "
                f"p50 {found.p50_ms:7.1f} ms, p99 {found.p99_ms:7.1f} ms, {found.errors} errors"
            )
        say(f"soak: {options.requests:,} requests, one in ten malformed")
        stood = soak(made, SIGNATURES, MALFORMED, options.requests, lambda: server.process.memory_info().rss)
    named = {"path": path.name, "server": server.name, "seconds_a_round": options.seconds}
    return named | {"rounds": rounds, "soak": stood._asdict()}


class Requests:
    """Makes requests of one model on one server; may be used from many threads."""

    def __init__(self, address: str, model: str):
        self._model = model
        options = [("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES)]
        self._channel = grpc.insecure_channel(address, options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        with ServedModel(address, model) as client:
            shapes = {name: spec.inputs for name, spec in client.signatures().items()}
        generator = np.random.default_rng(0)
        self._inputs = {
            "seed": np.array([7], np.int64),
            "temperature": np.ones(1, np.float32),
            "image": generator.integers(0, 2, [1, *shapes["encode"]["image"].shape[1:]]).astype(np.float32),
            "latent": generator.normal(size=[1, *shapes["decode"]["latent"].shape[1:]]).astype(np.float32),
        }
        self._names = {name: list(inputs) for name, inputs in shapes.items()}
        self.close = self._channel.close

    def one_row(self, signature: str) -> Ask:
        """Returns what asks a signature for one row, and raises grpc.RpcError where the request is refused."""
        return self._ask(signature, {name: self._inputs[name] for name in self._names[signature]})

    def malformed(self, kind: str) -> Ask:
        """Returns what asks for what makes no sense, see `MALFORMED`."""
        seed, temperature, image, latent = self._inputs.values()
        signature, given = {
            "wrong type": ("sample", {"seed": temperature, "temperature": temperature}),
            "NaN": ("encode", {"image": image * np.float32(np.nan), "seed": seed}),
            "negative temperature": ("sample", {"seed": seed, "temperature": -temperature}),
            "blob": ("encode_png", {"image_bytes": np.array([b"\xff" * 10 * 2**20], object), "seed": seed}),
            "wrong size": ("decode", {"latent": latent[:, 1:]}),
        }[kind]
        return self._ask(signature, given)

    def _ask(self, signature: str, inputs: dict[str, np.ndarray]) -> Ask:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self._model, signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        return lambda: self._predictions.Predict(request, timeout=SECONDS_OF_A_REQUEST)


def run_round(ask: Ask, clients: int, seconds: float) -> Round:
    """Each of the clients asks again and again for so many seconds, after a first request that is not counted."""
    ask()
    started = time.perf_counter()
    times: list[float] = []
    errors = itertools.count()

    def client() -> None:
        while (start := time.perf_counter()) < started + seconds:
            try:
                ask()
                times.append(time.perf_counter() - start)
            except grpc.RpcError:
                next(errors)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The last requests end after the round's end.
    elapsed = time.perf_counter() - started
    median, late = np.percentile(times or [np.nan], [50, 99]) * 1000.0
    return Round(clients, len(times) / elapsed, float(median), float(late), next(errors))


def soak(
    made: Requests, signatures: Sequence[str], kinds: Sequence[str], requests: int, memory_bytes: Callable[[], int]
) -> Soak:
    """Sends many requests of all signatures, one in ten malformed, from several clients, and reads the memory."""
    sound = [made.one_row(signature) for signature in signatures]
    wrong = [made.malformed(kind) for kind in kinds]

    def code_of(number: int) -> grpc.StatusCode:
        turn, is_wrong = number // 10, number % 10 == 9
        try:
            (wrong[turn % len(wrong)] if is_wrong else sound[number % len(sound)])()
            return grpc.StatusCode.OK
        except grpc.RpcError as error:
            return error.code()

    errors = malformed = refused = 0
    memory, tenth = [], requests // 10
    with ThreadPoolExecutor(SOAK_CLIENTS) as pool:
        for number, code in enumerate(pool.map(code_of, range(requests))):
            if number % 10 == 9:
                malformed += 1
                refused += code == grpc.StatusCode.INVALID_ARGUMENT
            else:
                errors += code != grpc.StatusCode.OK
            if number % tenth == tenth - 1:
                memory.append(memory_bytes())
    return Soak(requests, errors, malformed, refused, memory)


@contextlib.contextmanager
def started_server(path: pathlib.Path) -> Iterator[Server]:
    """Serves a folder of versions while the block runs: by `tensorflow_model_server` if TF_MODEL_SERVER names one."""
    binary = os.environ.get("TF_MODEL_SERVER")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder, "log")
        if binary:
            command = [binary, f"--port={port}", f"--model_name={path.name}", f"--model_base_path={path.resolve()}"]
        else:
            command = python("export.serve", f"--model={path.name}", f"--path={path}", f"--port={port}")
            command.append("--rest_port=0")
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            until = time.monotonic() + SECONDS_TO_START
            while not _is_available(f"localhost:{port}", path.name):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.2)
            name = "tensorflow_model_server" if binary else "export.serve"
            yield Server(name, f"localhost:{port}", path.name, psutil.Process(process.pid))
        finally:
            process.terminate()
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_available(address: str, model: str) -> bool:
    with contextlib.suppress(ServingError), ServedModel(address, model) as client:
        return any(status.state == "AVAILABLE" for status in client.model_status())
    return False


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = results.benchmark_parser("serving_load", __doc__)
    add, count = parser.add_argument, results.at_least(1)
    add("--path", type=pathlib.Path, required=True, metavar="DIR", help="a folder of exported versions")
    add("--seconds", type=results.positive_seconds, default=2.0, help="of each round (default: 2)")
    # So many that each kind of malformed ones is among them.
    add("--requests", type=results.at_least(50), default=10_000, help="of the soak (default: 10,000)")
    add("--clients", type=count, nargs="+", default=CLIENTS, help="how many at once (default: 1 to 32)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    result = results.run(parse_arguments(arguments), measure)
    stood = result["soak"]
    if stood["errors"] or stood["refused"] != stood["malformed"] or any(row["errors"] for row in result["rounds"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
