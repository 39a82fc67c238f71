"""Samples of a trained model, reconstructions, paths between images, variants, restored images, latents.

    nvae-generate MODE --workdir=runs/digits --output=...
    nvae-generate MODE --help
    nvae-generate --workdir=runs/digits --output=samples.png

Without a mode it draws samples. A figure has labels and a last line that says how it was made, and is a PNG, SVG or PDF
file. With --raw it is a bare grid of images; --each=FOLDER writes a PNG file of every image besides. A .npy file has
the images alone, with all channels, in the data's own type; of denoise also a .tif file.
"""

import inspect
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from nvae_tf import command_line, config, errors, files, progress
from nvae_tf.data.picture_folder import find_pictures
from nvae_tf.data.pictures import stored_values
from nvae_tf.data.tiff_files import write_stack
from nvae_tf.generation import image_grid
from nvae_tf.generation.latents_file import read_flat_latents, save_features, save_latents
from nvae_tf.reports import generate as tasks

FLAGS = flags.FLAGS
_EXIT_CODES = "Exit code: 0 done, 2 a mistake in the command."
_COMMAND = shlex.join(["nvae-generate", *sys.argv[1:]])
# What --output can be, where it is not a figure or a folder.
_IMAGES = (*image_grid.FIGURES, ".npy", command_line.FOLDER)
_KINDS = {"interpolate": (*_IMAGES, ".gif", ".webp"), "encode": (".npz",), "nearest": image_grid.FIGURES}
_KINDS |= {"features": (".npz", ".parquet"), "denoise": (*_IMAGES, ".tif")}
_WITHOUT_IMAGES = "encode", "features"
# The module and the extra of this package that a kind of output needs.
_EXTRAS = {".parquet": ("pyarrow", "parquet"), ".tif": ("tifffile", "scientific")}
_EXTRAS |= dict.fromkeys(image_grid.FIGURES, ("matplotlib", "reports"))
_EACH_HELP = "Folder for a PNG file of every image that was made, in the model's size, besides --output."


def _check_output(mode: str, values: Mapping[str, Any]) -> command_line.OutputPlace:
    place = command_line.output_place(FLAGS.output, _KINDS.get(mode, _IMAGES), FLAGS.overwrite)
    if place.kind in _EXTRAS:
        errors.require(*_EXTRAS[place.kind])
    if mode in _WITHOUT_IMAGES:
        return place
    if FLAGS.raw and place.kind != ".png":
        raise ValueError(f"--raw --output={FLAGS.output}: a bare grid is a .png file")
    if FLAGS.each:
        command_line.output_place(os.path.join(FLAGS.each, ""), (command_line.FOLDER,), FLAGS.overwrite, "each")
    if mode == "denoise" and place.kind in (".npy", ".tif"):
        # Without samples too: a file that is there already would not belong to the images.
        command_line.output_place(str(_deviation_file(place.path)), (place.kind,), FLAGS.overwrite)
    if mode == "nearest" and FLAGS.json:
        command_line.output_place(FLAGS.json, (".json",), FLAGS.overwrite, "json")
    # Files have the originals' names, but for a path's, and must not replace each other.
    if (place.kind == command_line.FOLDER or FLAGS.each) and mode != "interpolate":
        names = values.get("indices")
        if mode == "decode":
            names = read_flat_latents(values["input"]).names
        elif values.get("input"):
            names = [name for _, name in find_pictures(values["input"])]
        image_grid.picture_names(list(map(str, names or [])))
    return place


def _write(mode: str, run: Any, place: command_line.OutputPlace, made: tasks.Made, origin: Mapping[str, Any]) -> None:
    """Writes a PNG file for each of the images, an animation of them, the figure, or its bare grid; or the latents."""
    if made.columns is not None:
        return save_features(place.path, made.latents, made.columns, made.names, made.labels)
    if made.latents is not None:
        return save_latents(place.path, made.latents, made.names, made.labels)
    image_grid.check_finite(made.images)
    channels = run.config.data.display_channels
    shown = image_grid.displayed(made.images, channels)
    is_deep = run.config.data.dtype == "uint16" and shown.shape[-1] == 1
    for folder in filter(None, (FLAGS.each, place.path if place.kind == command_line.FOLDER else None)):
        pixels = stored_values(shown, run.config.data) if is_deep else shown
        image_grid.write_pictures(pathlib.Path(folder), pixels, made.names)
    if place.kind in (".npy", ".tif"):
        arrays, deviation_file = {place.path: stored_values(made.images, run.config.data)}, _deviation_file(place.path)
        if mode == "denoise":
            deviation_file.unlink(missing_ok=True)
        if made.deviation is not None:
            low, high = run.config.data.range
            arrays[deviation_file] = made.deviation * np.float32(high - low)
        for path, array in arrays.items():
            with files.atomic_file(path) as partial, partial.open("wb") as stream:
                (np.save if place.kind == ".npy" else write_stack)(stream, array)
    if place.kind in image_grid.ANIMATION_FORMATS:
        image_grid.write_animation(place.path, shown, FLAGS.milliseconds, FLAGS.loop)
    if place.kind in image_grid.FIGURES:
        from nvae_tf.reports.figures import Provenance, save_figure
        from nvae_tf.runs.checkpoints import checkpoint_sha256

        model, sha256 = pathlib.Path(FLAGS.workdir).absolute().name, checkpoint_sha256(run.checkpoint)
        origin = {"checkpoint_sha256": sha256, "command": _COMMAND, "channels": channels, **origin}
        save_figure(made.draw(Provenance(model, run.step, **origin)), place.path, FLAGS.raw)
    if made.metrics is not None and FLAGS.json:
        files.atomic_write(pathlib.Path(FLAGS.json), json.dumps(made.metrics, indent=2) + "\n")


def _deviation_file(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.stem}_deviation{path.suffix}")


def _main(mode: str) -> None:
    """Checks where to write before TensorFlow is started, does what the mode does, writes and reports it in a line."""
    task = tasks.TASKS[mode]
    values = command_line.parameter_values(tasks.task_parameters(task))
    arguments, place = tasks.task_arguments(task, values), _check_output(mode, values)
    workdir = command_line.run_folder(FLAGS.workdir)
    errors.start_tensorflow_quietly()
    from nvae_tf.runs.loading import TrainedRun

    run = TrainedRun(workdir, FLAGS.checkpoint)
    made = task(run, **arguments)
    _write(mode, run, place, made, tasks.provenance(task, values))
    progress.StatusLine().print(f"{made.text}, from step {run.step:,}, in {place.path}")


def run() -> None:
    """The command `nvae-generate`: defines the flags of the mode that is named first, and runs it."""
    lines = [f"  {mode:<12} {task.__doc__.splitlines()[0]}" for mode, task in tasks.TASKS.items()]
    page = "\n".join([__doc__.strip(), "", "Modes, each with a manual page of its own:", *lines, "", _EXIT_CODES])
    mode = command_line.take_mode("mode of nvae-generate", tasks.TASKS, page, default="sample")
    # A mode's own flags are the parameters of its function in `nvae_tf/reports/generate.py`.
    flags.DEFINE_string("workdir", None, command_line.RUN_HELP, required=True)
    flags.DEFINE_enum("checkpoint", config.CHECKPOINTS[0], config.CHECKPOINTS, config.CHECKPOINT_HELP)
    kinds = " or ".join(_KINDS.get(mode, _IMAGES))
    output = f"File to write, {kinds.replace(command_line.FOLDER, 'a folder (DIR/) for a PNG file of every image')}."
    flags.DEFINE_string("output", None, output, required=True)
    flags.DEFINE_boolean("overwrite", False, "Replace what is at --output already.")
    command_line.define_parameters(tasks.task_parameters(tasks.TASKS[mode]))
    if mode not in _WITHOUT_IMAGES:
        flags.DEFINE_boolean("raw", False, "Write a bare grid of images, without labels; PNG alone.")
        flags.DEFINE_string("each", None, _EACH_HELP)
    if mode == "interpolate":
        flags.DEFINE_integer("milliseconds", 80, "How long a GIF or WebP shows each image.", lower_bound=20)
        flags.DEFINE_boolean("loop", True, "Whether a GIF or WebP repeats forever.")
    if mode == "nearest":
        flags.DEFINE_string("json", None, "File to write numbers and distances to, .json.")
    command_line.run(lambda: _main(mode), page=f"{inspect.getdoc(tasks.TASKS[mode])}\n\n{_EXIT_CODES}")


if __name__ == "__main__":
    run()
