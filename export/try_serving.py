"""Serves an export for a moment and asks it for samples by gRPC and by REST: does serving work on this machine?

    nvae-try-serving --path=runs/demo/saved_model --output=runs/demo

PATH is a folder of numbered versions. It does in one process what `nvae-serve` and `nvae-client` do in two.
The images are OUTPUT/served_grpc.png and OUTPUT/served_rest.png; they are the same.

Exit code: 0 done, 2 a mistake in the command, or serving does not work.
"""

import pathlib

import numpy as np
from absl import flags

from nvae_tf import command_line
from nvae_tf.errors import require, start_tensorflow_quietly
from nvae_tf.serving.outputs import check_is_versions

PATH = flags.DEFINE_string("path", None, "A folder of exported versions.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the two images.", required=True)
COUNT = flags.DEFINE_integer("count", 64, "How many samples.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 1, "Which series of samples.", lower_bound=0)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Above 0; lower is tamer.")


def main() -> None:
    """Serves and asks."""
    path, output = pathlib.Path(PATH.value), pathlib.Path(OUTPUT.value)
    check_is_versions(path)
    require("tensorflow_serving", "serving")
    start_tensorflow_quietly()
    from nvae_tf.generation.image_grid import image_grid, write_png
    from nvae_tf.serving.client import ServedModel
    from nvae_tf.serving.local_server import local_server

    with local_server("model", path) as (port, rest_port):
        print(f"ready: gRPC on localhost:{port}, REST on localhost:{rest_port}", flush=True)
        for protocol, server in (("grpc", f"localhost:{port}"), ("rest", f"http://localhost:{rest_port}")):
            with ServedModel(server, "model") as model:
                images = model.sample(COUNT.value, SEED.value, TEMPERATURE.value, as_pixels=True)
            file = output / f"served_{protocol}.png"
            write_png(file, image_grid(images / np.float32(255.0), enlarge=None))
            print(f"{len(images)} images in {file}")


def run() -> None:
    """The command `nvae-try-serving`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
