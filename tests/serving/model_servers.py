"""Servers for the tests of the clients: this repository's own, and a real one where there is one.

With `TF_MODEL_SERVER` in the environment (the path of a `tensorflow_model_server`) the tests of the clients run against
both. The models are the export of conftest.py and a small one of strings, which has its pictures as bytes.
"""

import contextlib
import itertools
import os
import socket
import subprocess
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.serving.client import Patience, RestClient
from nvae_tf.serving.grpc_client import ServingClient
from nvae_tf.serving.local_server import LocalServer
from nvae_tf.serving.served_versions import ServedVersions

REAL_SERVER = os.environ.get("TF_MODEL_SERVER")
CLIENTS = {"grpc": ServingClient, "rest": RestClient}
SEEDS = np.array([5, 6, 5, 5 + 2 * 2**32], np.int64)
IMAGES = (np.random.default_rng(0).integers(0, 256, [4, 8, 8, 3]) / 255).astype(np.float32)
QUICK = Patience(request=30.0, total=60.0, tries=3, first_wait=0.01)


class Servers(NamedTuple):
    """Where a server of the models `tiny` (version 3, label `stable`) and `texts` (version 1) is."""

    grpc: str
    rest: str

    def client(self, protocol, model="tiny", **arguments):
        arguments.setdefault("patience", QUICK)
        return CLIENTS[protocol](getattr(self, protocol), model, **arguments)


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
    module = Texts()
    tf.saved_model.save(module, str(folder), {"echo_png": module.echo_png, "twice": module.twice})


def served(name, path, **arguments):
    return ServedVersions(name, path, poll_seconds=0.05, **arguments)


@contextlib.contextmanager
def local_servers(*models, **arguments):
    with LocalServer(models, **arguments) as server:
        for versions in models:
            assert versions.wait_until_looked(60)
        yield Servers(f"127.0.0.1:{server.port}", f"127.0.0.1:{server.rest_port}")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def real_servers(tiny, texts, place):
    """TensorFlow Serving's own binary, in a process of its own."""
    labels = 'version_labels { key: "stable" value: 3 }'
    models = [("tiny", tiny, labels), ("texts", texts, "")]
    configs = [
        f'config {{ name: "{n}" base_path: "{p}" model_platform: "tensorflow" {more} }}' for n, p, more in models
    ]
    (place / "models.config").write_text(f"model_config_list {{ {' '.join(configs)} }}")
    ports = free_port(), free_port()
    command = [REAL_SERVER, f"--port={ports[0]}", f"--rest_api_port={ports[1]}"]
    command += [f"--model_config_file={place / 'models.config'}", "--allow_version_labels_for_unavailable_models=true"]
    servers = Servers(*(f"127.0.0.1:{port}" for port in ports))
    patience = Patience(total=120, tries=1000, longest_wait=0.5)
    with subprocess.Popen(command) as process:
        try:
            for model, protocol in itertools.product(("tiny", "texts"), CLIENTS):
                with servers.client(protocol, model, patience=patience) as client:
                    client.metadata()
            yield servers
        finally:
            process.terminate()
