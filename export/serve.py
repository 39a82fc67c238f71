"""Serves exported models over TensorFlow Serving's protocols, FOR TRIALS AND TESTS.

    nvae-serve --model=digits --path=models/digits
    nvae-serve --model=digits --path=models/digits --port=0 --rest_port=0 --batching
    nvae-client sample --server=localhost:8500 --model=digits --output=samples.png

PRODUCTION IS TENSORFLOW SERVING'S OWN BINARY, tensorflow_model_server, which serves the same folder to the same
clients. This server has no TLS, no metrics and no queue, and listens to its own machine alone unless --host is given.
PATH is the folder of numbered versions that `nvae-export` writes. The newest is served; new
versions are loaded and removed ones dropped while it runs. For several models give --model and --path several
times; the other flags, labels among them, are for all of them.

It prints `ready` with its ports once a model answers, and ends on Ctrl-C or SIGTERM.
Exit code: 0 ended on a signal, 2 a mistake in the command, or nothing that could be served.
"""

import pathlib
import signal
import sys
import threading

from absl import flags

from nvae_tf import command_line
from nvae_tf.errors import require, start_tensorflow_quietly
from nvae_tf.serving.outputs import check_is_versions

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("model", None, "The model's name for clients.", required=True)
flags.DEFINE_multi_string("path", None, "Its folder of versions.", required=True)
flags.DEFINE_integer("port", 8500, "gRPC; 0 picks a free one.", lower_bound=0, upper_bound=65535)
flags.DEFINE_integer("rest_port", 8501, "REST; 0 picks a free one.", lower_bound=0, upper_bound=65535)
flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for all.")
flags.DEFINE_multi_string("label", [], "LABEL=N, a label for a version, which is served as well.")
flags.DEFINE_boolean("batching", False, "Run rows of concurrent requests together.")


def main() -> None:
    """Serves until a signal comes."""
    if len(FLAGS.model) != len(FLAGS.path) or len(set(FLAGS.model)) != len(FLAGS.model):
        raise ValueError("--model and --path: give as many of one as of the other, and no name twice")
    labels, paths = dict(map(_label, FLAGS.label)), [pathlib.Path(path) for path in FLAGS.path]
    for path in paths:
        check_is_versions(path)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    require("tensorflow_serving", "serving")
    print("starting TensorFlow ...", file=sys.stderr, flush=True)
    start_tensorflow_quietly()
    from nvae_tf.serving.local_server import LocalServer
    from nvae_tf.serving.served_versions import Batching, ServedVersions

    batching = Batching() if FLAGS.batching else None
    models = [ServedVersions(name, path, labels, batching) for name, path in zip(FLAGS.model, paths, strict=True)]
    with LocalServer(models, FLAGS.port, FLAGS.rest_port, FLAGS.host) as server:
        server.wait_until_ready(ended)
        if not ended.is_set():
            print(f"ready: gRPC on {FLAGS.host}:{server.port}, REST on {FLAGS.host}:{server.rest_port}", flush=True)
        ended.wait()
    print("ended", flush=True)


def _label(text: str) -> tuple[str, int]:
    label, _, number = text.partition("=")
    if not (label and number.isascii() and number.isdecimal()):
        raise ValueError(f"--label={text}: give LABEL=VERSION, e.g. --label=stable=1")
    return label, int(number)


def run() -> None:
    """The command `nvae-serve`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
