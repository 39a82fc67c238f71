"""Closed-loop load on a served export: requests a second, how long they take, and whether the server stands it.

    python -m benchmarks.serving_load --path=models/digits [--seconds=2] [--requests=10000] [--json=FILE]

The server is `export.serve`, in a process of its own on this machine: its times are not those of TensorFlow Serving's
binary. Clients share the cores with it. For every signature 1 to 32 clients each ask for one row, wait for the answer,
and ask again. Then a soak: so many requests of all signatures with malformed ones among them, which must be refused as
INVALID_ARGUMENT; the server's memory is read on the way. Exit code: 0 no request failed that should not, 1 otherwise.
"""

import argparse
import contextlib
import functools
import itertools
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil

from benchmarks import results
from benchmarks.workloads import python
from nvae_tf.config import check
from nvae_tf.errors import exit_on_user_error
from nvae_tf.serving.client import ServedModel, ServingError

CLIENTS = (1, 2, 4, 8, 16, 32)
SIGNATURES = ("sample", "encode", "decode", "reconstruct", "score")
SOAK_CLIENTS = 8
SECONDS_OF_A_REQUEST = 60.0
Ask = Callable[[], Any]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    path, rounds = options.path, []
    with started_server(path) as (address, process):
        sound, malformed = requests_of(ServedModel(address, path.name))
        for signature, count in itertools.product(sound, options.clients):
            rounds.append({"signature": signature} | run_round(sound[signature], count, options.seconds))
            results.say(", ".join(f"{name} {value}" for name, value in rounds[-1].items()))
        results.say(f"soak: {options.requests:,} requests, one in ten malformed")
        stood = soak([*sound.values()], [*malformed.values()], options.requests, lambda: process.memory_info().rss)
    return {"path": path.name, "seconds_a_round": options.seconds, "rounds": rounds, "soak": stood}


def requests_of(model: ServedModel) -> tuple[dict[str, Ask], dict[str, Ask]]:
    """A request for one row of each signature, and requests that make no sense, by what is wrong with them.

    Each sends itself when it is called, from any thread; ServingError where it is refused.
    """
    shapes = {name: spec.inputs for name, spec in model.signatures().items()}
    random, ones, seed = np.random.default_rng(0), np.ones(1, np.float32), np.array([7], np.int64)
    image = random.integers(0, 2, [1, *shapes["encode"]["image"].shape[1:]]).astype(np.float32)
    latent = random.normal(size=[1, *shapes["decode"]["latent"].shape[1:]]).astype(np.float32)
    # The last three are of some models alone: no class, no guidance, the model's own prior.
    inputs = {"seed": seed, "temperature": ones, "image": image, "latent": latent}
    inputs |= {"label": np.int32([-1]), "guidance": ones, "proposals": np.ones(1, np.int32)}
    blob = np.array([b"\xff" * 10 * 2**20], object)

    def ask(signature: str, **arrays: np.ndarray) -> Ask:
        # Without the client's own checks of the inputs.
        return functools.partial(model.transport.predict, signature, arrays, None, SECONDS_OF_A_REQUEST)

    sound = {name: ask(name, **{key: inputs[key] for key in shapes[name]}) for name in SIGNATURES}
    return sound, {
        "wrong type": ask("sample", seed=ones, temperature=ones),
        "NaN": ask("encode", image=image * np.float32(np.nan), seed=seed),
        "negative temperature": ask("sample", seed=seed, temperature=-ones),
        "blob": ask("encode_png", image_bytes=blob, seed=seed),
        "wrong size": ask("decode", latent=latent[:, 1:]),
    }


def run_round(ask: Ask, clients: int, seconds: float) -> dict[str, Any]:
    """Each of the clients asks again and again for so many seconds, after a first request that is not counted."""
    ask()
    started, times, errors = time.perf_counter(), [], []

    def client() -> None:
        while (start := time.perf_counter()) < started + seconds:
            try:
                ask()
                times.append(time.perf_counter() - start)
            except ServingError as error:
                errors.append(error)

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    # The last requests end after the round's end.
    rate = len(times) / (time.perf_counter() - started)
    median, late = (float(value) for value in np.percentile(times or [np.nan], [50, 99]) * 1000.0)
    return {"clients": clients, "requests_per_second": rate, "p50_ms": median, "p99_ms": late, "errors": len(errors)}


def soak(sound: list[Ask], wrong: list[Ask], requests: int, memory_bytes: Callable[[], int]) -> dict[str, Any]:
    """Sends many requests, one in ten malformed, from several clients, and reads the server's memory."""

    def error_of(number: int) -> Exception | None:
        turn, is_wrong = number // 10, number % 10 == 9
        try:
            (wrong[turn % len(wrong)] if is_wrong else sound[number % len(sound)])()
        except ServingError as error:
            return error

    errors_of_requests, memory, tenth = [], [], requests // 10
    with ThreadPoolExecutor(SOAK_CLIENTS) as pool:
        for error in pool.map(error_of, range(requests)):
            errors_of_requests.append(error)
            if len(errors_of_requests) % tenth == 0:
                memory.append(memory_bytes())
    malformed = errors_of_requests[9::10]
    refused = sum("[INVALID_ARGUMENT]" in str(error) for error in malformed)
    errors = sum(error is not None for number, error in enumerate(errors_of_requests) if number % 10 != 9)
    counts = {"requests": requests, "errors": errors, "malformed": len(malformed), "refused": refused}
    return counts | {"memory_bytes": memory}


@contextlib.contextmanager
def started_server(path: pathlib.Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serves a folder of versions while the block runs; HOST:PORT of gRPC, and the process."""
    command = python("export.serve", f"--model={path.name}", f"--path={path}", "--port=0", "--rest_port=0")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        matches = (re.match(r"ready: gRPC on ([^,]+),", line) for line in process.stdout)
        address = next((match[1] for match in matches if match), None)
        check(address is not None, f"--path={path}: the server did not start, see above")
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("benchmarks.serving_load", __doc__)
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
