"""Asks a model server (TensorFlow Serving, or export.serve) for pictures, latents and scores.

    python -m export.client status      --server=localhost:8500 --model=digits
    python -m export.client sample      --server=localhost:8500 --model=digits --output=samples.png --temperature=0.7
    python -m export.client encode      --server=localhost:8500 --model=digits --images=seven.png --output=seven.npz
    python -m export.client decode      --server=localhost:8500 --model=digits --latents=seven.npz --output=again.png
    python -m export.client reconstruct --server=localhost:8500 --model=digits --images=photos --output=photos_again/
    python -m export.client score       --server=localhost:8500 --model=digits --images=photos --output=scores.json

An --output in .png is one picture, all images in rows; DIR/ is a new folder with a PNG of each. Image i of --seed is
the same in jobs of all sizes. With --rest the server is asked over HTTP and JSON (its REST port, often 8501) instead
of gRPC. A server that is not ready is asked again for some seconds.

Needs NumPy, Pillow, grpcio, requests and tensorflow-serving-api; TensorFlow itself is not started.

Exit code: 0 done, 2 a mistake in the command, or a server that does not answer or refuses; then no file is written.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from nvae_tf.serving.clients import client_files
from nvae_tf.serving.clients.client_files import FOLDER
from nvae_tf.serving.clients.model_client import ModelClient
from nvae_tf.serving.clients.request_patience import Patience
from nvae_tf.serving.clients.served_model import LARGEST_SEED, ServedModel
from nvae_tf.serving.clients.signature_specs import nearest
from nvae_tf.serving.command_mistakes import OneLineParser, check_flag_names, exit_on_mistake, flag_names
from nvae_tf.serving.progress_bar import ProgressBar

COMMANDS = {
    "sample": "draw pictures",
    "encode": "pictures -> a file of latents",
    "decode": "a file of latents -> pictures",
    "reconstruct": "what the model keeps of pictures",
    "score": "how well the model explains pictures: a table, and JSON with --output",
    "status": "the model's versions and signatures on the server",
}


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, asks, and writes."""
    with exit_on_mistake():
        flags = _read_flags(arguments)
        with _client(flags) as client:
            _TASKS[flags.command](flags, client)


def run() -> None:
    """The command `nvae-client`."""
    main(sys.argv[1:])


def _sample(flags: argparse.Namespace, client: ModelClient) -> None:
    client_files.check_output(flags.output, (".png", FOLDER))
    if flags.count < 1:
        raise ValueError(f"--count={flags.count}: must be above 0")
    if not 0.0 < flags.temperature < math.inf:
        raise ValueError(f"--temperature={flags.temperature}: must be above 0")
    with ProgressBar(flags.count, "images") as bar:
        images = _model(flags, client, bar).sample(flags.count, flags.seed, flags.temperature, as_pixels=True)
    names = [f"sample_{number:05d}" for number in range(flags.count)]
    _write_pictures(flags, images, names)


def _pictures(flags: argparse.Namespace, client: ModelClient, files: Sequence[pathlib.Path]) -> list[Image.Image]:
    """The pictures of files, all in the model's size."""
    height, width, _ = ServedModel(client).image_shape(flags.command)
    pictures = client_files.read_pictures(files)
    for file, picture in zip(files, pictures, strict=True):
        if (picture.height, picture.width) != (height, width):
            raise ValueError(
                f"--images={file}: is {picture.height}x{picture.width} (height x width), the model takes "
                f"{height}x{width}; resize it"
            )
    return pictures


def _encode(flags: argparse.Namespace, client: ModelClient) -> None:
    client_files.check_output(flags.output, (".npz",))
    pictures = _pictures(flags, client, client_files.picture_files(flags.images))
    with ProgressBar(len(pictures), "images") as bar:
        latents = _model(flags, client, bar).encode(pictures, flags.seed)
    client_files.write_latents(flags.output, latents)
    print(f"{len(latents)} latents of {latents.shape[1]} values in {flags.output}")


def _decode(flags: argparse.Namespace, client: ModelClient) -> None:
    client_files.check_output(flags.output, (".png", FOLDER))
    latents = client_files.read_latents(flags.latents)
    with ProgressBar(len(latents), "images") as bar:
        images = _model(flags, client, bar).decode(latents, as_pixels=True)
    _write_pictures(flags, images, [f"decoded_{number:05d}" for number in range(len(images))])


def _reconstruct(flags: argparse.Namespace, client: ModelClient) -> None:
    client_files.check_output(flags.output, (".png", FOLDER))
    files = client_files.picture_files(flags.images)
    pictures = _pictures(flags, client, files)
    with ProgressBar(len(pictures), "images") as bar:
        images = _model(flags, client, bar).reconstruct(pictures, flags.seed, as_pixels=True)
    _write_pictures(flags, images, client_files.numbered_names(files))


def _score(flags: argparse.Namespace, client: ModelClient) -> None:
    if flags.output:
        client_files.check_output(flags.output, (".json",))
    files = client_files.picture_files(flags.images)
    pictures = _pictures(flags, client, files)
    with ProgressBar(len(pictures), "images") as bar:
        scores = _model(flags, client, bar).score(pictures, flags.seed)
    if flags.output:
        client_files.write_scores(flags.output, scores, files)
    print(client_files.scores_table(scores, files))


def _status(flags: argparse.Namespace, client: ModelClient) -> None:
    for found in client.model_status():
        print(f"version {found.version}: {found.state}{' ' if found.error else ''}{found.error}")
    metadata = client.metadata()
    print(f"signatures of version {metadata.version}:")
    width = max(map(len, metadata.signatures), default=0)
    for name, spec in metadata.signatures.items():
        sides = (", ".join(f"{key} {value}" for key, value in side.items()) for side in spec)
        print(f"  {name:{width}}  {' -> '.join(sides)}")


_TASKS = {
    "sample": _sample,
    "encode": _encode,
    "decode": _decode,
    "reconstruct": _reconstruct,
    "score": _score,
    "status": _status,
}


def _write_pictures(flags: argparse.Namespace, images: np.ndarray, names: Sequence[str]) -> None:
    client_files.write_pictures(flags.output, images, names)
    print(f"{len(images)} pictures in {flags.output}")


def _model(flags: argparse.Namespace, client: ModelClient, bar: ProgressBar) -> ServedModel:
    return ServedModel(client, flags.batch_rows, flags.in_flight, bar.show)


def _client(flags: argparse.Namespace) -> ModelClient:
    patience = Patience(request=flags.timeout, total=flags.total_timeout)
    # The other protocol's libraries are not waited for.
    if flags.rest:
        from nvae_tf.serving.clients.rest_client import RestClient as Client
    else:
        from nvae_tf.serving.serving_client import ServingClient as Client
    server = flags.server or ("localhost:8501" if flags.rest else "localhost:8500")
    return Client(server, flags.model, flags.version, flags.label, patience)


def _read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="export.client", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    for name, text in COMMANDS.items():
        parsers[name] = commands.add_parser(name, help=text, description=text)
        _add_common_flags(parsers[name])
        _add_own_flags(parsers[name], name)
    command = arguments[0] if arguments else ""
    if command not in (*parsers, "-h", "--help"):
        hint = f"did you mean {nearest(command, parsers)}?" if command[:1] not in ("", "-") else ", ".join(parsers)
        raise ValueError(f"{command or 'no arguments'}: the first must be a command; {hint}")
    # argparse would tell a mistyped flag without the nearest one.
    check_flag_names(arguments, flag_names(parsers.get(command, parser)))
    flags = parser.parse_args(arguments)
    if "seed" in flags and not 0 <= flags.seed <= LARGEST_SEED:
        raise ValueError(f"--seed={flags.seed}: must be from 0 to {LARGEST_SEED}")
    for name in ("batch_rows", "in_flight", "timeout", "total_timeout"):
        if not 0 < getattr(flags, name) < math.inf:
            raise ValueError(f"--{name}={getattr(flags, name)}: must be above 0")
    return flags


def _add_common_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the server")
    group.add_argument("--server", metavar="HOST:PORT", help="default: localhost:8500, with --rest localhost:8501")
    group.add_argument("--rest", action="store_true", help="HTTP and JSON instead of gRPC")
    group.add_argument("--model", required=True, metavar="NAME", help="the model's name on the server")
    version = group.add_mutually_exclusive_group()
    version.add_argument("--version", type=int, metavar="N", help="a version (default: the newest that is served)")
    version.add_argument("--label", metavar="LABEL", help="the version with a label, e.g. stable")
    group.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for a request (default: 60)")
    group.add_argument(
        "--total_timeout", type=float, default=3600.0, metavar="S", help="seconds for everything (default: 3600)"
    )
    group.add_argument("--batch_rows", type=int, default=32, metavar="N", help="most rows of a request (default: 32)")
    group.add_argument("--in_flight", type=int, default=2, metavar="N", help="requests at once (default: 2)")


def _add_own_flags(parser: argparse.ArgumentParser, command: str) -> None:
    group = parser.add_argument_group("what to do")
    if command == "sample":
        group.add_argument("--count", type=int, default=64, help="how many pictures (default: 64)")
        group.add_argument("--temperature", type=float, default=1.0, help="above 0; lower is tamer (default: 1)")
    if command in ("encode", "reconstruct", "score"):
        help_text = "a picture or a folder of pictures, in the model's size; may be given several times"
        group.add_argument("--images", action="append", required=True, metavar="FILE|DIR", help=help_text)
    if command == "decode":
        group.add_argument("--latents", required=True, metavar="NPZ", help="latents as `encode` writes them")
    if command in ("sample", "encode", "reconstruct", "score"):
        group.add_argument("--seed", type=int, default=1, help="which series of draws, from 0 (default: 1)")
    if command != "status":
        outputs = {"encode": "the latents, .npz", "score": "the scores, .json; only a table is printed without it"}
        help_text = outputs.get(command, "a picture of all in rows, .png, or a new folder, DIR/")
        group.add_argument("--output", required=command != "score", metavar="PATH", help=help_text)


if __name__ == "__main__":
    run()
