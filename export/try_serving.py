"""Serves an export for a moment and asks it for samples by gRPC and by REST: does serving work on this machine?

    nvae-try-serving --path=runs/demo/saved_model --output=runs/demo

PATH is a folder of numbered versions. It does in one process what `nvae-serve` and `nvae-client` do in two.
The images are OUTPUT/served_grpc.png and OUTPUT/served_rest.png; they are the same.

Exit code: 0 done, 2 a mistake in the command, or serving does not work.
"""

import pathlib
import threading

from absl import flags

from nvae_tf import command_line
from nvae_tf.errors import require, start_tensorflow_quietly
from nvae_tf.serving.outputs import check_is_versions

_SECONDS_TO_LOAD = 300.0
FLAGS = flags.FLAGS
flags.DEFINE_string("path", None, "A folder of exported versions.", required=True)
flags.DEFINE_string("output", None, "Folder of the two images.", required=True)
flags.DEFINE_integer("count", 64, "How many samples.", lower_bound=1)
flags.DEFINE_integer("seed", 1, "Which series of samples.", lower_bound=0)
flags.DEFINE_float("temperature", 1.0, "Above 0; lower is tamer.")


def main() -> None:
    """Serves and asks."""
    path, output = pathlib.Path(FLAGS.path), pathlib.Path(FLAGS.output)
    check_is_versions(path)
    require("tensorflow_serving", "serving")
    start_tensorflow_quietly()
    from nvae_tf.serving.client import RestClient
    from nvae_tf.serving.grpc_client import ServingClient
    from nvae_tf.serving.local_server import LocalServer
    from nvae_tf.serving.served_model import ServedModel, write_images
    from nvae_tf.serving.served_versions import ServedVersions

    with LocalServer([ServedVersions("model", path)]) as server:
        given_up = threading.Event()
        timer = threading.Timer(_SECONDS_TO_LOAD, given_up.set)
        timer.start()
        server.wait_until_ready(given_up)
        timer.cancel()
        if given_up.is_set():
            raise ValueError(f"{path}: no version could be loaded in {_SECONDS_TO_LOAD:g} s")
        print(f"ready: gRPC on localhost:{server.port}, REST on localhost:{server.rest_port}", flush=True)
        for protocol, port, client_type in (
            ("grpc", server.port, ServingClient),
            ("rest", server.rest_port, RestClient),
        ):
            with client_type(f"localhost:{port}", "model") as client:
                images = ServedModel(client).sample(FLAGS.count, FLAGS.seed, FLAGS.temperature, as_pixels=True)
            file = output / f"served_{protocol}.png"
            write_images(str(file), images, [])
            print(f"{len(images)} images in {file}")


def run() -> None:
    """The command `nvae-try-serving`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
