"""Asks a model server (TensorFlow Serving, or nvae-serve) for images, latents and scores.

    nvae-client status      --server=localhost:8500 --model=digits
    nvae-client sample      --server=localhost:8500 --model=digits --output=samples.png --temperature=0.7
    nvae-client encode      --server=localhost:8500 --model=digits --images=seven.png --output=seven.npz
    nvae-client decode      --server=localhost:8500 --model=digits --latents=seven.npz --output=again.png
    nvae-client reconstruct --server=localhost:8500 --model=digits --images=photos --output=photos_again/
    nvae-client score       --server=localhost:8500 --model=digits --images=photos --output=scores.json

An --output in .png is one grid of all images; DIR/ is a folder with a PNG of each. Image i of --seed is
the same in jobs of all sizes. A server that is not ready is asked again for some seconds. --labels has the classes of a
model that has classes, in turn: numbers, or with --export=models/pets/1, a copy of the export, their names. Pictures
with an alpha channel need --export too, for what the model was trained to see behind them (data.alpha).
Exit code: 0 done, 2 a mistake in the command, or a server that does not answer or refuses; then no file is written.
"""

import inspect
import json
import pathlib
from typing import Any

import numpy as np
from absl import flags

from nvae_tf import command_line, config
from nvae_tf.data.pictures import read_header, read_picture
from nvae_tf.files import atomic_write
from nvae_tf.serving.client import ServedModel
from nvae_tf.serving.outputs import ASSETS

FLAGS = flags.FLAGS
COMMANDS = ("sample", "encode", "decode", "reconstruct", "score", "status")
_TAKE_PICTURES = ("encode", "reconstruct", "score")
# The annotated arguments of `ServedModel` are flags of every command.
_PARAMETERS = inspect.signature(ServedModel).parameters
_MODEL_PARAMETERS = {name: _PARAMETERS[name] for name in _PARAMETERS if name not in ("server", "progress")}
_OUTPUTS = {"encode": (".npz",), "score": (".json",)}
_OUTPUT_HELP = {"encode": "The latents, .npz.", "score": "The scores, .json; without it only a table is printed."}


def main(command: str) -> None:
    """Asks, and writes."""
    from nvae_tf.data.picture_folder import find_pictures
    from nvae_tf.generation.image_grid import picture_names
    from nvae_tf.generation.latents_file import read_flat_latents

    place, latents, labels = None, None, None
    if "output" in FLAGS and FLAGS.output is not None:
        kinds = _OUTPUTS.get(command, (".png", command_line.FOLDER))
        place = command_line.output_place(FLAGS.output, kinds, FLAGS.overwrite)
    files = find_pictures(FLAGS.images) if command in _TAKE_PICTURES else []
    names = [name for _, name in files]
    if command == "decode":
        latents, names, labels, _ = read_flat_latents(FLAGS.latents)
        names = names or [f"decoded_{number:05d}" for number in range(len(latents))]
    elif command == "sample":
        names = [f"sample_{number:05d}" for number in range(FLAGS.count)]
    if place is not None and place.kind == command_line.FOLDER:
        picture_names(names)  # Fail early on duplicate names.
    if command != "status" and FLAGS.labels:
        labels = np.resize(np.array(class_numbers(FLAGS.labels, FLAGS.export), np.int32), len(names))
    paths = [path for path, _ in files]
    result = _asked(command, paths, latents, labels, len(names))
    print(_status_text(*result) if command == "status" else _written(command, place, result, names, labels, paths))


def class_numbers(labels: list[str], export: str | None) -> list[int]:
    """Returns the numbers of classes, which are numbers already, or names that an export has."""
    from nvae_tf.serving.server_files import explorer_facts

    names = explorer_facts(pathlib.Path(export))["classes"] if export else []
    for label in labels:
        if not label.removeprefix("-").isdecimal():
            config.check_choice("--labels", label, names or ["numbers", "names of classes with --export=DIR"])
    return [int(label) if label.removeprefix("-").isdecimal() else names.index(label) for label in labels]


def _asked(command: str, paths: list[pathlib.Path], latents, labels, count: int) -> Any:
    from nvae_tf.progress import image_bar

    server = FLAGS.server or ("localhost:8501" if FLAGS.rest else "localhost:8500")
    server = f"http://{server}" if FLAGS.rest and "://" not in server else server
    given = command_line.parameter_values(_MODEL_PARAMETERS)
    with image_bar(count) as bar, ServedModel(server, progress=lambda done: bar.update(done - bar.n), **given) as model:
        if command == "status":
            return model.model_status(), *model.metadata()
        if command == "sample":
            return model.sample(count, FLAGS.seed, FLAGS.temperature, labels, FLAGS.proposals, as_pixels=True)
        if command == "decode":
            return model.decode(latents, labels, as_pixels=True)
        channels, alpha = model.image_shape(command)[-1], "keep"
        if FLAGS.export:
            alpha = config.read_config(pathlib.Path(FLAGS.export, ASSETS, "config.json")).data.alpha
        elif channels in (1, 3):
            for path in paths:
                if read_header(path).channels in (2, 4):
                    fix = "give --export, a copy of the export, which says what lies behind it, or a picture without"
                    raise ValueError(f"{path}: has an alpha channel, which the model does not take: {fix}")
        pictures = [read_picture(path, channels, alpha=alpha) for path in paths]
        options = {"as_pixels": True} if command == "reconstruct" else {}
        return getattr(model, command)(pictures, FLAGS.seed, labels, **options)


def _status_text(versions: list[tuple[int, str, str]], version: int, signatures: dict[str, Any]) -> str:
    """Returns the versions on the server and the signatures of the model."""
    lines = [f"version {number}: {state} {error}".rstrip() for number, state, error in versions]
    lines.append(f"signatures of version {version}:")
    for name, spec in signatures.items():
        sides = (", ".join(f"{key} {value}" for key, value in side.items()) for side in spec)
        lines.append(f"  {name:{max(map(len, signatures))}}  {' -> '.join(sides)}")
    return "\n".join(lines)


def _written(command: str, place: Any, result: Any, names: list[str], labels: Any, paths: list[pathlib.Path]) -> str:
    from nvae_tf.generation.image_grid import image_grid, write_pictures, write_png
    from nvae_tf.generation.latents_file import write_flat_latents

    if command == "encode":
        write_flat_latents(place.path, result, names=names, labels=labels)
        return f"{len(result)} latents of {result.shape[1]} values in {place.path}"
    if command == "score":
        rows = list(zip(map(str, paths), *(score.tolist() for score in result), strict=True))
        if place is not None:
            keys = ("file", *result._fields)
            atomic_write(place.path, json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2) + "\n")
        rows.append(("mean", result.nats.mean(), result.bits_per_dim.mean()))
        width = max(len(row[0]) for row in rows)
        lines = [f"{name:{width}}  {nats:12.3f}  {bits:12.4f}" for name, nats, bits, *_ in rows]
        return "\n".join([f"{'':{width}}  {'nats':>12}  {'bits per dim':>12}", *lines])
    if place.kind == command_line.FOLDER:
        write_pictures(place.path, result, names)
    else:
        write_png(place.path, image_grid(result, enlarge=None))
    return f"{len(result)} images in {place.path}"


def run() -> None:
    """The command `nvae-client`: defines the flags of the command that is named first, and runs it."""
    page = f"{__doc__.strip()}\n\nThe flags of a command: nvae-client COMMAND --help"
    command = command_line.take_mode("command of nvae-client", COMMANDS, page)
    flags.DEFINE_string("server", None, "HOST:PORT; localhost:8500 if not given, with --rest localhost:8501.")
    flags.DEFINE_boolean("rest", False, "HTTP and JSON instead of gRPC.")
    command_line.define_parameters(_MODEL_PARAMETERS)
    if command == "sample":
        flags.DEFINE_integer("count", 64, "How many images.", lower_bound=1)
        flags.DEFINE_float("temperature", 1.0, "Above 0; lower values give cleaner, less varied images.")
        text = "More than 1: from the reweighted prior, for models that have one."
        flags.DEFINE_integer("proposals", None, text, lower_bound=1)
    if command in _TAKE_PICTURES:
        text = "A picture file or a folder of them, in the model's size; may be given several times."
        flags.DEFINE_multi_string("images", None, text, required=True)
    if command == "decode":
        flags.DEFINE_string("latents", None, "Latents as `encode` writes them, .npz.", required=True)
    if command in ("sample", *_TAKE_PICTURES):
        flags.DEFINE_integer("seed", 1, "Random seed of the draws.", lower_bound=0, upper_bound=config.LARGEST_SEED)
    if command != "status":
        flags.DEFINE_list("labels", None, "Classes, in turn; -1 for none.")
        flags.DEFINE_string("export", None, "A copy of the export, models/pets/1: for class names and alpha channels.")
        text = _OUTPUT_HELP.get(command, "A grid of all images, .png, or a folder, DIR/.")
        flags.DEFINE_string("output", None, text, required=command != "score")
        flags.DEFINE_boolean("overwrite", False, "Replace what is at --output already.")
    command_line.run(lambda: main(command))


if __name__ == "__main__":
    run()
