"""What a trained model makes: samples, reconstructions, ways between pictures, variants, latents.

    python -m train.generate MODE --workdir=runs/digits --output=...
    python -m train.generate MODE --help
    python -m train.generate --workdir=runs/digits --output=samples.png

Without a mode it draws samples.

Exit code: 0 done, 2 a mistake in the command.
"""

import contextlib
import inspect
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from nvae_tf import command_line
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS, LARGEST_SEED, check, check_choice
from nvae_tf.data.picture_folder import find_pictures, pictures_for_model
from nvae_tf.errors import exit_on_user_error, start_tensorflow_quietly
from nvae_tf.files import atomic_write
from nvae_tf.generation.arguments import (
    BATCH_NORM_HELP,
    FOLDER,
    TEMPERATURE_HELP,
    OutputPlace,
    output_place,
    parse_temperature,
    temperature_text,
)
from nvae_tf.generation.image_grid import (
    image_grid,
    pairs_of_rows,
    picture_names,
    rows_of_path,
    write_animation,
    write_pictures,
    write_png,
)
from nvae_tf.latent_plan import latent_plan
from nvae_tf.progress import StatusLine

FLAGS = flags.FLAGS
_HELP = ("h", "help", "helpshort", "helpfull")
# Images of the data set that are taken where no flag says how many.
_RECONSTRUCTED, _VARIED = 40, 8
# Images compared at a time by `nearest`.
_BATCH_SIZE = 256


def sample() -> None:
    """Draws samples from a trained model, as one picture.

        python -m train.generate sample --workdir=runs/digits --output=samples.png
        python -m train.generate --workdir=runs/digits --output=samples.png --count=100 --temperature=0.6 --seed=7
        python -m train.generate sample --workdir=runs/digits --output=samples/

    The picture is a PNG grid of the likelihood's mean for latents from the prior; with a folder (its name ends in a
    slash) every image is a PNG of its own, in the model's size. --temperature multiplies every prior's sigma: 1 is the
    model as trained, below 1 the images are cleaner and more alike (the paper shows 0.6 to 1). Image i depends on the
    seed and on i, not on how many there are. With --batch_norm_iterations=500 the statistics of batch norm are those of
    samples at this temperature, which takes a while and helps where low temperatures come out wrong in color or
    contrast.

    Exit code: 0 done, 2 a mistake in the command.
    """
    place, temperature = _place(".png", FOLDER), parse_temperature(FLAGS.temperature)
    start_tensorflow_quietly()
    from nvae_tf.evaluation.batch_norm_statistics import readjusted
    from nvae_tf.generation.sampling import generate_images

    _run_settings(temperature)
    trained, count = _load(), FLAGS.count
    model = trained.model
    if FLAGS.batch_norm_iterations:
        adjusted = readjusted(model, temperature, FLAGS.batch_norm_iterations, seed=FLAGS.seed)
        _say(adjusted.text)
        model = adjusted.model
    images = generate_images(model, count, temperature, FLAGS.seed, _progress(count))
    _write(place, images, [f"sample_{number:05d}" for number in range(count)], FLAGS.columns)
    _say(f"{count:,} images at {temperature_text(temperature)}, from step {trained.step:,}, in {place.path}")


def reconstruct() -> None:
    """Shows what a trained model keeps of real images: originals, and below each its reconstruction.

        python -m train.generate reconstruct --workdir=runs/digits --output=reconstructions.png
        python -m train.generate reconstruct --workdir=runs/faces --input=me.jpg --resize=crop --output=me.png
        python -m train.generate reconstruct --workdir=runs/faces --input=my_pictures --kept_groups=5 --output=out/

    The picture is a PNG of pairs of rows. The upper of a pair has the first images of the test part, or the pictures of
    --input, as the model sees them (binary data are binarized); the lower the likelihood's mean for latents from the
    posterior. With --kept_groups only the latents of so many groups, from the top, are the picture's, and the rest come
    from the prior at --temperature. With a folder (its name ends in a slash) every reconstruction is a PNG of its own,
    in the model's size and with the name of its picture.

    Exit code: 0 done, 2 a mistake in the command.
    """
    place, temperature = _place(".png", FOLDER), parse_temperature(FLAGS.temperature)
    _check_choice_of_images()
    start_tensorflow_quietly()
    from nvae_tf.generation.reconstruction import checked_kept_groups, reconstruct_images

    config, plan = _run_settings(temperature)
    kept_groups = checked_kept_groups(FLAGS.kept_groups, plan)
    originals, names, words = _images(config, _RECONSTRUCTED)
    # Fail early on duplicate names.
    names = picture_names(names) if place.kind == FOLDER else names
    trained, count = _load(), len(originals)
    made = reconstruct_images(
        trained.model, originals, kept_groups, temperature, FLAGS.seed, FLAGS.mean, _progress(count)
    )
    columns = min(FLAGS.columns, count)
    _write(place, made, names, columns, grid=lambda: pairs_of_rows(originals, made, columns))
    above = "their reconstructions" if place.kind == FOLDER else "each above its reconstruction"
    kept = "" if kept_groups == plan.num_groups else f" by the top {kept_groups} of {plan.num_groups} groups"
    _say(f"{words}, {above}{kept} from step {trained.step:,}, in {place.path}")


def interpolate() -> None:
    """Goes from picture to picture in small steps: a path between their latents, as a picture or an animation.

        python -m train.generate interpolate --workdir=runs/digits --indices=3,17 --output=path.png
        python -m train.generate interpolate --workdir=runs/faces --input=a.png,b.png --steps=30 --output=path.gif
        python -m train.generate interpolate --workdir=runs/faces --indices=1,5,9 --how=spherical,linear --output=path/

    The path goes through all pictures in turn and begins and ends at their reconstructions. --how says how the latents
    go: spherical (along an arc, which keeps their length), linear, or keep (they stay those of the first picture: what
    the other groups alone change); one word for all, or one for every scale (the smallest first) or every latent group
    (the top one first). A PNG has a row for the way from one picture to the next, both ends included; a GIF (256
    colors) or WebP (without loss) shows one image after the other; in a folder (its name ends in a slash) every image
    is a PNG.

    Exit code: 0 done, 2 a mistake in the command.
    """
    place = _place(".png", ".gif", ".webp", FOLDER)
    check(
        bool(FLAGS.input or FLAGS.indices),
        "between which pictures? Give two or more with --input=FILE_OR_FOLDER, or by their numbers in the data set, as "
        "--indices=3,17",
    )
    _check_choice_of_images()
    start_tensorflow_quietly()
    from nvae_tf.generation.interpolation import interpolate_images, ways_of_groups

    config, plan = _run_settings()
    how = FLAGS.how if len(FLAGS.how) > 1 else FLAGS.how[0]
    ways_of_groups(how, plan.latent_shapes())
    images, _, words = _images(config)
    check(len(images) > 1, f"{words}: an interpolation needs at least two")
    trained, steps = _load(), FLAGS.steps
    progress = _progress((len(images) - 1) * (steps - 1))
    path = interpolate_images(trained.model, images, steps, how, FLAGS.seed, FLAGS.mean, progress)
    if place.kind in (".gif", ".webp"):
        write_animation(place.path, path, FLAGS.milliseconds, FLAGS.loop)
    else:
        names = [f"image_{number:05d}" for number in range(len(path))]
        _write(place, path, names, steps + 1, grid=lambda: rows_of_path(path, steps))
    _say(f"{len(path):,} images through {words}, from step {trained.step:,}, in {place.path}")


def vary() -> None:
    """Draws variants of pictures that keep what the upper latent groups hold of them.

        python -m train.generate vary --workdir=runs/digits --output=variants.png
        python -m train.generate vary --workdir=runs/faces --input=me.png --kept_groups=4 --variants=12 --output=me/

    The latents of --kept_groups groups, from the top, come from a picture and are the same for all its variants; the
    others are drawn from the prior at --temperature, afresh for each. The picture is a PNG with a row for every
    picture: itself as the model sees it, then its variants. With a folder (its name ends in a slash) every variant is a
    PNG of its own, in the model's size, with the name of its picture and its number.

    Exit code: 0 done, 2 a mistake in the command.
    """
    place, temperature = _place(".png", FOLDER), parse_temperature(FLAGS.temperature)
    _check_choice_of_images()
    start_tensorflow_quietly()
    from nvae_tf.generation.reconstruction import checked_kept_groups, vary_images

    config, plan = _run_settings(temperature)
    kept_groups, count = checked_kept_groups(FLAGS.kept_groups, plan), FLAGS.variants
    originals, names, words = _images(config, _VARIED)
    # Fail early on duplicate names.
    names = picture_names(names) if place.kind == FOLDER else names
    trained, progress = _load(), _progress(len(originals) * count)
    made = vary_images(trained.model, originals, kept_groups, count, temperature, FLAGS.seed, FLAGS.mean, progress)
    stems = [str(pathlib.PurePath(name).with_suffix("")) for name in names]
    numbered = [f"{stem}_{number:03d}.png" for stem in stems for number in range(count)]
    rows = np.concatenate([originals[:, np.newaxis], made], axis=1)
    flat = made.reshape(-1, *made.shape[2:])
    _write(place, flat, numbered, count + 1, grid=lambda: rows.reshape(-1, *rows.shape[2:]))
    _say(
        f"{count:,} variants of each of {words}, with the latents of the top {kept_groups} of {plan.num_groups} groups "
        f"kept, from step {trained.step:,}, in {place.path}"
    )


def encode() -> None:
    """Turns pictures into the model's latents, for `train.generate decode` or for programs of one's own.

        python -m train.generate encode --workdir=runs/digits --output=latents.npz
        python -m train.generate encode --workdir=runs/faces --input=my_pictures --mean --output=latents.npz

    The file is NumPy's: group_00 is the top group's latent, float32 [count, height, width, latent channels], group_01
    the next, and so on; names are the pictures' names, about is JSON with the latent shapes. All images of the test
    part are taken if nothing else is said. In Python nvae_tf.generation.latents_file.load_latents reads it.

    Exit code: 0 done, 2 a mistake in the command.
    """
    place = _place(".npz")
    _check_choice_of_images()
    start_tensorflow_quietly()
    from nvae_tf.generation.latents_file import save_latents
    from nvae_tf.generation.sampling import encode_images

    images, names, words = _images(_run_settings()[0])
    trained = _load()
    latents = encode_images(trained.model, images, FLAGS.seed, FLAGS.mean, _progress(len(images)))
    save_latents(place.path, latents, names)
    _say(f"latents of {words} in {len(latents)} groups, from step {trained.step:,}, in {place.path}")


def decode() -> None:
    """Turns latents into pictures: those of `train.generate encode`, or what a program has made of them.

        python -m train.generate decode --workdir=runs/digits --input=latents.npz --output=pictures.png
        python -m train.generate decode --workdir=runs/digits --input=latents.npz --output=pictures/
        python -m train.generate decode --workdir=runs/digits --input=latents.npz --kept_groups=2 --output=pictures.png

    The picture is a PNG grid of the likelihood's means; with a folder (its name ends in a slash) every one is a PNG of
    its own, in the model's size and with its name from the file. With --kept_groups only the latents of so many groups,
    from the top, are taken, and the rest are drawn from the prior at --temperature.

    Exit code: 0 done, 2 a mistake in the command.
    """
    place, temperature = _place(".png", FOLDER), parse_temperature(FLAGS.temperature)
    if not pathlib.Path(FLAGS.input).is_file():
        raise FileNotFoundError(f"--input={FLAGS.input}: no such file; train.generate encode writes one")
    start_tensorflow_quietly()
    from nvae_tf.generation.latents_file import load_latents
    from nvae_tf.generation.reconstruction import checked_kept_groups
    from nvae_tf.generation.sampling import decode_images, generate_images

    _, plan = _run_settings(temperature)
    kept_groups = checked_kept_groups(FLAGS.kept_groups, plan)
    latents, names = load_latents(FLAGS.input, plan)
    trained, count = _load(), len(latents[0])
    drawing = temperature, FLAGS.seed, _progress(count)
    if kept_groups:
        images = decode_images(trained.model, latents[:kept_groups], *drawing)
    else:
        images = generate_images(trained.model, count, *drawing)
    _write(place, images, names or [f"picture_{number:05d}" for number in range(count)], FLAGS.columns)
    _say(f"{count:,} images of latents in {FLAGS.input}, from step {trained.step:,}, in {place.path}")


def nearest() -> None:
    """Shows samples beside the training images that are most like them: has the model memorized them?

        python -m train.generate nearest --workdir=runs/digits --output=nearest.png
        python -m train.generate nearest --workdir=runs/digits --output=nearest.png --count=16 --json=nearest.json

    The picture is a PNG with a row for every sample: the sample, then the training images that are nearest to it, the
    nearest first. The distance is the mean squared difference of a pixel value in [0, 1] between the likelihood's mean
    and the image as the model sees it; binary data are binarized once, with --seed. With --json the images' numbers and
    their distances are written too.

    Exit code: 0 done, 2 a mistake in the command.
    """
    place = _place(".png")
    json_file = FLAGS.json and output_place(FLAGS.json, (".json",), FLAGS.overwrite, "json").path
    temperature, split = parse_temperature(FLAGS.temperature), FLAGS.split
    start_tensorflow_quietly()
    from nvae_tf.data.pipeline import evaluation_batches, iterate
    from nvae_tf.data.sources import load_split
    from nvae_tf.generation.nearest import nearest_images
    from nvae_tf.generation.sampling import generate_images
    from nvae_tf.training.loading import spec_to_read

    config, _ = _run_settings(temperature)
    spec = spec_to_read(config, FLAGS.data_path)
    source = load_split(spec, split, StatusLine().report())
    if FLAGS.neighbors > source.count:
        raise ValueError(f"--neighbors={FLAGS.neighbors}: the {split} part has only {source.count} images")
    trained = _load()
    samples = generate_images(trained.model, FLAGS.count, temperature, FLAGS.seed)
    batches = iterate(evaluation_batches(source, spec, _BATCH_SIZE, FLAGS.seed), source)
    found = nearest_images(samples, batches, FLAGS.neighbors, _progress(source.count, " looked at"))
    rows = np.concatenate([samples[:, np.newaxis], found.images], axis=1)
    write_png(place.path, image_grid(rows.reshape(-1, *samples.shape[1:]), FLAGS.neighbors + 1, enlarge=None))
    if json_file:
        about = {"step": trained.step, "seed": FLAGS.seed, "temperature": temperature, "split": split}
        about |= {"numbers": found.numbers.tolist(), "distances": found.distances.tolist()}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(json_file, json.dumps(about, indent=2) + "\n")
    _say(
        f"{FLAGS.count:,} samples from step {trained.step:,}, each before the nearest of {source.count:,} images of "
        f"the {split} part, in {place.path}; mean squared difference from the nearest "
        f"{found.distances[:, 0].min():.4g} to {found.distances[:, 0].max():.4g}"
    )


def _place(*kinds: str) -> OutputPlace:
    """Where to write, once run folder and output have been checked."""
    command_line.check_run_folder(FLAGS.workdir)
    return output_place(FLAGS.output, kinds, FLAGS.overwrite)


def _check_choice_of_images() -> None:
    """Whether the flags that choose images agree, and the files of --input exist."""
    if FLAGS.indices is not None:
        wrong = [word for word in FLAGS.indices if not word.strip().isdecimal()]
        check(not wrong, f"--indices={','.join(FLAGS.indices)}: {wrong[:1]} is not a whole number from 0")
    given = [name for name in ("input", "indices", "count") if name in FLAGS and FLAGS[name].value]
    check(len(given) < 2, f"--{' and --'.join(given)}: give one of them, each says which pictures to take")
    if FLAGS.input:
        check(FLAGS.data_path is None, "--input and --data_path: give one of them")
        find_pictures(_input_places())
    else:
        for name in ("resize", "convert"):
            text = f"--{name} is for pictures of --input; those of the data set come as trained"
            check(FLAGS[name].value is None, text)


def _input_places() -> list[str]:
    """Files and folders of --input; a value with commas is a list, unless a file is called so."""
    return [place for value in FLAGS.input for place in ([value] if os.path.exists(value) else value.split(","))]


def _run_settings(temperature: float | Sequence[float] | None = None):
    """The run's settings and latent plan, before its model is loaded; checks that the temperature fits."""
    from nvae_tf.models.latents import temperatures_of_groups
    from nvae_tf.training.run_folder import RunFolder, read_run_config

    config = read_run_config(RunFolder(pathlib.Path(FLAGS.workdir)))
    plan = latent_plan(config.model)
    if temperature is not None:
        temperatures_of_groups(temperature, plan)
    return config, plan


def _load():
    from nvae_tf.training.loading import load_run

    return load_run(FLAGS.workdir, FLAGS.checkpoint)


def _images(config, at_most: int | None = None) -> tuple[np.ndarray, list[str], str]:
    """The chosen images as the model sees them, a name for each, and which they are, in words."""
    if FLAGS.input:
        places = _input_places()
        images, names = pictures_for_model(places, config.data, FLAGS.seed, FLAGS.resize, FLAGS.convert)
        words = f"picture{'' if len(images) == 1 else 's'} of {', '.join(places)}"
    else:
        from nvae_tf.generation.reconstruction import data_set_images

        indices = FLAGS.indices and [int(word) for word in FLAGS.indices]
        count = FLAGS.count if "count" in FLAGS else None
        images, names = data_set_images(config, FLAGS.split, indices, count, at_most, FLAGS.seed, FLAGS.data_path)
        words = f"image{'' if len(images) == 1 else 's'} of the {FLAGS.split} part"
    return images, names, f"{len(images):,} {words}"


def _write(
    place: OutputPlace,
    images: np.ndarray,
    names: Sequence[str],
    columns: int | None,
    grid: Callable[[], np.ndarray] | None = None,
) -> None:
    """Writes a PNG for every image, or one grid: of these images, or of what `grid` gives."""
    if place.kind == FOLDER:
        write_pictures(place.path, images, names)
    else:
        write_png(place.path, image_grid(grid() if grid else images, columns, enlarge=None))


def _progress(total: int, what: str = "") -> Callable[[int], None]:
    """A function that shows how many images are done, now and then."""
    show = StatusLine().report().progress
    return lambda done: show(f"{done:,} of {total:,} images{what}")


def _say(text: str) -> None:
    StatusLine().keep(text)


# Each mode's docstring is its manual page.
MODES = {
    "sample": (sample, "images of latents from the prior"),
    "reconstruct": (reconstruct, "what the model keeps of pictures, all of it or what the upper latent groups hold"),
    "interpolate": (interpolate, "the way from picture to picture, as a picture or an animation"),
    "vary": (vary, "variants of pictures that share the latents of the upper groups"),
    "encode": (encode, "pictures -> a file of latents"),
    "decode": (decode, "a file of latents -> pictures"),
    "nearest": (nearest, "samples beside the training images that are most like them"),
}
_WITH_IMAGES = ("reconstruct", "interpolate", "vary", "encode")
_OF_IMAGES = "Of the binarization and the latents."
_OUTPUTS = {
    "sample": "PNG file to write, or folder (DIR/) for a file an image.",
    "reconstruct": "PNG file to write, or folder (DIR/) for a file a picture.",
    "interpolate": "PNG, GIF or WebP file to write, or folder (DIR/) for a file an image.",
    "vary": "PNG file to write, or folder (DIR/) for a file a variant.",
    "encode": "File to write, .npz.",
    "decode": "PNG file to write, or folder (DIR/) for a file a picture.",
    "nearest": "PNG file to write.",
}
_SEEDS = {"sample": "Of the latents.", "decode": "Of the groups that are drawn."}
_KEPT_GROUPS = {
    "reconstruct": (None, "So many groups, from the top, keep the picture's latents; all if not given."),
    "vary": (1, "So many groups, from the top, keep the picture's latents; 0 gives plain samples."),
    "decode": (None, "So many groups, from the top, keep the file's latents; all if not given."),
}
_SQUARE = (None, "Images a row; a nearly square picture if not given.")
_COLUMNS = {"sample": _SQUARE, "reconstruct": (10, "At most so many images a row."), "decode": _SQUARE}
_COUNTS = {
    "sample": (64, "Number of images."),
    "reconstruct": (None, f"Number of images of the data set; {_RECONSTRUCTED}, or all if there are fewer."),
    "vary": (None, f"Number of images of the data set; {_VARIED}, or all if there are fewer."),
    "encode": (None, "Number of images of the data set; all if not given."),
    "nearest": (8, "Number of samples."),
}


def _define_flags(mode: str) -> None:
    """The flags of one mode; those of the others are unknown then."""
    flags.DEFINE_string("workdir", None, "Run folder of train.main.", required=True)
    flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
    flags.DEFINE_string("output", None, _OUTPUTS[mode], required=True)
    flags.DEFINE_boolean("overwrite", False, "Replace what is at --output already.")
    flags.DEFINE_integer("seed", 1, _SEEDS.get(mode, _OF_IMAGES), lower_bound=0, upper_bound=LARGEST_SEED)
    if mode in _WITH_IMAGES:
        _define_image_flags()
    if mode in _COUNTS:
        flags.DEFINE_integer("count", *_COUNTS[mode], lower_bound=1)
    if mode in _KEPT_GROUPS:
        flags.DEFINE_integer("kept_groups", *_KEPT_GROUPS[mode], lower_bound=0)
    if mode in ("sample", "reconstruct", "vary", "decode", "nearest"):
        flags.DEFINE_string("temperature", "1.0", TEMPERATURE_HELP)
    if mode in _COLUMNS:
        flags.DEFINE_integer("columns", *_COLUMNS[mode], lower_bound=1)
    if mode == "sample":
        flags.DEFINE_integer("batch_norm_iterations", 0, BATCH_NORM_HELP, lower_bound=0)
    elif mode == "interpolate":
        flags.DEFINE_integer("steps", 10, "Steps from one picture to the next.", lower_bound=1)
        flags.DEFINE_list("how", ["spherical"], "spherical, linear or keep; one, or one a scale or a group.")
        flags.DEFINE_integer("milliseconds", 80, "How long a GIF or WebP shows each image.", lower_bound=20)
        flags.DEFINE_boolean("loop", True, "Whether a GIF or WebP begins again for ever.")
    elif mode == "vary":
        flags.DEFINE_integer("variants", 8, "Number of variants of each picture.", lower_bound=1)
    elif mode == "decode":
        flags.DEFINE_string("input", None, "File of latents, .npz.", required=True)
    elif mode == "nearest":
        flags.DEFINE_integer("neighbors", 8, "Number of nearest images of each sample.", lower_bound=1)
        flags.DEFINE_enum("split", "train", ["test", "train"], "Part of the data set.")
        flags.DEFINE_string("data_path", None, command_line.DATA_PATH_HELP)
        flags.DEFINE_string("json", None, "File to write numbers and distances to, .json.")


def _define_image_flags() -> None:
    """--input for pictures from outside, and the flags that choose images of the run's data set."""
    flags.DEFINE_multi_string(
        "input",
        None,
        "Pictures from outside: a file, a folder with all that is in it, or several with commas. Without it, "
        "pictures of the run's data set are taken",
    )
    text = "How pictures of --input come to the model's size; if not given, as in training."
    flags.DEFINE_enum("resize", None, ["crop", "stretch"], text)
    text = "Convert pictures of --input that have other channels; if not given, as in training."
    flags.DEFINE_boolean("convert", None, text)
    flags.DEFINE_list("indices", None, "Numbers of pictures of the data set, counted from 0: 3,17.")
    flags.DEFINE_enum("split", "test", ["test", "train"], "Part of the data set.")
    flags.DEFINE_string("data_path", None, command_line.DATA_PATH_HELP)
    flags.DEFINE_boolean("mean", False, "Take the posterior's means as a picture's latents, not draws.")


def overview() -> str:
    """The manual page of all modes."""
    lines = [f"  {mode:<12} {text}" for mode, (_, text) in MODES.items()]
    return "\n".join([__doc__.strip(), "", "Modes, each with a manual page of its own:", *lines])


def run() -> None:
    """The command `nvae-generate`: defines the flags of the mode that is named first, and runs it."""
    global __doc__
    first = sys.argv[1] if len(sys.argv) > 1 else "-"
    if first.startswith("-") and first.lstrip("-") in _HELP:
        with contextlib.suppress(BrokenPipeError):
            print(overview(), flush=True)
        return
    mode = "sample"
    if not first.startswith("-"):
        with exit_on_user_error():
            check_choice("the mode of train.generate", first, MODES, "not one of the modes")
        mode = sys.argv.pop(1)
    _define_flags(mode)
    main, _ = MODES[mode]
    # What `--help` prints.
    __doc__ = inspect.getdoc(main)
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
