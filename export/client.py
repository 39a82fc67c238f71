"""Asks a model server (TensorFlow Serving, or nvae-serve) for images, latents and scores.

    nvae-client status      --server=localhost:8500 --model=digits
    nvae-client sample      --server=localhost:8500 --model=digits --output=samples.png --temperature=0.7
    nvae-client encode      --server=localhost:8500 --model=digits --images=seven.png --output=seven.npz
    nvae-client decode      --server=localhost:8500 --model=digits --latents=seven.npz --output=again.png
    nvae-client reconstruct --server=localhost:8500 --model=digits --images=photos --output=photos_again/
    nvae-client score       --server=localhost:8500 --model=digits --images=photos --output=scores.json

An --output in .png is one grid of all images; DIR/ is a new folder with a PNG of each. Image i of --seed is
the same in jobs of all sizes. A server that is not ready is asked again for some seconds.
Exit code: 0 done, 2 a mistake in the command, or a server that does not answer or refuses; then no file is written.
"""

import math
import sys

from absl import flags
from tqdm import tqdm

from nvae_tf import command_line
from nvae_tf.config import LARGEST_SEED, check_choice
from nvae_tf.errors import exit_on_user_error, start_tensorflow_quietly

FLAGS = flags.FLAGS
COMMANDS = ("sample", "encode", "decode", "reconstruct", "score", "status")
_OF_PICTURES = ("encode", "reconstruct", "score")
_OUTPUTS = {"encode": (".npz",), "score": (".json",)}
_OUTPUT_HELP = {"encode": "The latents, .npz.", "score": "The scores, .json; without it only a table is printed."}


def main(command: str) -> None:
    """Asks, and writes."""
    from nvae_tf.serving import served_model

    for name in {"temperature", "timeout", "total_timeout"} & set(FLAGS):
        if not 0.0 < FLAGS[name].value < math.inf:
            raise ValueError(f"--{name}={FLAGS[name].value}: must be above 0")
    output = FLAGS.output if "output" in FLAGS else None
    if output is not None:
        served_model.check_output(output, _OUTPUTS.get(command, (".png", served_model.FOLDER)))
    files = served_model.picture_files(FLAGS.images) if command in _OF_PICTURES else []
    latents = served_model.read_latents(FLAGS.latents) if command == "decode" else []
    with _client() as client:
        if command == "status":
            print(served_model.status_text(client))
            return
        count = FLAGS.count if command == "sample" else len(files) or len(latents)
        with tqdm(total=count, unit="image", leave=False, disable=None) as bar:
            model = served_model.ServedModel(
                client, FLAGS.batch_rows, FLAGS.in_flight, lambda done: bar.update(done - bar.n)
            )
            pictures = served_model.read_pictures(files, *model.image_shape(command)) if files else []
            if command == "sample":
                found = model.sample(count, FLAGS.seed, FLAGS.temperature, as_pixels=True)
            elif command == "decode":
                found = model.decode(latents, as_pixels=True)
            elif command == "reconstruct":
                found = model.reconstruct(pictures, FLAGS.seed, as_pixels=True)
            else:
                found = getattr(model, command)(pictures, FLAGS.seed)
    if command == "encode":
        served_model.write_latents(output, found)
        print(f"{len(found)} latents of {found.shape[1]} values in {output}")
    elif command == "score":
        if output is not None:
            served_model.write_scores(output, found, files)
        print(served_model.scores_table(found, files))
    else:
        word = "decoded" if command == "decode" else command
        names = served_model.numbered_names(files) or [f"{word}_{number:05d}" for number in range(count)]
        served_model.write_images(output, found, names)
        print(f"{count} images in {output}")


def _client():
    from nvae_tf.serving.client import Patience, RestClient

    client = RestClient
    if not FLAGS.rest:
        start_tensorflow_quietly()
        from nvae_tf.serving.grpc_client import ServingClient as client
    server = FLAGS.server or ("localhost:8501" if FLAGS.rest else "localhost:8500")
    patience = Patience(FLAGS.timeout, FLAGS.total_timeout)
    return client(server, FLAGS.model, version=FLAGS.version, label=FLAGS.label, patience=patience)


def _define_flags(command: str) -> None:
    """The flags of one command; those of the others are unknown then."""
    flags.DEFINE_string("server", None, "HOST:PORT; localhost:8500 if not given, with --rest localhost:8501.")
    flags.DEFINE_boolean("rest", False, "HTTP and JSON instead of gRPC.")
    flags.DEFINE_string("model", None, "The model's name on the server.", required=True)
    flags.DEFINE_integer("version", None, "A version; the newest that is served if not given.", lower_bound=0)
    flags.DEFINE_string("label", None, "The version with a label, e.g. stable.")
    flags.DEFINE_float("timeout", 60.0, "Seconds for a request.")
    flags.DEFINE_float("total_timeout", 3600.0, "Seconds for everything.")
    flags.DEFINE_integer("batch_rows", 32, "Most rows of a request.", lower_bound=1)
    flags.DEFINE_integer("in_flight", 2, "Requests at once.", lower_bound=1)
    if command == "sample":
        flags.DEFINE_integer("count", 64, "How many images.", lower_bound=1)
        flags.DEFINE_float("temperature", 1.0, "Above 0; lower is tamer.")
    if command in _OF_PICTURES:
        text = "A picture file or a folder of them, in the model's size; may be given several times."
        flags.DEFINE_multi_string("images", None, text, required=True)
    if command == "decode":
        flags.DEFINE_string("latents", None, "Latents as `encode` writes them, .npz.", required=True)
    if command in ("sample", *_OF_PICTURES):
        flags.DEFINE_integer("seed", 1, "Which series of draws.", lower_bound=0, upper_bound=LARGEST_SEED)
    if command != "status":
        text = _OUTPUT_HELP.get(command, "A grid of all images, .png, or a new folder, DIR/.")
        flags.DEFINE_string("output", None, text, required=command != "score")


def run() -> None:
    """The command `nvae-client`: defines the flags of the command that is named first, and runs it."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first in command_line.HELP:
        command_line.print_page(f"{__doc__.strip()}\n\nThe flags of a command: nvae-client COMMAND --help")
    with exit_on_user_error():
        check_choice("the command of nvae-client", first, COMMANDS, "not one of the commands")
    _define_flags(sys.argv.pop(1))
    command_line.run(lambda: main(first), flags)


if __name__ == "__main__":
    run()
