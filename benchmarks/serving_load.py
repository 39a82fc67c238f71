"""Closed-loop load on a served export: requests a second, how long they take, and whether the server stands it.

    python -m benchmarks.serving_load --path=models/digits [--seconds=2] [--requests=10000] [--json=FILE]

The server is `export.serve`, in a process of its own on this machine: its numbers are not those of TensorFlow Serving's
binary, which TF_MODEL_SERVER can name instead. Clients share the cores with it. For every signature, with batching and
without, 1 to 32 clients each ask for one row, wait for the answer, and ask again. Then a soak: so many requests of all
signatures with malformed ones among them (a wrong type, NaN, a negative temperature, a blob of 10 MB, a shape that says
other than the bytes), each of which must be refused as INVALID_ARGUMENT; the server's memory is read on the way.

Exit code: 0 no request failed that should not, 1 otherwise.
"""

import argparse
import datetime
import pathlib
import sys
from typing import Any

from benchmarks.command_line import at_least_one, benchmark_parser, positive_seconds, write_figures
from benchmarks.serving_load_requests import MALFORMED, Requests
from benchmarks.serving_load_rounds import Round, run_round, soak
from benchmarks.serving_load_server import started_server
from benchmarks.train_step import describe_machine, say

CLIENTS = (1, 2, 4, 8, 16, 32)
SIGNATURES = ("sample", "encode", "decode", "reconstruct", "score")


def measure(path: pathlib.Path, round_seconds: float, requests: int, clients: tuple[int, ...]) -> dict[str, Any]:
    """All rounds and the soak; the figures as `--json` writes them."""
    machine = describe_machine()
    rounds: list[dict[str, Any]] = []
    for batching in (False, True):
        with started_server(path, batching) as server:
            made = Requests(server.address, server.model)
            for signature in SIGNATURES:
                for count in clients:
                    figures = run_round(made.one_row(signature), count, round_seconds)
                    rounds.append({"signature": signature, "batching": batching} | figures._asdict())
                    say(_told(signature, batching, figures))
            made.close()
    with started_server(path, batching=True) as server:
        say(f"soak: {requests:,} requests, one in ten malformed")
        made = Requests(server.address, server.model)
        stood = soak(made, SIGNATURES, MALFORMED, requests, server.memory_bytes)
        made.close()
    return {
        "path": path.name,
        "server": server.name,
        "seconds_a_round": round_seconds,
        "rounds": rounds,
        "soak": stood._asdict(),
        "machine": machine,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _told(signature: str, batching: bool, figures: Round) -> str:
    kind = "batching" if batching else "one by one"
    return (
        f"{signature:12}{kind:11}{figures.clients:3} clients {figures.requests_per_second:8.1f} requests/s, "
        f"p50 {figures.p50_ms:7.1f} ms, p99 {figures.p99_ms:7.1f} ms, {figures.errors} errors"
    )


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{result['server']}, {result['date']}",
        f"{'requests/s (p50 / p99 ms)':26}{'one by one':>28}{'batching':>28}",
    ]
    cells: dict[tuple[str, int], dict[bool, str]] = {}
    for row in result["rounds"]:
        text = f"{row['requests_per_second']:.1f} ({row['p50_ms']:.0f} / {row['p99_ms']:.0f})"
        cells.setdefault((row["signature"], row["clients"]), {})[row["batching"]] = text
    for (signature, clients), texts in cells.items():
        lines.append(f"{signature:14}{clients:3} clients  {texts[False]:>28}{texts[True]:>28}")
    stood = result["soak"]
    first, last = stood["memory_bytes"][0] / 2**20, stood["memory_bytes"][-1] / 2**20
    lines.append(f"errors in all rounds: {sum(row['errors'] for row in result['rounds'])}")
    lines.append(
        f"soak of {stood['requests']:,} requests: {stood['errors']} errors; {stood['refused']:,} of "
        f"{stood['malformed']:,} malformed ones were refused as INVALID_ARGUMENT; the server's memory was "
        f"{first:.0f} MiB after the first tenth, {last:.0f} MiB at the end"
    )
    machine = result["machine"]
    lines.append(f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_at_start']:.1f}")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser("serving_load", __doc__)
    parser.add_argument("--path", type=pathlib.Path, required=True, metavar="DIR", help="a folder of exported versions")
    parser.add_argument("--seconds", type=positive_seconds, default=2.0, help="of each round (default: 2)")
    parser.add_argument("--requests", type=at_least_one, default=10_000, help="of the soak (default: 10,000)")
    clients_help = "how many at once (default: 1 to 32)"
    parser.add_argument("--clients", type=at_least_one, nargs="+", default=CLIENTS, help=clients_help)
    options = parser.parse_args(arguments)
    if options.requests < 50:
        parser.error(f"--requests={options.requests}: must be at least 50, so that each kind is among them")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    options = parse_arguments(arguments)
    result = measure(options.path, options.seconds, options.requests, tuple(options.clients))
    print(table(result))
    write_figures(result, options.json)
    stood = result["soak"]
    if stood["errors"] or stood["refused"] != stood["malformed"] or any(row["errors"] for row in result["rounds"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
