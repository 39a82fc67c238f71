"""Servers for the tests of the clients: this repository's own, and a real one where there is one.

With `TF_MODEL_SERVER` in the environment (the path of a `tensorflow_model_server`) the tests of the clients run against
both. The models are the export of conftest.py and a small one of strings, which has its pictures as bytes.
"""

import contextlib
import http.server
import itertools
import os
import shutil
import socket
import subprocess
import threading
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from nvae_tf.serving.client import ServedModel, ServingError
from nvae_tf.serving.local_server import local_server
from nvae_tf.serving.outputs import write_digests

REAL_SERVER = os.environ.get("TF_MODEL_SERVER")
PROTOCOLS = ("grpc", "rest")
SEEDS = np.array([5, 6, 5, 5 + 2 * 2**32], np.int64)
IMAGES = (np.random.default_rng(0).integers(0, 256, [4, 8, 8, 3]) / 255).astype(np.float32)


class Servers(NamedTuple):
    """Where a server of the model `tiny` (version 3) is, and one of `texts` (version 1)."""

    grpc: str
    rest: str
    texts: "Servers | None" = None

    def url(self, protocol):
        return self.grpc if protocol == "grpc" else f"http://{self.rest}"

    def client(self, protocol, model="tiny", **arguments):
        place = self.texts if model == "texts" and self.texts else self
        return ServedModel(place.url(protocol), model, **{"timeout": 30.0, **arguments})


class Texts(tf.Module):
    """Strings in and out, as the signatures whose pictures are files have them; and two simple numbers."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def echo_png(self, image_bytes):
        return {
            "image_bytes": tf.strings.join([image_bytes, tf.constant(b"\x00\xff\x00")]),
            "size": tf.strings.length(image_bytes),
            "word": tf.fill(tf.shape(image_bytes), "wörd"),
        }

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, "value")])
    def twice(self, value):
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(value < 100.0), ["too large", value])]):
            return {"value": 2.0 * value}


def save_texts(folder):
    texts = Texts()
    tf.saved_model.save(texts, str(folder), {"echo_png": texts.echo_png, "twice": texts.twice})


def with_few_warm_ups(export, place, *names):
    """A copy, `place/all/3`, with the warm-up requests of some signatures alone; a server takes seconds for each."""
    copy = shutil.copytree(export, place / "all" / "3")
    file = str(copy / "assets.extra" / "tf_serving_warmup_requests")
    records = {}
    for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        records[request.model_spec.signature_name] = record
    with tf.io.TFRecordWriter(file) as writer:
        for name in names:
            writer.write(records[name])
    write_digests(copy)
    return copy


@contextlib.contextmanager
def served(name, path, **arguments):
    with local_server(name, path, **arguments) as (port, rest_port):
        yield Servers(f"127.0.0.1:{port}", f"127.0.0.1:{rest_port}")


@contextlib.contextmanager
def web_server(answer):
    """The port of a server that answers `answer(path)`: a status and a text; without a status the connection ends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            status, text = answer(self.path)
            self.close_connection = True
            if status is not None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def real_servers(tiny, texts, place):
    """TensorFlow Serving's own binary, in a process of its own."""
    models = [("tiny", tiny), ("texts", texts)]
    configs = [f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" }}' for name, path in models]
    (place / "models.config").write_text(f"model_config_list {{ {' '.join(configs)} }}")
    ports = free_port(), free_port()
    command = [REAL_SERVER, f"--port={ports[0]}", f"--rest_api_port={ports[1]}"]
    command += [f"--model_config_file={place / 'models.config'}"]
    servers = Servers(*(f"127.0.0.1:{port}" for port in ports))
    with subprocess.Popen(command) as process:
        try:
            for model, protocol in itertools.product(("tiny", "texts"), PROTOCOLS):
                for _ in range(20):
                    with servers.client(protocol, model) as client, contextlib.suppress(ServingError):
                        client.metadata()
                        break
            yield servers
        finally:
            process.terminate()
