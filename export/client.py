"""Asks a model server (TensorFlow Serving, or nvae-serve) for images, latents and scores.

    nvae-client status      --server=localhost:8500 --model=digits
    nvae-client sample      --server=localhost:8500 --model=digits --output=samples.png --temperature=0.7
    nvae-client encode      --server=localhost:8500 --model=digits --images=seven.png --output=seven.npz
    nvae-client decode      --server=localhost:8500 --model=digits --latents=seven.npz --output=again.png
    nvae-client reconstruct --server=localhost:8500 --model=digits --images=photos --output=photos_again/
    nvae-client score       --server=localhost:8500 --model=digits --images=photos --output=scores.json

An --output in .png is one grid of all images; DIR/ is a folder with a PNG of each. Image i of --seed is
the same in jobs of all sizes. A server that is not ready is asked again for some seconds. --labels has the classes of a
model that has classes, in turn.
Exit code: 0 done, 2 a mistake in the command, or a server that does not answer or refuses; then no file is written.
"""

import json
import math
import sys

import numpy as np
from absl import flags

from nvae_tf import command_line
from nvae_tf.config import LARGEST_SEED, check, check_choice
from nvae_tf.data.pictures import read_picture
from nvae_tf.errors import exit_on_user_error
from nvae_tf.files import atomic_write

FLAGS = flags.FLAGS
COMMANDS = ("sample", "encode", "decode", "reconstruct", "score", "status")
_OF_PICTURES = ("encode", "reconstruct", "score")
_OUTPUTS = {"encode": (".npz",), "score": (".json",)}
_OUTPUT_HELP = {"encode": "The latents, .npz.", "score": "The scores, .json; without it only a table is printed."}


def main(command: str) -> None:
    """Asks, and writes."""
    from nvae_tf.data.picture_folder import find_pictures
    from nvae_tf.generation.image_grid import picture_names
    from nvae_tf.generation.latents_file import read_flat_latents, write_flat_latents
    from nvae_tf.progress import image_bar
    from nvae_tf.serving.client import ServedModel, status_text

    for name in {"temperature", "timeout", "total_timeout"} & set(FLAGS):
        check(0.0 < FLAGS[name].value < math.inf, f"--{name}={FLAGS[name].value}: must be above 0")
    place = None
    if "output" in FLAGS and FLAGS.output is not None:
        kinds, is_folder = _OUTPUTS.get(command, (".png", command_line.FOLDER)), FLAGS.output.endswith("/")
        place = command_line.output_place(FLAGS.output, kinds, FLAGS.overwrite or not is_folder)
    files = find_pictures(FLAGS.images) if command in _OF_PICTURES else []
    latents, names, classes = None, [name for _, name in files], None
    if command == "decode":
        latents, _, names, classes = read_flat_latents(FLAGS.latents)
        names = names or [f"decoded_{number:05d}" for number in range(len(latents))]
    count = FLAGS.count if command == "sample" else len(names)
    names = names or [f"sample_{number:05d}" for number in range(count)]
    if place is not None and place.kind == command_line.FOLDER:
        picture_names(names)  # Fail early on duplicate names.
    server = FLAGS.server or ("localhost:8501" if FLAGS.rest else "localhost:8500")
    server = f"http://{server}" if FLAGS.rest and "://" not in server else server
    limits = {"timeout": FLAGS.timeout, "total_timeout": FLAGS.total_timeout}
    limits |= {"batch_rows": FLAGS.batch_rows, "in_flight": FLAGS.in_flight}
    with image_bar(count) as bar:
        limits["progress"] = lambda done: bar.update(done - bar.n)
        with ServedModel(server, FLAGS.model, FLAGS.version, FLAGS.label, **limits) as model:
            if command == "status":
                print(status_text(model))
                return
            labels = np.resize(np.array(FLAGS.labels, np.int32), count) if FLAGS.labels else classes
            if command == "sample":
                found = model.sample(count, FLAGS.seed, FLAGS.temperature, labels, FLAGS.proposals, as_pixels=True)
            elif command == "decode":
                found = model.decode(latents, labels, as_pixels=True)
            else:
                of_pixels = {"as_pixels": True} if command == "reconstruct" else {}
                channels = model.image_shape(command)[-1]
                pictures = [read_picture(path, channels) for path, _ in files]
                found = getattr(model, command)(pictures, FLAGS.seed, labels, **of_pixels)
    if place is not None and place.kind != command_line.FOLDER:
        place.path.parent.mkdir(parents=True, exist_ok=True)
    if command == "encode":
        write_flat_latents(place.path, found, names=names, labels=labels)
        print(f"{len(found)} latents of {found.shape[1]} values in {place.path}")
    else:
        print(_written(command, place, found, names, [str(path) for path, _ in files]))


def _written(command: str, place: command_line.OutputPlace | None, found, names: list[str], files: list[str]) -> str:
    """Writes what was found; returns a text about it."""
    from nvae_tf.generation.image_grid import image_grid, write_pictures, write_png

    if command == "score":
        rows = list(zip(files, *(score.tolist() for score in found), strict=True))
        if place is not None:
            keys = ("file", *found._fields)
            atomic_write(place.path, json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2) + "\n")
        rows.append(("mean", found.nats.mean(), found.bits_per_dim.mean()))
        width = max(len(row[0]) for row in rows)
        lines = [f"{name:{width}}  {nats:12.3f}  {bits:12.4f}" for name, nats, bits, *_ in rows]
        return "\n".join([f"{'':{width}}  {'nats':>12}  {'bits per dim':>12}", *lines])
    images = found / np.float32(255.0)
    if place.kind == command_line.FOLDER:
        write_pictures(place.path, images, names)
    else:
        write_png(place.path, image_grid(images, enlarge=None))
    return f"{len(found)} images in {place.path}"


def _define_flags(command: str) -> None:
    """The flags of one command; those of the others are unknown then."""
    flags.DEFINE_string("server", None, "HOST:PORT; localhost:8500 if not given, with --rest localhost:8501.")
    flags.DEFINE_boolean("rest", False, "HTTP and JSON instead of gRPC.")
    flags.DEFINE_string("model", None, "The model's name on the server.", required=True)
    flags.DEFINE_integer("version", None, "A version; the newest that is served if not given.", lower_bound=0)
    flags.DEFINE_string("label", None, "The version with a label, e.g. stable.")
    flags.DEFINE_float("timeout", 60.0, "Seconds for a request.")
    flags.DEFINE_float("total_timeout", 3600.0, "Seconds for everything.")
    flags.DEFINE_integer("batch_rows", 32, "Most rows of a request; servers usually take up to 64.", lower_bound=1)
    flags.DEFINE_integer("in_flight", 2, "Requests at once.", lower_bound=1)
    if command == "sample":
        flags.DEFINE_integer("count", 64, "How many images.", lower_bound=1)
        flags.DEFINE_float("temperature", 1.0, "Above 0; lower values give cleaner, less varied images.")
        text = "More than 1: from the reweighted prior, for models that have one."
        flags.DEFINE_integer("proposals", None, text, lower_bound=1)
    if command in _OF_PICTURES:
        text = "A picture file or a folder of them, in the model's size; may be given several times."
        flags.DEFINE_multi_string("images", None, text, required=True)
    if command == "decode":
        flags.DEFINE_string("latents", None, "Latents as `encode` writes them, .npz.", required=True)
    if command in ("sample", *_OF_PICTURES):
        flags.DEFINE_integer("seed", 1, "Random seed of the draws.", lower_bound=0, upper_bound=LARGEST_SEED)
    if command != "status":
        flags.DEFINE_list("labels", None, "Classes, in turn; -1 for none.")
        text = _OUTPUT_HELP.get(command, "A grid of all images, .png, or a folder, DIR/.")
        flags.DEFINE_string("output", None, text, required=command != "score")
        flags.DEFINE_boolean("overwrite", False, "Write into a folder that has files.")


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
