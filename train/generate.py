"""Samples of a trained model, reconstructions, paths between images, variants, restored images, latents.

    nvae-generate MODE --workdir=runs/digits --output=...
    nvae-generate MODE --help
    nvae-generate --workdir=runs/digits --output=samples.png

Without a mode it draws samples. A figure has labels and a last line that says how it was made, and is a PNG, SVG or PDF
file. With --raw it is a bare grid of images; --each=FOLDER writes a PNG file of every image besides.
"""

import dataclasses
import functools
import inspect
import json
import math
import os
import pathlib
import shlex
import sys
from typing import Any

from absl import flags

from nvae_tf import command_line
from nvae_tf.command_line import FOLDER, OutputPlace, output_place, parse_temperature
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS, LARGEST_SEED, PRIORS, ExperimentConfig, check, check_choice
from nvae_tf.data.picture_folder import find_pictures
from nvae_tf.errors import exit_on_user_error, require, start_tensorflow_quietly
from nvae_tf.files import atomic_write
from nvae_tf.generation import image_grid
from nvae_tf.generation.image_grid import FIGURES
from nvae_tf.generation.latents_file import read_flat_latents, save_latents
from nvae_tf.generation.tasks import TASKS, Made, Originals
from nvae_tf.progress import StatusLine

FLAGS = flags.FLAGS
_EXIT_CODES = "Exit code: 0 done, 2 a mistake in the command."
_COMMAND = shlex.join(["nvae-generate", *sys.argv[1:]])
# What --output can be, where it is not a figure or a folder.
_KINDS = {"interpolate": (*FIGURES, ".gif", ".webp", FOLDER), "encode": (".npz",), "nearest": FIGURES}
# Fields of `Originals` that a mode has no flag for.
_WITHOUT = {"interpolate": {"count"}, "direction": {"labels"}}

_from_0, _from_1, _from_20 = (functools.partial(flags.DEFINE_integer, lower_bound=least) for least in (0, 1, 20))
_from_0_0 = functools.partial(flags.DEFINE_float, lower_bound=0.0)
_seed = functools.partial(flags.DEFINE_integer, lower_bound=0, upper_bound=LARGEST_SEED)
_switch, _text, _words = flags.DEFINE_boolean, flags.DEFINE_string, flags.DEFINE_list
_files = flags.DEFINE_multi_string


def _choice(*values: str) -> functools.partial:
    return functools.partial(flags.DEFINE_enum, enum_values=values)


_PICTURES = "Picture files: a file, a folder with all in it, or several with commas"
_GUIDANCE = "Classifier-free guidance: 1 as trained, above 1 more typical of the class, 0 without the class."
_COUNT = "Number of images of the data set; if not given, 40 for reconstruct, all for encode, 8 for the others."
_CLASSES = "Classes of a conditional model: 3, or 0,1,2 in turn; -1 is none. Images of the data set have theirs."
_KEPT = "How many groups, from the top, keep their latents; the others are drawn, so 0 gives samples."
# How the flag of a parameter is defined, and what it means; MODE.NAME where one mode's differs.
_FLAGS = {
    "seed": (_seed, "Of the latents, and of the binarization of images."),
    "input": (_files, f"{_PICTURES}; without it, images of the data set"),
    "resize": (_choice("crop", "stretch"), "How picture files get the model's size; if not given, as in training."),
    "convert": (_switch, "Convert picture files that have other channels; if not given, as in training."),
    "indices": (_words, "Numbers of images of the data set, counted from 0: 3,17."),
    "split": (_choice("test", "train"), "Part of the data set."),
    "data_path": (_text, command_line.DATA_PATH_HELP),
    "count": (_from_1, _COUNT),
    "sample.count": (_from_1, "Number of samples."),
    "nearest.count": (_from_1, "Number of samples."),
    "labels": (_words, _CLASSES),
    "columns": (_from_1, "Images a row at most; nearly a square if not given."),
    "reconstruct.columns": (_from_1, "Images a row at most."),
    "mean": (_switch, "Take the posterior's means as latents, not draws."),
    "kept_groups": (_from_0, f"{_KEPT} All if not given."),
    "vary.kept_groups": (_from_0, _KEPT),
    "temperature": (_text, command_line.TEMPERATURE_HELP),
    "guidance": (flags.DEFINE_float, _GUIDANCE),
    "batch_norm_iterations": (_from_0, command_line.BATCH_NORM_HELP),
    "prior": (_choice(*PRIORS), command_line.PRIOR_HELP),
    "interpolate.steps": (_from_1, "Steps from one image to the next."),
    "how": (_words, "spherical, linear or keep; one, or one a scale or a group."),
    "variants": (_from_1, "Number of variants of each image."),
    "positive": (_files, f"{_PICTURES}, which have what the direction adds"),
    "negative": (_files, f"{_PICTURES}, which lack what the direction adds"),
    "strengths": (_words, "Multiples of the direction to add; 1 is the whole difference."),
    "mask": (_text, "A picture that is white where pixels are missing."),
    "scale": (_from_1, "How many times smaller they are: 2 for half the height and width."),
    "blur": (_from_0_0, "Standard deviation, in pixels, of the Gaussian that blurred them."),
    "noise": (_from_0_0, "Standard deviation of their noise; pixels are in [0, 1]."),
    "restore.steps": (_from_0, "Steps of gradient descent; 0 is quick and less exact."),
    "starts": (_from_0, "Draws of the latents to begin at, for the deviation; 0 leaves it out."),
    "decode.input": (_text, "File of latents, .npz."),
    "neighbors": (_from_1, "Number of nearest images of each sample."),
}


def _parameters(mode: str) -> dict[str, Any]:
    """The names and the defaults of what a mode can be given as flags; `inspect.Parameter.empty` for none."""
    found = {name: parameter.default for name, parameter in inspect.signature(TASKS[mode]).parameters.items()}
    del found["run"]
    if found.pop("originals", None) is None:
        return found
    fields = {field.name: field.default for field in dataclasses.fields(Originals)}
    return {name: value for name, value in fields.items() if name not in _WITHOUT.get(mode, ())} | found


def _define_flags(mode: str) -> None:
    """The flags of one mode; those of the others are unknown then."""
    flags.DEFINE_string("workdir", None, command_line.RUN_HELP, required=True)
    flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
    kinds = _KINDS.get(mode, (*FIGURES, FOLDER))
    folder = ", or a folder (DIR/) for a PNG file of every image in the model's size" if FOLDER in kinds else ""
    output = f"File to write, {' or '.join(kind for kind in kinds if kind != FOLDER)}{folder}."
    flags.DEFINE_string("output", None, output, required=True)
    flags.DEFINE_boolean("overwrite", False, "Replace what is at --output already.")
    for name, default in _parameters(mode).items():
        define, meaning = _FLAGS.get(f"{mode}.{name}") or _FLAGS[name]
        is_required = default is inspect.Parameter.empty
        if is_required or default is None:
            default = None
        elif define in (_text, _words):
            default = list(map(str, default)) if isinstance(default, tuple) else str(default)
        define(name, default, help=meaning, required=is_required)
    if mode != "encode":
        _switch("raw", False, "Write a bare grid of images, without labels; PNG alone.")
        _text(
            "each", None, "Folder for a PNG file of every image that was made, in the model's size, besides --output."
        )
    if mode == "interpolate":
        _from_20("milliseconds", 80, "How long a GIF or WebP shows each image.")
        _switch("loop", True, "Whether a GIF or WebP repeats forever.")
    if mode == "nearest":
        _text("json", None, "File to write numbers and distances to, .json.")


def _value(name: str) -> Any:
    """What a task gets for a flag: numbers of words, places of a list."""
    value = FLAGS[name].value
    if name == "temperature":
        return parse_temperature(value)
    if name in ("input", "positive", "negative") and isinstance(value, list):
        # A value with commas is a list, unless a file is called so.
        return [place for part in value for place in ([part] if os.path.exists(part) else part.split(","))]
    if name == "how":
        check(bool(value), "--how=: give spherical, linear or keep")
        return value if len(value) > 1 else value[0]
    if name == "indices" and value:
        wrong = [word for word in value if not word.strip().isdecimal()]
        check(not wrong, f"--indices={','.join(value)}: {', '.join(wrong[:1])!r} is not a whole number from 0")
        return list(map(int, value))
    if name == "strengths":
        rule = "give numbers, such as -1,0,1,2; 1 is the whole difference"
        try:
            strengths = list(map(float, value))
        except ValueError:
            strengths = []
        check(bool(strengths) and all(map(math.isfinite, strengths)), f"--strengths={','.join(value)}: {rule}")
        return strengths
    return (value or None) if name == "labels" else value


def _settings(mode: str) -> dict[str, Any]:
    """What a task gets besides the run."""
    settings = {name: _value(name) for name in _parameters(mode)}
    if "originals" in inspect.signature(TASKS[mode]).parameters:
        chosen = {field.name for field in dataclasses.fields(Originals)} & {*settings}
        settings["originals"] = Originals(**{name: settings.pop(name) for name in chosen})
    return settings


def _check_flags(mode: str, originals: Originals | None) -> OutputPlace:
    """Checks flags that depend on each other; returns where to write."""
    place = output_place(FLAGS.output, _KINDS.get(mode, (*FIGURES, FOLDER)), FLAGS.overwrite)
    each = getattr(FLAGS, "each", None)
    if mode != "encode":
        check(not FLAGS.raw or place.kind == ".png", f"--raw --output={FLAGS.output}: a bare grid is a .png file")
        if each is not None:
            output_place(os.path.join(each, ""), (FOLDER,), FLAGS.overwrite, "each")
        if place.kind in FIGURES:
            require("matplotlib", "reports")
    if originals is not None:
        has_pictures = bool(originals.input) or mode == "direction"
        uses = {"resize": has_pictures or (mode == "restore" and FLAGS.mask), "convert": has_pictures}
        for name, has_use in uses.items():
            text = f"--{name} is for pictures of --input; those of the data set come as trained"
            check(bool(has_use) or FLAGS[name].value is None, text)
    if mode == "restore":
        command_line.check_exists("mask", FLAGS.mask)
    if mode == "direction":
        find_pictures([*_value("positive"), *_value("negative")])
    if mode == "decode" and not pathlib.Path(FLAGS.input).is_file():
        raise FileNotFoundError(f"--input={FLAGS.input}: no such file; nvae-generate encode writes one")
    if mode == "nearest" and FLAGS.json:
        output_place(FLAGS.json, (".json",), FLAGS.overwrite, "json")
    # Files have the originals' names, but for a path's.
    if (place.kind == FOLDER or each) and mode != "interpolate":
        names = (read_flat_latents(FLAGS.input).names or []) if mode == "decode" else []
        if originals is not None:
            names, indices = [name for _, name in find_pictures(originals.input or [])], originals.indices or []
            check(len({*indices}) == len(indices), "--indices: an image is given twice, but files need different names")
        image_grid.picture_names(names)  # Fail early on duplicate names.
    return place


class _LazyRun:
    """A run whose settings are read and whose model is loaded when a task asks for them."""

    def __init__(self, workdir: pathlib.Path, checkpoint: str):
        self._workdir, self._checkpoint = workdir, checkpoint

    @functools.cached_property
    def config(self) -> ExperimentConfig:
        from nvae_tf.training.run_folder import RunFolder, read_run_config

        return read_run_config(RunFolder(self._workdir))

    @functools.cached_property
    def _loaded(self) -> Any:
        from nvae_tf.training.loading import load_run

        return load_run(self._workdir, self._checkpoint)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loaded, name)


def _write(run: Any, place: OutputPlace, made: Made) -> None:
    """Writes a PNG file for each of the images, an animation of them, the figure, or its bare grid; or the latents."""
    if made.latents is not None:
        save_latents(place.path, made.latents, made.names, made.labels)
        return
    for folder in filter(None, (FLAGS.each, place.path if place.kind == FOLDER else None)):
        image_grid.write_pictures(pathlib.Path(folder), made.images, made.names)
    if place.kind in image_grid.ANIMATION_FORMATS:
        image_grid.write_animation(place.path, made.images, FLAGS.milliseconds, FLAGS.loop)
    if place.kind in FIGURES:
        from nvae_tf.reports.figures import Provenance, save_figure
        from nvae_tf.training.checkpoints import checkpoint_sha256

        model, sha256 = pathlib.Path(FLAGS.workdir).absolute().name, checkpoint_sha256(run.checkpoint)
        of_model = dict(step=run.step, checkpoint_sha256=sha256, command=_COMMAND)
        save_figure(made.draw(Provenance(model, **of_model, **made.origin)), place.path, FLAGS.raw)
    if made.metrics is not None and FLAGS.json:
        pathlib.Path(FLAGS.json).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(pathlib.Path(FLAGS.json), json.dumps(made.metrics, indent=2) + "\n")


def _main(mode: str) -> None:
    """Checks the flags before TensorFlow is started, does what the mode does, writes and reports it in a line."""
    settings = _settings(mode)
    place = _check_flags(mode, settings.get("originals"))
    workdir = command_line.run_folder(FLAGS.workdir)
    start_tensorflow_quietly()
    run = _LazyRun(workdir, FLAGS.checkpoint)
    made = TASKS[mode](run, **settings)
    _write(run, place, made)
    StatusLine().keep(f"{made.text}, from step {run.step:,}, in {place.path}")


def overview() -> str:
    """The manual page of all modes."""
    lines = [f"  {mode:<12} {task.__doc__.splitlines()[0]}" for mode, task in TASKS.items()]
    return "\n".join([__doc__.strip(), "", "Modes, each with a manual page of its own:", *lines, "", _EXIT_CODES])


def run() -> None:
    """The command `nvae-generate`: defines the flags of the mode that is named first, and runs it."""
    global __doc__
    first = sys.argv[1] if len(sys.argv) > 1 else "-"
    if first in command_line.HELP:
        command_line.print_page(overview())
    mode = "sample"
    if not first.startswith("-"):
        with exit_on_user_error():
            check_choice("the mode of nvae-generate", first, TASKS, "not one of the modes")
        mode = sys.argv.pop(1)
    _define_flags(mode)
    # What `--help` prints.
    __doc__ = f"{inspect.getdoc(TASKS[mode])}\n\n{_EXIT_CODES}"
    command_line.run(lambda: _main(mode), flags)


if __name__ == "__main__":
    run()
