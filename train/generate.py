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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from nvae_tf import command_line
from nvae_tf.command_line import FOLDER, OutputPlace, output_place, parse_temperature
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS, LARGEST_SEED, PRIORS, ExperimentConfig, check, check_choice
from nvae_tf.data.picture_folder import find_pictures, pictures_for_model
from nvae_tf.errors import exit_on_user_error, require, start_tensorflow_quietly
from nvae_tf.files import atomic_write
from nvae_tf.generation import image_grid
from nvae_tf.generation.image_grid import FIGURES
from nvae_tf.latent_plan import latent_plan
from nvae_tf.progress import ImageProgress, StatusLine

FLAGS = flags.FLAGS
_SIDES = ("negative", "positive")  # of a direction
_EXIT_CODES = "Exit code: 0 done, 2 a mistake in the command."
_COMMAND = shlex.join(["nvae-generate", *sys.argv[1:]])


def sample(config: ExperimentConfig, load: Callable, place: OutputPlace) -> str:
    """Draws samples from a trained model.

        nvae-generate sample --workdir=runs/digits --output=samples.png
        nvae-generate --workdir=runs/digits --output=samples/ --count=100 --temperature=0.6 --seed=7

    An image is the likelihood's mean for latents from the prior; image i depends on the seed and on i alone.
    --temperature multiplies every prior's sigma: 1 is the model as trained, below 1 the images are cleaner and more
    alike (the paper shows 0.6 to 1). A conditional model draws its classes in turn, or those of --labels; --guidance
    above 1 makes images more typical of their class. --batch_norm_iterations=500 takes a while, and helps where low
    temperatures come out wrong in color or contrast. --prior=reweighted draws the top groups as nvae-prior has learned.
    """
    from nvae_tf.evaluation.batch_norm_statistics import readjusted
    from nvae_tf.generation.sampling import generate_images

    temperature, count, labels = _temperature(config), FLAGS.count, _labels(config, FLAGS.count)
    model = load().model
    if FLAGS.batch_norm_iterations:
        settings = temperature, FLAGS.batch_norm_iterations
        model, text = readjusted(model, *settings, seed=FLAGS.seed, prior=FLAGS.prior)
        StatusLine().keep(text)
    drawing = temperature, FLAGS.seed, _progress(count), labels, FLAGS.guidance, FLAGS.prior
    images = generate_images(model, count, *drawing)
    names = [f"sample_{number:05d}" for number in range(count)]

    _write(load(), place, images, names, lambda figures, about: figures.samples(images, about, FLAGS.columns))
    values = temperature if isinstance(temperature, list) else [temperature]
    shown = ", ".join(f"{value:g}" for value in values)
    return f"{count:,} images at temperature{'s' if len(values) > 1 else ''} {shown}"


def reconstruct(config: ExperimentConfig, load: Callable, place: OutputPlace) -> str:
    """Shows what a trained model keeps of real images: originals, and below each its reconstruction.

        nvae-generate reconstruct --workdir=runs/digits --output=reconstructions.png
        nvae-generate reconstruct --workdir=runs/faces --input=me.jpg --resize=crop --output=me.png
        nvae-generate reconstruct --workdir=runs/faces --input=my_pictures --kept_groups=5 --output=out/

    The figure has pairs of rows: the first images of the test part, or the picture files of --input, as the model sees
    them (binary data are binarized), above the likelihood's means for latents from the posterior. With --kept_groups
    the latents of the other groups come from the prior at --temperature. Files of a folder have the originals' names.
    """
    from nvae_tf.generation.sampling import reconstruct_images

    kept, groups = _kept_groups(config)
    drawing = kept, _temperature(config), FLAGS.seed, FLAGS.mean
    originals, labels, names, words = _images(config, 40, _makes_files(place))
    made = reconstruct_images(load().model, originals, *drawing, _progress(len(originals)), labels)
    which = "" if kept == groups else f" of the top {kept} of {groups} groups; the others are drawn from the prior"

    def draw(figures, about):
        about = about if which else about._replace(temperature=None)
        return figures.reconstructions(originals, made, about, which, FLAGS.columns)

    _write(load(), place, made, names, draw)
    above = "their reconstructions" if place.kind == FOLDER else "each above its reconstruction"
    return f"{words}, {above}" + ("" if kept == groups else f" by the top {kept} of {groups} groups")


def interpolate(config: ExperimentConfig, load: Callable, place: OutputPlace) -> str:
    """Goes from image to image in small steps: a path between their latents, as a grid or an animation.

        nvae-generate interpolate --workdir=runs/digits --indices=3,17 --output=path.png
        nvae-generate interpolate --workdir=runs/faces --input=a.png,b.png --steps=30 --output=path.gif
        nvae-generate interpolate --workdir=runs/faces --indices=1,5,9 --how=spherical,linear --output=path/

    The path goes through all images in turn and begins and ends at their reconstructions. --how says how the latents
    go: spherical (along an arc, which keeps their length), linear, or keep (they stay those of the first image); one
    word for all, or one for every scale (the smallest first) or every latent group (the top one first). The figure has
    a row for the path from one image to the next, between both originals. A GIF has 256 colors, a WebP all.
    """
    from nvae_tf.generation.sampling import interpolate_images, ways_of_groups

    check(bool(FLAGS.how), "--how=: give spherical, linear or keep")
    how, steps = FLAGS.how if len(FLAGS.how) > 1 else FLAGS.how[0], FLAGS.steps
    ways_of_groups(how, latent_plan(config.model).latent_shapes())
    images, labels, _, words = _images(config)
    progress = _progress((len(images) - 1) * (steps - 1))
    path = interpolate_images(load().model, images, steps, how, FLAGS.seed, FLAGS.mean, progress, labels)
    names = [f"image_{number:05d}" for number in range(len(path))]
    _write(load(), place, path, names, lambda figures, about: figures.interpolation(images, path, steps, about))
    return f"{len(path):,} images through {words}"


def vary(config: ExperimentConfig, load: Callable, place: OutputPlace) -> str:
    """Draws variants of images that keep what the upper latent groups hold of them.

        nvae-generate vary --workdir=runs/digits --output=variants.png
        nvae-generate vary --workdir=runs/faces --input=me.png --kept_groups=4 --variants=12 --output=me/

    The latents of --kept_groups groups, from the top, are the image's in all its variants; the others are drawn from
    the prior at --temperature, afresh for each. The figure has a row for every image: itself as the model sees it,
    then its variants. Files of a folder have the originals' names and a number.
    """
    from nvae_tf.generation.sampling import vary_images

    count = FLAGS.variants
    kept, groups = _kept_groups(config)
    drawing = kept, count, _temperature(config), FLAGS.seed, FLAGS.mean
    originals, labels, names, words = _images(config, 8, _makes_files(place))
    made = vary_images(load().model, originals, *drawing, _progress(len(originals) * count), labels)
    text = f"The rest of the {groups} groups have the original's latents; group 0 is the coarsest."

    def draw(figures, about):
        return figures.variants(originals, made, f"variants: {figures.redrawn(kept, groups)}", text, about)

    _write_variants(load(), place, made, names, draw)
    return f"{count:,} variants of each of {words}, with the latents of the top {kept} of {groups} groups kept"


def direction(config: ExperimentConfig, load: Callable, place: OutputPlace) -> str:
    """Moves images along what sets one folder of pictures apart from another, such as smiling faces from others.

        nvae-generate direction --workdir=runs/digits --positive=eights/ --negative=threes/ --output=direction.png
        nvae-generate direction --workdir=runs/faces --positive=happy/ --negative=sad/ --input=me.png --output=me/

    The direction is the mean of the latents of --positive minus that of --negative, in every group (the posterior's
    means). Each strength times it is added to the latents of an image, and all groups are decoded as they are then: 0
    is the reconstruction, 1 the whole difference, below 0 the way back. Some tens of pictures each are needed, which
    differ in nothing else. The figure has a row for every image, itself first. Files of a folder have the originals'
    names and a number.
    """
    from nvae_tf.generation.sampling import latent_direction, move_images

    strengths = _strengths()
    negative, positive = (_pictures(config, FLAGS[name].value)[0] for name in _SIDES)
    originals, labels, names, words = _images(config, 8, _makes_files(place))
    step = latent_direction(load().model, positive, negative)
    moving = strengths, FLAGS.seed, FLAGS.mean, _progress(len(originals) * len(strengths))
    made = move_images(load().model, originals, step, *moving, labels)
    minus, plus = (", ".join(pathlib.Path(place).name for place in _places(FLAGS[name].value)) for name in _SIDES)
    text = f"Below each: the multiple of the difference of the mean latents, {plus} minus {minus}, that is added."
    notes = [f"{strength:g}" for strength in strengths]

    def draw(figures, about):
        return figures.variants(originals, made, "moved along the direction", text, about, notes)

    _write_variants(load(), place, made, names, draw)
    return f"{words}, moved by the difference of {len(positive)} and {len(negative)} pictures, times {', '.join(notes)}"


def restore(config: ExperimentConfig, load: Callable, place: OutputPlace) -> str:
    """Restores images with the model as the prior: fills holes, enlarges, deblurs, takes out noise.

        nvae-generate restore --workdir=runs/digits --scale=2 --output=restored.png
        nvae-generate restore --workdir=runs/faces --input=old.png --mask=scratches.png --output=restored.png
        nvae-generate restore --workdir=runs/faces --input=my_pictures --blur=1.5 --noise=0.02 --output=out/

    One of --mask (a picture, white where pixels are missing), --scale (each pixel is the mean of SCALE x SCALE pixels)
    and --blur (a Gaussian's deviation in pixels) describes how the images were degraded, and --noise, alone or besides,
    their noise. Pictures of --input are so already, and with --scale smaller than the model's; images of the
    data set are made so, and the figure shows them too. Its last column is the deviation of a pixel over restorations
    from --starts draws of the latents: bright where the answer is open. Files of a folder have the originals' names.
    """
    from nvae_tf.data.pipeline import stored_spec
    from nvae_tf.generation.sampling import operator_of, restore_images
    from nvae_tf.models.restoration import measured

    operator = operator_of(config, FLAGS.mask, FLAGS.scale, FLAGS.blur, FLAGS.resize)
    spec = stored_spec(config.data)
    spec = dataclasses.replace(spec, height=spec.height // FLAGS.scale, width=spec.width // FLAGS.scale)
    of_images = dataclasses.replace(config, data=spec) if FLAGS.input else config
    images, labels, names, words = _images(of_images, 8, _makes_files(place))
    measurement = images if FLAGS.input else measured(operator, images, FLAGS.noise, FLAGS.seed)
    how = operator, FLAGS.noise, FLAGS.steps, FLAGS.starts, FLAGS.seed, labels
    made, deviation = restore_images(load().model, measurement, *how)
    shown = np.where(operator.missing[..., np.newaxis], 0.5, measurement) if FLAGS.mask else measurement

    def draw(_, about):
        from nvae_tf.reports.task_figures import restorations

        return restorations(shown, made, None if FLAGS.input else images, deviation, about)

    _write(load(), place, made, names, draw)
    return f"{words}, restored"


def encode(config: ExperimentConfig, load: Callable, place: OutputPlace) -> str:
    """Turns images into the model's latents, for `nvae-generate decode` or for programs of one's own.

        nvae-generate encode --workdir=runs/digits --output=latents.npz
        nvae-generate encode --workdir=runs/faces --input=my_pictures --mean --output=latents.npz

    The file is NumPy's: latent is float32 [count, total], the groups one after another, the top one first, as exported
    models take it; names are the images' names, about is JSON with the latent shapes. In Python
    nvae_tf.generation.latents_file.load_latents reads it.
    """
    from nvae_tf.generation.latents_file import save_latents
    from nvae_tf.generation.sampling import encode_images

    images, labels, names, words = _images(config)
    latents = encode_images(load().model, images, FLAGS.seed, FLAGS.mean, _progress(len(images)), labels)
    save_latents(place.path, latents, names, labels)
    return f"latents of {words} in {len(latents)} groups"


def decode(config: ExperimentConfig, load: Callable, place: OutputPlace) -> str:
    """Turns latents into images: those of `nvae-generate encode`, or what a program has made of them.

        nvae-generate decode --workdir=runs/digits --input=latents.npz --output=images.png
        nvae-generate decode --workdir=runs/digits --input=latents.npz --kept_groups=2 --output=images/

    An image is the likelihood's mean. With --kept_groups the latents of the other groups are drawn from the prior at
    --temperature. Files of a folder have the names that are in the file of latents.
    """
    from nvae_tf.generation.latents_file import load_latents
    from nvae_tf.generation.sampling import generator_of

    kept, temperature = _kept_groups(config)[0], _temperature(config)
    latents, names, labels = load_latents(FLAGS.input, latent_plan(config.model))
    count = len(latents[0])
    names = names or [f"decoded_{number:05d}" for number in range(count)]
    if _makes_files(place):
        image_grid.picture_names(names)  # Fail early on duplicate names.
    labels = _labels(config, count) if FLAGS.labels else labels
    drawing = temperature, FLAGS.seed, _progress(count), latents[:kept], labels
    images = generator_of(load().model).generate(count, *drawing)

    def draw(figures, about):
        # With all latents given, nothing is drawn at random.
        about = about if kept < len(latents) else about._replace(temperature=None, seed=None)
        return figures.samples(images, about, FLAGS.columns)

    _write(load(), place, images, names, draw)
    return f"{count:,} images of latents in {FLAGS.input}"


def nearest(config: ExperimentConfig, load: Callable, place: OutputPlace) -> str:
    """Shows samples beside the training images that are most like them: has the model memorized them?

        nvae-generate nearest --workdir=runs/digits --output=nearest.png
        nvae-generate nearest --workdir=runs/digits --output=nearest.png --count=16 --json=nearest.json

    The figure has a row for every sample: the sample, then the nearest training images, the nearest first. The distance
    is the mean squared difference of a pixel value in [0, 1] between the likelihood's mean and the image as the model
    sees it; binary data are binarized once, with --seed.
    """
    from nvae_tf.data.pipeline import evaluation_batches, images_alone, iterate
    from nvae_tf.data.sources import load_split
    from nvae_tf.generation.sampling import generate_images, nearest_images
    from nvae_tf.training.loading import spec_to_read

    split, seed, temperature, neighbors = FLAGS.split, FLAGS.seed, _temperature(config), FLAGS.neighbors
    spec = spec_to_read(config, FLAGS.data_path)
    source = load_split(spec, split, StatusLine().report())
    check(neighbors <= source.count, f"--neighbors={neighbors}: the {split} part has only {source.count} images")
    samples = generate_images(load().model, FLAGS.count, temperature, seed, labels=_labels(config, FLAGS.count))
    batches = iterate(evaluation_batches(source, images_alone(spec), 256, seed), source)
    numbers, distances, images = nearest_images(samples, batches, neighbors, _progress(source.count))
    names = [f"sample_{number:05d}" for number in range(len(samples))]

    def draw(figures, about):
        return figures.nearest(samples, images, distances, "training" if split == "train" else split, about)

    _write(load(), place, samples, names, draw)
    if FLAGS.json:
        about = {"step": load().step, "seed": seed, "temperature": temperature, "split": split}
        about |= {"numbers": numbers.tolist(), "distances": distances.tolist()}
        pathlib.Path(FLAGS.json).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(pathlib.Path(FLAGS.json), json.dumps(about, indent=2) + "\n")
    return (
        f"{FLAGS.count:,} samples, each before the nearest of {source.count:,} images of the {split} part (mean "
        f"squared difference from the nearest {distances[:, 0].min():.4g} to {distances[:, 0].max():.4g})"
    )


def _main(mode: str) -> None:
    """Checks the flags before TensorFlow is started, makes what the mode makes and reports it in a line."""
    place = output_place(FLAGS.output, _KINDS.get(mode, (*FIGURES, FOLDER)), FLAGS.overwrite)
    if "each" in FLAGS:
        check(not FLAGS.raw or place.kind == ".png", f"--raw --output={FLAGS.output}: a bare grid is a .png file")
        if FLAGS.each is not None:
            output_place(os.path.join(FLAGS.each, ""), (FOLDER,), FLAGS.overwrite, "each")
        if place.kind in FIGURES:
            require("matplotlib", "reports")
    if "temperature" in FLAGS:
        parse_temperature(FLAGS.temperature)
    if "indices" in FLAGS:
        _check_choice_of_images()
    if mode == "restore":
        given = [f"--{name}" for name in ("mask", "scale", "blur") if FLAGS[name].value != FLAGS[name].default]
        check(len(given) < 2, f"{' and '.join(given)}: give one of them")
        command_line.check_exists("mask", FLAGS.mask)
        check(given or FLAGS.noise, "no degradation given: give --mask, --scale or --blur, or --noise alone")
    if mode == "direction":
        _strengths()
        for name in _SIDES:
            find_pictures(_places(FLAGS[name].value))
    if mode == "interpolate":
        which = "give two or more with --input=FILE_OR_FOLDER, or by their numbers in the data set, as --indices=3,17"
        check(bool(FLAGS.input or FLAGS.indices), f"between which images? {which}")
    if mode == "decode" and not pathlib.Path(FLAGS.input).is_file():
        raise FileNotFoundError(f"--input={FLAGS.input}: no such file; nvae-generate encode writes one")
    if mode == "nearest" and FLAGS.json:
        output_place(FLAGS.json, (".json",), FLAGS.overwrite, "json")
    workdir = command_line.run_folder(FLAGS.workdir)
    start_tensorflow_quietly()
    from nvae_tf.training.loading import load_run
    from nvae_tf.training.run_folder import RunFolder, read_run_config

    # A mode loads the run when it has checked everything else.
    load = functools.cache(lambda: load_run(workdir, FLAGS.checkpoint))
    text = MODES[mode](read_run_config(RunFolder(workdir)), load, place)
    StatusLine().keep(f"{text}, from step {load().step:,}, in {place.path}")


def _check_choice_of_images() -> None:
    """Whether the flags that choose images agree, and the files of --input exist."""
    if FLAGS.indices is not None:
        check(bool(FLAGS.indices), "--indices=: give numbers of images, such as 3,17")
        wrong = [word for word in FLAGS.indices if not word.strip().isdecimal()]
        check(not wrong, f"--indices={','.join(FLAGS.indices)}: {wrong[:1]} is not a whole number from 0")
    given = [name for name in ("input", "indices", "count") if name in FLAGS and FLAGS[name].value]
    check(len(given) < 2, f"--{' and --'.join(given)}: give one of them, each says which images to take")
    if FLAGS.input:
        check(FLAGS.data_path is None, "--input and --data_path: give one of them")
        find_pictures(_places(FLAGS.input))
    for name in ("resize", "convert"):
        text = f"--{name} is for pictures of --input; those of the data set come as trained"
        with_pictures = FLAGS.input or "positive" in FLAGS or (name == "resize" and "mask" in FLAGS and FLAGS.mask)
        check(bool(with_pictures) or FLAGS[name].value is None, text)


def _places(values: Sequence[str]) -> list[str]:
    """Files and folders of --input or the like; a value with commas is a list, unless a file is called so."""
    return [place for value in values for place in ([value] if os.path.exists(value) else value.split(","))]


def _pictures(config: ExperimentConfig, values: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Picture files as the model sees them, and their names."""
    return pictures_for_model(_places(values), config.data, FLAGS.seed, FLAGS.resize, FLAGS.convert)


def _strengths() -> list[float]:
    """--strengths."""
    try:
        strengths = [float(word) for word in FLAGS.strengths]
    except ValueError:
        strengths = []
    rule = "give numbers, such as -1,0,1,2; 1 is the whole difference"
    check(bool(strengths) and all(map(math.isfinite, strengths)), f"--strengths={','.join(FLAGS.strengths)}: {rule}")
    return strengths


def _temperature(config: ExperimentConfig) -> float | list[float]:
    """--temperature, which fits the run's scales or groups."""
    from nvae_tf.models.latents import temperatures_of_groups

    temperature = parse_temperature(FLAGS.temperature)
    temperatures_of_groups(temperature, latent_plan(config.model))
    return temperature


def _kept_groups(config: ExperimentConfig) -> tuple[int, int]:
    """--kept_groups, and how many groups there are."""
    from nvae_tf.generation.sampling import checked_kept_groups

    plan = latent_plan(config.model)
    return checked_kept_groups(FLAGS.kept_groups, plan), plan.num_groups


def _makes_files(place: OutputPlace) -> bool:
    return place.kind == FOLDER or bool(FLAGS.each)


def _images(
    config: ExperimentConfig, at_most: int | None = None, as_file_names: bool = False
) -> tuple[np.ndarray, np.ndarray | None, list[str], str]:
    """The chosen images as the model sees them, their labels, a name for each, and which they are, in words.

    Where no flag says how many, it is `at_most`, or all if there are fewer.
    """
    if FLAGS.input:
        images, names = _pictures(config, FLAGS.input)
        words = f"picture{'' if len(images) == 1 else 's'} of {', '.join(_places(FLAGS.input))}"
        labels = None
    else:
        from nvae_tf.data.pipeline import chosen_images, chosen_labels
        from nvae_tf.data.sources import load_split
        from nvae_tf.training.loading import spec_to_read

        spec, split = spec_to_read(config, FLAGS.data_path), FLAGS.split
        indices = FLAGS.indices and [int(word) for word in FLAGS.indices]
        count = FLAGS.count if "count" in FLAGS else None
        source = load_split(spec, split, StatusLine().report())
        images, names = chosen_images(source, spec, split, indices, count, at_most, FLAGS.seed)
        words = f"image{'' if len(images) == 1 else 's'} of the {FLAGS.split} part"
        labels = chosen_labels(source, len(images), indices) if spec.labels else None
    # Fail early on duplicate names.
    names = image_grid.picture_names(names) if as_file_names else names
    if "labels" in FLAGS and FLAGS.labels:
        labels = _labels(config, len(images))
    return images, labels, names, f"{len(images):,} {words}"


def _labels(config: ExperimentConfig, count: int) -> np.ndarray | None:
    """The classes of --labels, in turn, for so many images."""
    if not FLAGS.labels:
        return None
    for word in FLAGS.labels:
        known = word.strip() == "-1" or (word.strip().isdecimal() and int(word) < config.model.num_classes)
        names = f"classes 0 to {config.model.num_classes - 1}" if config.model.num_classes else "no classes"
        check(known, f"--labels={','.join(FLAGS.labels)}: {word!r} is no class of this model, which has {names}")
    return np.resize(np.array(FLAGS.labels, np.int32), count)


def _write(run: Any, place: OutputPlace, images: np.ndarray, names: Sequence[str], draw: Callable) -> None:
    """Writes a PNG file for each of the images, an animation of them, the figure, or its bare grid.

    `draw` makes the figure from the module `nvae_tf.reports.figures`, which needs matplotlib, and a `Provenance`.
    """
    for folder in filter(None, (FLAGS.each, place.path if place.kind == FOLDER else None)):
        image_grid.write_pictures(pathlib.Path(folder), images, names)
    if place.kind in image_grid.ANIMATION_FORMATS:
        image_grid.write_animation(place.path, images, FLAGS.milliseconds, FLAGS.loop)
    if place.kind not in FIGURES:
        return
    from nvae_tf.reports import figures
    from nvae_tf.training.checkpoints import checkpoint_sha256

    temperature = parse_temperature(FLAGS.temperature) if "temperature" in FLAGS else None
    model, sha256 = pathlib.Path(FLAGS.workdir).absolute().name, checkpoint_sha256(run.checkpoint)
    labels = f"classes {', '.join(FLAGS.labels)}" if "labels" in FLAGS and FLAGS.labels else None
    guidance = f"guidance {FLAGS.guidance:g}" if "guidance" in FLAGS and FLAGS.guidance != 1.0 else None
    prior = "reweighted prior" if "prior" in FLAGS and FLAGS.prior != "model" else None
    is_of_data = "split" in FLAGS and not ("input" in FLAGS and FLAGS.input)
    given = [name for name in _OF_RESTORING if name in FLAGS and FLAGS[name].present]
    # Of a mask's path the name.
    restored = [f"{name} {pathlib.Path(str(FLAGS[name].value)).name}" for name in given]
    of_images = [f"{FLAGS.split} images" if is_of_data else None, labels, guidance, prior, *restored]
    images = ", ".join(filter(None, of_images)) or None
    figure = draw(figures, figures.Provenance(model, run.step, temperature, FLAGS.seed, sha256, _COMMAND, images))
    figures.save_figure(figure, place.path, FLAGS.raw)


def _write_variants(run: Any, place: OutputPlace, made: np.ndarray, names: Sequence[str], draw: Callable) -> None:
    """As `_write`, for variants `[originals, variants, ...]`, whose files have the originals' names and a number."""
    stems = [str(pathlib.PurePath(name).with_suffix("")) for name in names]
    numbered = [f"{stem}_{number:03d}.png" for stem in stems for number in range(made.shape[1])]
    _write(run, place, made.reshape(-1, *made.shape[2:]), numbered, draw)


def _progress(total: int) -> Callable[[int], None]:
    """A function that shows how many images are done, now and then."""
    return ImageProgress(StatusLine().report().progress, total).show


# A mode gets the settings of the run, what loads the run, and the place to write. Its docstring is its manual page.
_FUNCTIONS = sample, reconstruct, interpolate, vary, direction, restore, encode, decode, nearest
MODES = {mode.__name__: mode for mode in _FUNCTIONS}
# What a figure says of how its images were degraded.
_OF_RESTORING = "mask", "scale", "blur", "noise"
# Of --output, where it is not a figure or a folder.
_KINDS = {"interpolate": (*FIGURES, ".gif", ".webp", FOLDER), "encode": (".npz",), "nearest": FIGURES}


def _define_flags(mode: str) -> None:
    """The flags of one mode; those of the others are unknown then."""
    flags.DEFINE_string("workdir", None, command_line.RUN_HELP, required=True)
    flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
    kinds = _KINDS.get(mode, (*FIGURES, FOLDER))
    folder = ", or a folder (DIR/) for a PNG file of every image in the model's size" if FOLDER in kinds else ""
    output = f"File to write, {' or '.join(kind for kind in kinds if kind != FOLDER)}{folder}."
    flags.DEFINE_string("output", None, output, required=True)
    flags.DEFINE_boolean("overwrite", False, "Replace what is at --output already.")
    of_seed = "Of the latents, and of the binarization of images."
    flags.DEFINE_integer("seed", 1, of_seed, lower_bound=0, upper_bound=LARGEST_SEED)
    # Each flag with its default in the modes that have it.
    for name, defaults, define, meaning in (*_flags_of_images(), *_flags_of_latents(), *_flags_of_one_mode()):
        if mode in defaults:
            define(name, defaults[mode], help=meaning)


_from_0, _from_1, _from_20 = (functools.partial(flags.DEFINE_integer, lower_bound=least) for least in (0, 1, 20))
_from_0_0 = functools.partial(flags.DEFINE_float, lower_bound=0.0)
_switch, _text, _words = flags.DEFINE_boolean, flags.DEFINE_string, flags.DEFINE_list
_WITH_LATENTS = ("reconstruct", "interpolate", "vary", "direction", "encode")
_DRAWING = ("sample", "reconstruct", "vary", "decode", "nearest")
_PICTURES = "Picture files: a file, a folder with all in it, or several with commas."
_Flags = list[tuple[str, dict[str, Any], Callable, str]]


def _choice(*values: str) -> Callable:
    return functools.partial(flags.DEFINE_enum, enum_values=values)


def _flags_of_images() -> _Flags:
    """Which images a mode takes, and what it writes of those that it makes."""
    of_images = dict.fromkeys((*_WITH_LATENTS, "restore"))
    of_data_set = dict.fromkeys(of_images, "test") | {"nearest": "train"}
    of_figures = (*_DRAWING, "interpolate", "direction", "restore")
    images = "images of the data set"
    resize = "How picture files are brought to the model's size; if not given, as in training."
    convert = "Convert picture files that have other channels; if not given, as in training."
    count = f"Number of {images}; if not given, reconstruct takes 40, vary, direction and restore 8, encode all."
    counted = dict.fromkeys(("reconstruct", "vary", "direction", "restore", "encode"))
    classes = "Classes of a conditional model: 3, or 0,1,2 in turn; -1 is none. Images of the data set have theirs."
    each = "Folder for a PNG file of every image that was made, in the model's size, besides --output."
    return [
        ("input", of_images, flags.DEFINE_multi_string, f"{_PICTURES} Without it, {images}"),
        ("resize", of_images, _choice("crop", "stretch"), resize),
        ("convert", of_images, _switch, convert),
        ("indices", of_images, _words, "Numbers of images of the data set, counted from 0: 3,17."),
        ("split", of_data_set, _choice("test", "train"), "Part of the data set."),
        ("data_path", dict.fromkeys(of_data_set), _text, command_line.DATA_PATH_HELP),
        ("count", counted, _from_1, count),
        ("count", {"sample": 64, "nearest": 8}, _from_1, "Number of samples."),
        ("labels", dict.fromkeys(m for m in MODES if m != "direction"), _words, classes),
        ("raw", dict.fromkeys(of_figures, False), _switch, "Write a bare grid of images, without labels; PNG alone."),
        ("each", dict.fromkeys(of_figures), _text, each),
        ("columns", {"sample": None, "decode": None}, _from_1, "Images a row at most; nearly a square if not given."),
        ("columns", {"reconstruct": 10}, _from_1, "At most so many images a row."),
    ]


def _flags_of_latents() -> _Flags:
    """Where latents come from."""
    kept = "So many groups, from the top, keep their latents, and the others are drawn; 0 gives samples."
    guidance = "Classifier-free guidance: 1 as trained, above 1 more typical of the class, 0 without the class."
    mean = "Take the posterior's means as latents, not draws."
    return [
        ("mean", dict.fromkeys(_WITH_LATENTS, False), _switch, mean),
        ("kept_groups", {"vary": 1}, _from_0, kept),
        ("kept_groups", {"reconstruct": None, "decode": None}, _from_0, f"{kept} All if not given."),
        ("temperature", dict.fromkeys(_DRAWING, "1.0"), _text, command_line.TEMPERATURE_HELP),
        ("guidance", {"sample": 1.0}, flags.DEFINE_float, guidance),
        ("batch_norm_iterations", {"sample": 0}, _from_0, command_line.BATCH_NORM_HELP),
        ("prior", {"sample": "model"}, _choice(*PRIORS), command_line.PRIOR_HELP),
    ]


def _flags_of_one_mode() -> _Flags:
    """What one mode alone has."""
    folders = functools.partial(flags.DEFINE_multi_string, required=True)
    positive, negative = (f"{_PICTURES} Those that {verb} what the direction adds" for verb in ("have", "lack"))
    return [
        ("positive", {"direction": None}, folders, positive),
        ("negative", {"direction": None}, folders, negative),
        ("strengths", {"direction": ["-2", "-1", "0", "1", "2"]}, _words, "Multiples of the direction to add."),
        ("input", {"decode": None}, functools.partial(_text, required=True), "File of latents, .npz."),
        ("steps", {"interpolate": 10}, _from_1, "Steps from one image to the next."),
        ("how", {"interpolate": ["spherical"]}, _words, "spherical, linear or keep; one, or one a scale or a group."),
        ("milliseconds", {"interpolate": 80}, _from_20, "How long a GIF or WebP shows each image."),
        ("loop", {"interpolate": True}, _switch, "Whether a GIF or WebP repeats forever."),
        ("mask", {"restore": None}, _text, "A picture that is white where pixels are missing."),
        ("scale", {"restore": 1}, _from_1, "How many times smaller they are: 2 for half the height and width."),
        ("blur", {"restore": 0.0}, _from_0_0, "Standard deviation, in pixels, of the Gaussian that blurred them."),
        ("noise", {"restore": 0.0}, _from_0_0, "Standard deviation of their noise; pixels are in [0, 1]."),
        ("steps", {"restore": 40}, _from_0, "Steps of gradient descent; 0 is quick and less exact."),
        ("starts", {"restore": 4}, _from_0, "Draws of the latents to begin at, for the deviation; 0 leaves it out."),
        ("variants", {"vary": 8}, _from_1, "Number of variants of each image."),
        ("neighbors", {"nearest": 8}, _from_1, "Number of nearest images of each sample."),
        ("json", {"nearest": None}, _text, "File to write numbers and distances to, .json."),
    ]


def overview() -> str:
    """The manual page of all modes."""
    lines = [f"  {mode:<12} {function.__doc__.splitlines()[0]}" for mode, function in MODES.items()]
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
            check_choice("the mode of nvae-generate", first, MODES, "not one of the modes")
        mode = sys.argv.pop(1)
    _define_flags(mode)
    # What `--help` prints.
    __doc__ = f"{inspect.getdoc(MODES[mode])}\n\n{_EXIT_CODES}"
    command_line.run(lambda: _main(mode), flags)


if __name__ == "__main__":
    run()
