"""Serves an exported model over TensorFlow Serving's protocols, FOR TRIALS AND TESTS.

    nvae-serve --path=models/digits
    nvae-client sample --server=localhost:8500 --model=digits --output=samples.png
    nvae-serve --path=models/digits --samples=trial
    nvae-serve --model=digits --explore

PRODUCTION IS TENSORFLOW SERVING'S OWN BINARY, tensorflow_model_server, which serves the same folder to the same
clients. This server has no TLS, no metrics, no batching and no labels, and listens to its own machine alone unless
--host is given. PATH is the folder of numbered versions that `nvae-export` writes; the newest is served, as it is
when the server starts. Without --path the model is a run, as `nvae_tf.load` takes it (a folder, hf://user/name, or
digits, which comes with the package), which is exported into the cache unless it is there already.

With --explore the server also has a page that shows in a browser what the model has learned, and prints its address.

With --samples it asks itself for samples by gRPC and by REST, writes served_grpc.png and served_rest.png into that
folder, which are the same, and ends: does serving work on this machine?

It prints `ready` with its ports once the model has answered its warm-up requests, and ends on Ctrl-C or SIGTERM.
Exit code: 0 ended on a signal, or samples are written; 2 a mistake in the command, or a version that can't be loaded.
"""

import contextlib
import pathlib
import signal
import socket
import sys
import tempfile
import threading

import numpy as np
from absl import flags

from nvae_tf import command_line
from nvae_tf.errors import require, start_tensorflow_quietly
from nvae_tf.files import check_writable
from nvae_tf.serving.explorer_files import PAGE, cached_export, explorer_facts, write_explorer
from nvae_tf.serving.outputs import newest_version, unchecked_reason

MODEL = flags.DEFINE_string("model", None, "The model's name for clients, the folder's if not given; or see above.")
PATH = flags.DEFINE_string("path", None, "Its folder of versions.")
EXPLORE = flags.DEFINE_boolean("explore", False, "Whether to serve the explorer, a page for a browser.")
PORT = flags.DEFINE_integer("port", 8500, "gRPC; 0 picks a free one.", lower_bound=0, upper_bound=65535)
REST_PORT = flags.DEFINE_integer("rest_port", 8501, "REST; 0 picks a free one.", lower_bound=0, upper_bound=65535)
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for all.")
CORS = flags.DEFINE_boolean("rest_api_enable_cors_support", False, "Whether pages of other servers may ask.")
SAMPLES = flags.DEFINE_string("samples", None, "A folder for two images; ends when they are written.")


def main() -> None:
    """Serves until a signal comes."""
    if not PATH.value and not MODEL.value:
        raise ValueError("give --path, a folder of versions, or --model, e.g. digits")
    remark = ""
    if PATH.value:
        newest = newest_version(pathlib.Path(PATH.value))
        remark = unchecked_reason(newest)
        if EXPLORE.value:
            explorer_facts(newest)
    if SAMPLES.value:
        check_writable(pathlib.Path(SAMPLES.value), f"--samples={SAMPLES.value}")
    for flag in (PORT, REST_PORT):
        check_is_free(flag)
    for module in ("tensorflow_serving", "uvicorn"):
        require(module, "serving")
    print(*filter(None, [remark]), "starting TensorFlow ...", sep="\n", file=sys.stderr, flush=True)
    start_tensorflow_quietly()
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        # Every connection is an open file; a process may open some 1,000 files until it asks for more.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    path = pathlib.Path(PATH.value) if PATH.value else cached_export(MODEL.value)
    serve(MODEL.value if MODEL.value and PATH.value else path.resolve().name, path)


def serve(name: str, path: pathlib.Path) -> None:
    """Serves the newest version of a folder until a signal comes, or the samples are written."""
    from nvae_tf.serving.local_server import local_server

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = write_explorer(folder, {name: newest_version(path)}) if EXPLORE.value else []
        places, pages = (name, path, PORT.value, REST_PORT.value, HOST.value), {f"/{file.name}": file for file in files}
        port, rest_port = stack.enter_context(local_server(*places, enable_cors=CORS.value, files=pages))
        print(f"ready: gRPC on {HOST.value}:{port}, REST on {HOST.value}:{rest_port}", flush=True)
        host = "localhost" if HOST.value in ("0.0.0.0", "::") else HOST.value
        host = f"[{host}]" if ":" in host else host
        if SAMPLES.value:
            write_samples({"grpc": f"{host}:{port}", "rest": f"http://{host}:{rest_port}"}, name)
            return
        if EXPLORE.value:
            print(f"explorer: http://{host}:{rest_port}/{PAGE}", flush=True)
        ended.wait()
    print("ended", flush=True)


def check_is_free(port: flags.FlagHolder) -> None:
    """Raises OSError where somebody listens at a port: before TensorFlow starts, which takes seconds."""
    family = socket.AF_INET6 if ":" in HOST.value else socket.AF_INET
    try:
        socket.create_server((HOST.value, port.value), family=family).close()
    except OSError as error:
        place = f"--{port.name}={port.value}, --host={HOST.value}"
        raise OSError(f"{place}: can't listen there ({error.strerror}); give another port, 0 for a free one") from None


def write_samples(servers: dict[str, str], name: str) -> None:
    """Asks for the same samples by each protocol, and writes a grid of them."""
    from nvae_tf.generation.image_grid import image_grid, write_png
    from nvae_tf.serving.client import ServedModel

    for protocol, server in servers.items():
        with ServedModel(server, name) as model:
            images = model.sample(64, seed=1, as_pixels=True)
        file = pathlib.Path(SAMPLES.value, f"served_{protocol}.png")
        write_png(file, image_grid(images / np.float32(255.0), enlarge=None))
        print(f"{len(images)} images in {file}", flush=True)


def run() -> None:
    """The command `nvae-serve`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
