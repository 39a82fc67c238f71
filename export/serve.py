"""Serves an exported model over TensorFlow Serving's protocols, FOR TRIALS AND TESTS.

    nvae-serve --path=models/digits
    nvae-client sample --server=localhost:8500 --model=digits --output=samples.png
    nvae-serve --path=models/digits --samples=trial
    nvae-serve --model=digits --explore

PRODUCTION IS TENSORFLOW SERVING'S OWN BINARY, tensorflow_model_server, which serves the same folder to the same
clients. This server has no TLS, no metrics, no batching and no labels, and listens to its own machine alone unless
--host is given. PATH is the folder of numbered versions that `nvae-export` writes; the version that is the newest at
the start is served. Without --path the model is a run, as `nvae_tf.load` takes it (a folder, hf://user/name, or digits,
which comes with the package), which is exported into the cache unless it is there already.

With --explore the server also has a page that shows in a browser what the model has learned, and prints its address.
With --samples it asks itself for samples by gRPC and by REST, writes served_grpc.png and served_rest.png, and ends.
It prints `ready` with its ports once the model has answered its warm-up requests, and ends on Ctrl-C or SIGTERM.
Exit code: 0 ended on a signal, or samples are written; 130 Ctrl-C before it was ready; 2 a mistake in the command, or a
version that can't be loaded.
"""

import contextlib
import pathlib
import signal
import sys
import tempfile
import threading
from typing import Annotated

from nvae_tf import command_line, errors, files
from nvae_tf.serving.outputs import newest_version, unchecked_reason
from nvae_tf.serving.server_files import PAGE, explorer_facts, write_explorer


def main(
    model: Annotated[str | None, "The model's name for clients, the folder's if not given; or see above."] = None,
    path: Annotated[str | None, "Its folder of versions."] = None,
    explore: Annotated[bool, "Whether to serve the explorer, a page for a browser."] = False,
    port: Annotated[int, "gRPC; 0 picks a free one.", 0, 65535] = 8500,
    rest_port: Annotated[int, "REST; 0 picks a free one.", 0, 65535] = 8501,
    host: Annotated[str, "Address to listen at; 0.0.0.0 for all."] = "127.0.0.1",
    rest_api_enable_cors_support: Annotated[bool, "Whether pages of other servers may ask."] = False,
    samples: Annotated[str | None, "A folder for two images; ends when they are written."] = None,
) -> None:
    """Serves until a signal comes, or the samples are written."""
    if not path and not model:
        raise ValueError("give --path, a folder of versions, or --model, e.g. digits")
    remark = ""
    if path:
        newest = newest_version(pathlib.Path(path))
        remark = unchecked_reason(newest)
        if explore:
            explorer_facts(newest)
    if samples:
        files.check_writable(pathlib.Path(samples), f"--samples={samples}")
    for module in ("tensorflow_serving", "uvicorn"):
        errors.require(module, "serving")
    print(*filter(None, [remark]), "starting TensorFlow ...", sep="\n", file=sys.stderr, flush=True)
    errors.start_tensorflow_quietly()
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # every connection is an open file
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    from nvae_tf.serving.local_server import local_server

    if path:
        versions = pathlib.Path(path)
    else:
        from nvae_tf.serving.saved_model import cached_export

        versions = cached_export(model)
    ended, name = threading.Event(), model if model and path else versions.resolve().name
    with tempfile.TemporaryDirectory() as folder:
        pages = pathlib.Path(folder) if explore else None
        if explore:
            write_explorer(pages, {name: explorer_facts(newest_version(versions))})
        with local_server(name, versions, port, rest_port, host, rest_api_enable_cors_support, pages) as ports:
            # Not before: a signal during the start, or while samples are written, ends it at once.
            for number in () if samples else (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: ended.set())
            print(f"ready: gRPC on {host}:{ports[0]}, REST on {host}:{ports[1]}", flush=True)
            host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
            if samples:
                write_samples({"grpc": f"{host}:{ports[0]}", "rest": f"http://{host}:{ports[1]}"}, name, samples)
                return
            if explore:
                print(f"explorer: http://{host}:{ports[1]}/{PAGE}", flush=True)
            ended.wait()
    print("ended", flush=True)


def write_samples(servers: dict[str, str], name: str, folder: str) -> None:
    """Asks for the same samples by each protocol, and writes a grid of them."""
    from nvae_tf.generation.image_grid import image_grid, write_png
    from nvae_tf.serving.client import ServedModel

    for protocol, server in servers.items():
        with ServedModel(server, name) as model:
            images = model.sample(64, seed=1, as_pixels=True)
        file = pathlib.Path(folder, f"served_{protocol}.png")
        write_png(file, image_grid(images, enlarge=None))
        print(f"{len(images)} images in {file}", flush=True)


run = command_line.command(main)
