"""Serves exported models over TensorFlow Serving's protocols, FOR TRIALS AND TESTS.

    python -m export.serve --model=digits --path=models/digits
    python -m export.serve --model=digits --path=models/digits --port=0 --rest_port=0 --batching
    python -m export.client sample --server=localhost:8500 --model=digits --output=samples.png

PRODUCTION IS TENSORFLOW SERVING'S OWN BINARY, tensorflow_model_server, which serves the same folder to the same
clients. This server is written in Python, for machines where that binary is not at hand: it has no TLS, no metrics
and no queue, and it listens to its own machine alone unless --host says otherwise.

PATH is the folder of numbered versions that `python -m export.export_saved_model` writes. The newest is served; new
versions are picked up and removed ones dropped while it runs. For several models give --model and --path several
times; the other flags, labels among them, are for all of them.

It prints `ready` with its ports once a model answers, and ends on Ctrl-C or SIGTERM.

Exit code: 0 ended on a signal, 2 a mistake in the command, or nothing that could be served.
"""

import argparse
import pathlib
import signal
import sys
import threading
from collections.abc import Sequence

from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.serving.command_mistakes import OneLineParser, check_flag_names, exit_on_mistake, flag_names

_LARGEST_PORT = 65535


def main(arguments: Sequence[str]) -> None:
    """Reads the flags and serves until a signal comes."""
    with exit_on_mistake():
        flags = _read_flags(arguments)
        _check_paths(flags.path)
        ended = _on_signals()
        print("starting TensorFlow ...", file=sys.stderr, flush=True)
        start_tensorflow_quietly()
        _serve(flags, ended)


def run() -> None:
    """The command `nvae-serve`."""
    main(sys.argv[1:])


def _serve(flags: argparse.Namespace, ended: threading.Event) -> None:
    from nvae_tf.serving.local_server.batching import Batching
    from nvae_tf.serving.local_server.served_versions import ServedVersions
    from nvae_tf.serving.local_server.server import LocalServer

    batching = Batching(flags.max_batch_size, flags.batch_timeout_ms / 1000) if flags.batching else None
    labels = _labels(flags.label)
    models = [
        ServedVersions(name, path, flags.num_versions, labels, batching, flags.poll_seconds)
        for name, path in zip(flags.model, flags.path, strict=True)
    ]
    with LocalServer(models, flags.port, flags.rest_port, flags.host, flags.max_message_mb * 2**20) as server:
        for versions in models:
            while not versions.wait_until_looked(0.1) and not ended.is_set():
                pass
            if not ended.is_set() and not versions.serves():
                raise ValueError(f"--path={versions.path}: none of its versions can be served, see above")
            unknown = {label: number for label, number in labels.items() if number not in versions.statuses()}
            if unknown and not ended.is_set():
                label, number = next(iter(unknown.items()))
                raise ValueError(f"--label={label}={number}: {versions.path} has no version {number}")
        if not ended.is_set():
            print(f"ready: gRPC on {flags.host}:{server.port}, REST on {flags.host}:{server.rest_port}", flush=True)
        ended.wait()
    print("ended", flush=True)


def _on_signals() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    return ended


def _check_paths(paths: Sequence[pathlib.Path]) -> None:
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"--path={path}: no such folder; export a model with export.export_saved_model")
        if (path / "saved_model.pb").is_file():
            raise ValueError(f"--path={path}: is one version; name the folder of all versions, {path.parent}")
        if not any(entry.name.isdecimal() and entry.is_dir() for entry in path.iterdir()):
            raise ValueError(f"--path={path}: no numbered versions in it")


def _labels(given: Sequence[str]) -> dict[str, int]:
    labels = {}
    for text in given:
        label, equals, number = text.partition("=")
        if not (label and equals and number.isascii() and number.isdecimal()):
            raise ValueError(f"--label={text}: give LABEL=VERSION, e.g. --label=stable=1")
        labels[label] = int(number)
    return labels


def _read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="export.serve", description=__doc__)
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="NAME", help="the model's name for clients")
    add("--path", action="append", required=True, type=pathlib.Path, metavar="DIR", help="its folder of versions")
    add("--port", type=int, default=8500, metavar="N", help="gRPC; 0 picks a free one (default: 8500)")
    add("--rest_port", type=int, default=8501, metavar="N", help="REST; 0 picks a free one (default: 8501)")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all (default: 127.0.0.1)")
    add("--num_versions", type=int, default=1, metavar="N", help="how many of the newest are served (default: 1)")
    add(
        "--label", action="append", default=[], metavar="LABEL=N", help="a label for a version, which is served as well"
    )
    add("--poll_seconds", type=float, default=1.0, metavar="S", help="how often PATH is looked at (default: 1)")
    add("--max_message_mb", type=int, default=64, metavar="MB", help="largest request (default: 64)")
    add("--batching", action="store_true", help="run rows of concurrent requests together")
    add("--max_batch_size", type=int, default=32, metavar="N", help="with --batching: rows at most (default: 32)")
    add("--batch_timeout_ms", type=float, default=5.0, metavar="MS", help="with --batching: longest wait (default: 5)")
    check_flag_names(arguments, flag_names(parser))
    flags = parser.parse_args(arguments)
    _check_flags(flags)
    return flags


def _check_flags(flags: argparse.Namespace) -> None:
    if len(flags.model) != len(flags.path) or len(set(flags.model)) != len(flags.model):
        raise ValueError("--model and --path: give as many of one as of the other, and no name twice")
    for name in ("port", "rest_port"):
        if not 0 <= getattr(flags, name) <= _LARGEST_PORT:
            raise ValueError(f"--{name}={getattr(flags, name)}: must be from 0 to {_LARGEST_PORT}")
    for name in ("num_versions", "max_message_mb", "max_batch_size", "poll_seconds"):
        if not getattr(flags, name) > 0:
            raise ValueError(f"--{name}={getattr(flags, name)}: must be above 0")
    if flags.max_message_mb > 1024:
        raise ValueError(f"--max_message_mb={flags.max_message_mb}: must be 1024 or less")
    if not 0 <= flags.batch_timeout_ms <= 60_000:
        raise ValueError(f"--batch_timeout_ms={flags.batch_timeout_ms}: must be from 0 to 60000")
    _labels(flags.label)


if __name__ == "__main__":
    run()
