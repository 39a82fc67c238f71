"""Closed-loop load on a served export: requests a second, how long they take, and whether the server stands it.

    python -m benchmarks.serving_load --path=models/digits [--seconds=2] [--requests=10000] [--json=FILE]

The server is `export.serve`, in a process of its own on this machine: its times are not those of TensorFlow Serving's
binary. Clients share the cores with it. For every signature 1 to 32 clients each ask for one row, wait for the answer,
and ask again. Then a soak: so many requests of all signatures with malformed ones among them (a wrong type, NaN, a
negative temperature, a blob of 10 MB, a shape that says other than the bytes), each of which must be refused as
INVALID_ARGUMENT; the server's memory is read on the way.

Exit code: 0 no request failed that should not, 1 otherwise.
"""

import argparse
import contextlib
import itertools
import pathlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import psutil
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from benchmarks import results
from benchmarks.workloads import python
from nvae_tf.config import check
from nvae_tf.errors import exit_on_user_error
from nvae_tf.serving.client import ServedModel
from nvae_tf.serving.grpc_client import LARGEST_MESSAGE_BYTES

CLIENTS = (1, 2, 4, 8, 16, 32)
SIGNATURES = ("sample", "encode", "decode", "reconstruct", "score")
MALFORMED = ("wrong type", "NaN", "negative temperature", "blob", "wrong size")
SOAK_CLIENTS = 8
SECONDS_OF_A_REQUEST = 60.0
_CODE = grpc.StatusCode
Ask = Callable[[], Any]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    path, rounds = options.path, []
    with started_server(path) as (address, process), contextlib.closing(Requests(address, path.name)) as made:
        for signature, count in itertools.product(SIGNATURES, options.clients):
            rounds.append({"signature": signature} | run_round(made.one_row(signature), count, options.seconds))
            results.say(", ".join(f"{name} {value}" for name, value in rounds[-1].items()))
        results.say(f"soak: {options.requests:,} requests, one in ten malformed")
        stood = soak(made, SIGNATURES, MALFORMED, options.requests, lambda: process.memory_info().rss)
    named = {"path": path.name, "server": "export.serve", "seconds_a_round": options.seconds}
    return named | {"rounds": rounds, "soak": stood}


class Requests:
    """Makes requests of one model on one server; may be used from many threads."""

    def __init__(self, address: str, model: str):
        self._model = model
        self._channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES)])
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
        # Of some models alone: no class, no guidance, the model's own prior.
        self._inputs |= {"label": np.int32([-1]), "guidance": np.ones(1, np.float32), "proposals": np.ones(1, np.int32)}
        self._names = {name: list(inputs) for name, inputs in shapes.items()}
        self.close = self._channel.close

    def one_row(self, signature: str) -> Ask:
        """Returns what asks a signature for one row, and raises grpc.RpcError where the request is refused."""
        return self._ask(signature, {name: self._inputs[name] for name in self._names[signature]})

    def malformed(self, kind: str) -> Ask:
        """Returns what asks for what makes no sense, see `MALFORMED`."""
        seed, temperature, image, latent = list(self._inputs.values())[:4]
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


def run_round(ask: Ask, clients: int, seconds: float) -> dict[str, Any]:
    """Each of the clients asks again and again for so many seconds, after a first request that is not counted."""
    ask()
    started, times, errors = time.perf_counter(), [], []

    def client() -> None:
        while (start := time.perf_counter()) < started + seconds:
            try:
                ask()
                times.append(time.perf_counter() - start)
            except grpc.RpcError as error:
                errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The last requests end after the round's end.
    rate = len(times) / (time.perf_counter() - started)
    median, late = (float(value) for value in np.percentile(times or [np.nan], [50, 99]) * 1000.0)
    return {"clients": clients, "requests_per_second": rate, "p50_ms": median, "p99_ms": late, "errors": len(errors)}


def soak(
    made: Requests, signatures: Sequence[str], kinds: Sequence[str], requests: int, memory_bytes: Callable[[], int]
) -> dict[str, Any]:
    """Sends many requests of all signatures, one in ten malformed, from several clients, and reads the memory."""
    sound = [made.one_row(signature) for signature in signatures]
    wrong = [made.malformed(kind) for kind in kinds]

    def code_of(number: int) -> grpc.StatusCode:
        turn, is_wrong = number // 10, number % 10 == 9
        try:
            (wrong[turn % len(wrong)] if is_wrong else sound[number % len(sound)])()
            return _CODE.OK
        except grpc.RpcError as error:
            return error.code()

    codes, memory, tenth = [], [], requests // 10
    with ThreadPoolExecutor(SOAK_CLIENTS) as pool:
        for code in pool.map(code_of, range(requests)):
            codes.append(code)
            if len(codes) % tenth == 0:
                memory.append(memory_bytes())
    malformed, others = codes[9::10], [code for number, code in enumerate(codes) if number % 10 != 9]
    errors, refused = len(others) - others.count(_CODE.OK), malformed.count(_CODE.INVALID_ARGUMENT)
    counts = {"requests": requests, "errors": errors, "malformed": len(malformed), "refused": refused}
    return counts | {"memory_bytes": memory}


@contextlib.contextmanager
def started_server(path: pathlib.Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serves a folder of versions while the block runs; HOST:PORT of gRPC, and the process."""
    command = python("export.serve", f"--model={path.name}", f"--path={path}", "--port=0", "--rest_port=0")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        found = (re.match(r"ready: gRPC on ([^,]+),", line) for line in process.stdout)
        address = next((match[1] for match in found if match), None)
        check(address is not None, f"--path={path}: the server did not start, see above")
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("serving_load", __doc__)
    add, count = parser.add_argument, results.at_least(1)
    add("--path", type=pathlib.Path, required=True, metavar="DIR", help="a folder of exported versions")
    add("--seconds", type=results.at_least(0.01, float), default=2.0, help="of each round (default: 2)")
    # So many that each kind of malformed ones is among them.
    add("--requests", type=results.at_least(50), default=10_000, help="of the soak (default: 10,000)")
    add("--clients", type=count, nargs="+", default=CLIENTS, help="how many at once (default: 1 to 32)")
    with exit_on_user_error():
        result = results.run(parser.parse_args(arguments), measure)
    stood = result["soak"]
    if stood["errors"] or stood["refused"] != stood["malformed"] or any(row["errors"] for row in result["rounds"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
