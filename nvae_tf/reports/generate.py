"""What `nvae-generate` does, a function for each of its modes: images from the model of a run, and a figure of them.

    from nvae_tf.reports import generate
    from nvae_tf.reports import figures
    from nvae_tf.runs.loading import load_run

    run = load_run("runs/digits")
    made = generate.sample(run, count=16, temperature=0.7)
    made.images; made.draw(figures.Provenance("digits", step=run.step, **made.origin))

Each function takes a run and, where it starts from images, an `Originals`. Its docstring is the mode's manual page; its
parameters, and the fields of `Originals`, are the flags. It checks them before it asks for the run's model.
"""

import dataclasses
import inspect
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np

from nvae_tf.config import (
    BATCH_NORM_HELP,
    DATA_PATH_HELP,
    LARGEST_SEED,
    PRIOR_HELP,
    PRIORS,
    TEMPERATURE_HELP,
    ExperimentConfig,
    check,
    did_you_mean,
)
from nvae_tf.data.picture_folder import Places, find_pictures, pictures_for_model
from nvae_tf.latent_plan import LatentPlan, latent_plan
from nvae_tf.progress import ImageProgress, StatusLine, counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nvae_tf.reports.figures import Provenance
    from nvae_tf.runs.loading import TrainedRun

_PICTURES = "Picture files: a file, a folder with all in it, or several with commas"
_RESIZE = "How picture files get the model's size; if not given, as in training."
_CONVERT = "Convert picture files that have other channels; if not given, as in training."
_COUNT = "Number of images of the data set; if not given, 40 for reconstruct, all for encode, 8 where they are changed."
_CLASSES = "Classes by number or name: 3, or 0,cat in turn; -1 is none. Images of the data set have theirs."
_KEPT = "How many groups, from the top, keep their latents; the others are drawn, so 0 gives samples."
_GUIDANCE = "Classifier-free guidance: 1 as trained, above 1 more typical of the class, 0 without the class."
_STARTS = "Draws of the latents to begin at, for the deviation; 0 leaves it out."
# What the parameters are and mean, and the limits of their values, see `nvae_tf.command_line.define_parameters`.
Seed = Annotated[int, "Of the latents, and of the binarization of images.", 0, LARGEST_SEED]
Split = Annotated[str, "Part of the data set.", "test", "train"]
DataPath = Annotated[str | None, DATA_PATH_HELP]
Samples = Annotated[int, "Number of samples.", 1]
Labels = Annotated[str | int | Sequence[str] | Sequence[int] | np.ndarray | None, _CLASSES]
Columns = Annotated[int | None, "Images a row at most; nearly a square if not given.", 1]
Mean = Annotated[bool, "Take the posterior's means as latents, not draws."]
KeptOrAll = Annotated[int | None, f"{_KEPT} All if not given.", 0]
How = Annotated[str | Sequence[str], "spherical, linear or keep; one, or one a scale or a group."]
Strengths = Annotated[Sequence[float], "Multiples of the direction to add; 1 is the whole difference."]
Temperature = Annotated[float | Sequence[float], TEMPERATURE_HELP]


class Made(NamedTuple):
    """The results of a task; a field is None where the task makes nothing of its kind.

    `text` is a line about it. Images are `[count, height, width, channels]` in [0, 1], or `[originals, variants, ...]`,
    with a name for each (or for each original). `draw` makes a figure of them, which needs matplotlib; `origin` has the
    fields of its `Provenance` that the task knows. Latents, with the `labels` they belong to, are arrays to be stored.
    """

    text: str
    images: np.ndarray | None = None
    names: Sequence[str] | None = None
    draw: "Callable[[Provenance], Figure] | None" = None
    origin: dict[str, Any] | None = None
    latents: Sequence[np.ndarray] | None = None
    labels: np.ndarray | None = None
    metrics: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Originals:
    """Which images a task starts from: picture files, or images of the run's data set.

    `input` are files and folders; `resize` ("crop", "stretch") and `convert` bring them to the model's form, None as in
    training. Images of the data set are those numbered `indices` (from 0), or `count` spread over a `split`;
    `data_path` is where they lie now. `labels` are classes, taken in turn; without them the data set's own are used.

    ValueError: two ways to choose at once, or a choice of nothing; FileNotFoundError where `input` is missing.
    """

    input: Annotated[Places | None, f"{_PICTURES}; without it, images of the data set"] = None
    resize: Annotated[str | None, _RESIZE, "crop", "stretch"] = None
    convert: Annotated[bool | None, _CONVERT] = None
    indices: Annotated[Sequence[int] | None, "Numbers of images of the data set, counted from 0: 3,17.", 0] = None
    split: Split = "test"
    data_path: DataPath = None
    count: Annotated[int | None, _COUNT, 1] = None
    labels: Labels = None

    def __post_init__(self):
        given = [f"--{name}" for name in ("input", "indices", "count") if getattr(self, name) is not None]
        check(len(given) < 2, f"{' and '.join(given)}: give one of them, each says which images to take")
        check(self.indices is None or len(self.indices) > 0, "--indices=: give numbers of images, such as 3,17")
        check(self.indices is None or min(self.indices) >= 0, f"--indices={self.indices}: images are counted from 0")
        check(self.count is None or self.count > 0, f"--count={self.count}: must be at least 1")
        if self.input:
            check(self.data_path is None, "--input and --data_path: give one of them")
            find_pictures(self.input)

    def pictures(self, config: ExperimentConfig, places: Places, seed: int) -> tuple[np.ndarray, list[str]]:
        """Picture files as the model sees them, and their names."""
        return pictures_for_model(places, config.data, seed, self.resize, self.convert)

    def load(
        self, run: "TrainedRun", seed: int, at_most: int | None = None, used: Sequence[str] = (), config: Any = None
    ) -> tuple[np.ndarray, np.ndarray | None, list[str], str]:
        """The images as the model sees them, their labels, a name for each, and which they are, in words.

        Where nothing says how many, there are `at_most`, or all if there are fewer. `used` names those of `resize` and
        `convert` that the task needs for other pictures. `config` is in place of the run's.
        """
        config = config or run.config
        for name in ("resize", "convert"):
            text = f"--{name} is for pictures of --input; those of the data set come as trained"
            check(bool(self.input) or name in used or getattr(self, name) is None, text)
        labels = None
        if self.input:
            images, names = self.pictures(config, self.input, seed)
            words = f"picture{'' if len(images) == 1 else 's'} of {', '.join(_listed(self.input))}"
        else:
            from nvae_tf.data.pipeline import chosen_images
            from nvae_tf.data.sources import load_split
            from nvae_tf.runs.loading import spec_to_read

            spec = spec_to_read(config, self.data_path)
            source = load_split(spec, self.split, StatusLine().report())
            images, labels, names = chosen_images(source, spec, self.split, self.indices, self.count, at_most, seed)
            words = f"image{'' if len(images) == 1 else 's'} of the {self.split} part"
        labels = labels if self.labels is None else _classes(run, self.labels, len(images))
        return images, labels, names, f"{len(images):,} {words}"

    def data_words(self, run: "TrainedRun", *details: str | None) -> str | None:
        """Which images they are, as a figure's last line says it, with details."""
        return _joined(None if self.input else f"{self.split} images", _class_words(run, self.labels), *details)


def sample(
    run: "TrainedRun",
    *,
    seed: Seed = 1,
    count: Samples = 64,
    labels: Labels = None,
    columns: Columns = None,
    temperature: Temperature = 1.0,
    guidance: Annotated[float, _GUIDANCE] = 1.0,
    batch_norm_iterations: Annotated[int, BATCH_NORM_HELP, 0] = 0,
    prior: Annotated[str, PRIOR_HELP, *PRIORS] = PRIORS[0],
    pixels: Annotated[str, "The likelihood's mean, or a draw from it.", "mean", "sample"] = "mean",
) -> Made:
    """Draws samples from a trained model.

        nvae-generate sample --workdir=runs/digits --output=samples.png
        nvae-generate --workdir=runs/digits --output=samples/ --count=100 --temperature=0.6 --seed=7

    An image is the likelihood's mean for latents from the prior, or with --pixels=sample a draw from the likelihood
    p(x | z), with its noise; image i depends on the seed and on i alone.
    --temperature multiplies every prior's sigma: 1 is the model as trained, below 1 the images are cleaner and more
    alike (the paper shows 0.6 to 1). A conditional model draws its classes in turn, or those of --labels; --guidance
    above 1 makes images more typical of their class. --batch_norm_iterations=500 takes a while, and helps where low
    temperatures come out wrong in color or contrast. --prior=reweighted draws the top groups as nvae-prior has learned.
    """
    from nvae_tf.evaluation.batch_norm_statistics import readjusted
    from nvae_tf.generation.sampling import generate_images
    from nvae_tf.models.latents import check_guidance

    _plan(run, temperature)
    num_classes = run.config.model.num_classes  # drawn in turn where no labels are given
    check_guidance(guidance, num_classes > 0, num_classes, run.config.train.label_dropout)
    classes, model = _classes(run, labels, count), run.model
    if batch_norm_iterations:
        model, text = readjusted(model, temperature, batch_norm_iterations, seed=seed, prior=prior)
        StatusLine().keep(text)
    how = {"guidance": guidance, "prior": prior, "mean": pixels == "mean"}
    images = generate_images(model, count, temperature, seed, _progress(count), classes, **how)
    in_turn = run.class_names if labels is None else _class_names(run, labels)
    values = np.atleast_1d(temperature)
    shown = f"temperature{'s' if len(values) > 1 else ''} {', '.join(map('{:g}'.format, values))}"
    guided = None if guidance == 1.0 else f"guidance {guidance:g}"
    drawn = None if pixels == "mean" else "drawn pixels"
    data = _joined(_class_words(run, labels), guided, None if prior == PRIORS[0] else f"{prior} prior", drawn)
    return Made(
        f"{counted(count, 'image')} at {shown}",
        images,
        [f"sample_{number:05d}" for number in range(count)],
        lambda about: _figures().samples(images, about, columns, classes=in_turn),
        dict(seed=seed, temperature=temperature, data=data),
    )


def reconstruct(
    run: "TrainedRun",
    originals: Originals,
    *,
    seed: Seed = 1,
    columns: Annotated[int, "Images a row at most.", 1] = 10,
    mean: Mean = False,
    kept_groups: KeptOrAll = None,
    temperature: Temperature = 1.0,
) -> Made:
    """Shows what a trained model keeps of real images: originals, and below each its reconstruction.

        nvae-generate reconstruct --workdir=runs/digits --output=reconstructions.png
        nvae-generate reconstruct --workdir=runs/faces --input=me.jpg --resize=crop --output=me.png
        nvae-generate reconstruct --workdir=runs/faces --input=my_pictures --kept_groups=5 --output=out/

    The figure has pairs of rows: images spread over the test part, or the picture files of --input, as the model sees
    them (binary data are binarized), above the likelihood's means for latents from the posterior. With --kept_groups
    the latents of the other groups come from the prior at --temperature. Files of a folder have the originals' names.
    """
    from nvae_tf.generation.sampling import checked_kept_groups, reconstruct_images

    plan = _plan(run, temperature)
    kept, groups = checked_kept_groups(kept_groups, plan), plan.num_groups
    images, labels, names, words = originals.load(run, seed, 40)
    progress = _progress(len(images))
    made = reconstruct_images(run.model, images, kept, temperature, seed, mean, progress, labels)
    which = "" if kept == groups else f" of the top {kept} of {groups} groups; the others are drawn from the prior"
    return Made(
        f"{words}, reconstructed" + ("" if kept == groups else f" from the top {kept} of {groups} groups"),
        made,
        names,
        lambda about: _figures().reconstructions(images, made, about, which, columns),
        dict(seed=seed, temperature=temperature if which else None, data=originals.data_words(run)),
    )


def interpolate(
    run: "TrainedRun",
    originals: Originals,
    *,
    seed: Seed = 1,
    mean: Mean = False,
    steps: Annotated[int, "Steps from one image to the next.", 1] = 10,
    how: How = "spherical",
) -> Made:
    """Goes from image to image in small steps: a path between their latents, as a grid or an animation.

        nvae-generate interpolate --workdir=runs/digits --indices=3,17 --output=path.png
        nvae-generate interpolate --workdir=runs/faces --input=a.png,b.png --steps=30 --output=path.gif
        nvae-generate interpolate --workdir=runs/faces --indices=1,5,9 --how=spherical,linear --output=path/

    The path goes through all images in turn, and begins and ends at their reconstructions where no latents are kept.
    --how says how the latents go: spherical (along an arc, which keeps their length), linear, or keep (they stay those
    of the first image); one word for all, or one for every scale (the smallest first) or every latent group (the top
    one first). The figure has a row for the path from one image to the next, between both originals. A GIF has 256
    colors, a WebP all.
    """
    from nvae_tf.generation.sampling import interpolate_images, ways_of_groups

    which = "give two or more with --input=FILE_OR_FOLDER, or of the data set, as --indices=3,17 or --count=2"
    chosen = originals.input, originals.indices, originals.count
    check(any(each is not None for each in chosen), f"between which images? {which}")
    ways_of_groups(how, _plan(run).latent_shapes())
    images, labels, _, words = originals.load(run, seed)
    progress = _progress((len(images) - 1) * (steps - 1))
    path = interpolate_images(run.model, images, steps, how, seed, mean, progress, labels)
    return Made(
        f"{len(path):,} images through {words}",
        path,
        [f"image_{number:05d}" for number in range(len(path))],
        lambda about: _figures().interpolation(images, path, steps, about),
        dict(seed=seed, data=originals.data_words(run)),
    )


def vary(
    run: "TrainedRun",
    originals: Originals,
    *,
    seed: Seed = 1,
    mean: Mean = False,
    kept_groups: Annotated[int, _KEPT, 0] = 1,
    temperature: Temperature = 1.0,
    variants: Annotated[int, "Number of variants of each image.", 1] = 8,
) -> Made:
    """Draws variants of images that keep what the upper latent groups hold of them.

        nvae-generate vary --workdir=runs/digits --output=variants.png
        nvae-generate vary --workdir=runs/faces --input=me.png --kept_groups=4 --variants=12 --output=me/

    The latents of --kept_groups groups, from the top, are the image's in all its variants; the others are drawn from
    the prior at --temperature, afresh for each. The figure has a row for every image: itself as the model sees it,
    then its variants. Files of a folder have the originals' names and a number.
    """
    from nvae_tf.generation.sampling import checked_kept_groups, vary_images

    plan = _plan(run, temperature)
    kept, groups = checked_kept_groups(kept_groups, plan), plan.num_groups
    images, labels, names, words = originals.load(run, seed, 8)
    progress = _progress(len(images) * variants)
    made = vary_images(run.model, images, kept, variants, temperature, seed, mean, progress, labels)
    text = f"The rest of the {groups} groups have the original's latents; group 0 is the coarsest."

    def draw(about: "Provenance") -> "Figure":
        heading = f"variants: {_figures().redrawn(kept, groups)}"
        return _figures().variants(images, made, heading, text, about)

    return Made(
        f"{variants:,} variants of each of {words}, with the latents of the top {kept} of {groups} groups kept",
        made,
        names,
        draw,
        dict(seed=seed, temperature=temperature, data=originals.data_words(run)),
    )


def direction(
    run: "TrainedRun",
    originals: Originals,
    *,
    positive: Annotated[Places, f"{_PICTURES}, which have what the direction adds"],
    negative: Annotated[Places, f"{_PICTURES}, which lack what the direction adds"],
    seed: Seed = 1,
    mean: Mean = False,
    strengths: Strengths = (-2, -1, 0, 1, 2),
) -> Made:
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

    check(bool(np.isfinite(strengths).all()), f"--strengths={','.join(map(str, strengths))}: give finite numbers")
    find_pictures([*_listed(positive), *_listed(negative)])
    added, subtracted = (originals.pictures(run.config, places, seed)[0] for places in (positive, negative))
    images, labels, names, words = originals.load(run, seed, 8, ("resize", "convert"))
    step = latent_direction(run.model, added, subtracted)
    progress = _progress(len(images) * len(strengths))
    made = move_images(run.model, images, step, strengths, seed, mean, progress, labels)
    plus, minus = (", ".join(pathlib.Path(place).name for place in _listed(side)) for side in (positive, negative))
    text = f"Below each: the multiple of the difference of the mean latents, {plus} minus {minus}, that is added."
    notes = [f"{strength:g}" for strength in strengths]

    def draw(about: "Provenance") -> "Figure":
        title = "Images moved along a direction"
        return _figures().variants(images, made, "moved along the direction", text, about, notes, title=title)

    return Made(
        f"{words}, moved by the difference of {len(added)} and {len(subtracted)} pictures, times {', '.join(notes)}",
        made,
        names,
        draw,
        dict(seed=seed, data=originals.data_words(run)),
    )


def restore(
    run: "TrainedRun",
    originals: Originals,
    *,
    seed: Seed = 1,
    mask: Annotated[str | None, "A picture that is white where pixels are missing."] = None,
    scale: Annotated[int, "How many times smaller they are: 2 for half the height and width.", 1] = 1,
    blur: Annotated[float, "Standard deviation, in pixels, of the Gaussian that blurred them.", 0.0] = 0.0,
    noise: Annotated[float, "Standard deviation of their noise; pixels are in [0, 1].", 0.0] = 0.0,
    steps: Annotated[int, "Steps of gradient descent; 0 is quick and less exact.", 0] = 40,
    starts: Annotated[int, _STARTS, 0] = 4,
) -> Made:
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
    from nvae_tf.generation.sampling import degradation, restore_images
    from nvae_tf.models.restoration import measured

    degraded = (("mask", mask), ("scale", scale if scale > 1 else None), ("blur", blur), ("noise", noise))
    # Only the file name of a mask.
    details = [f"{name} {pathlib.Path(str(value)).name}" for name, value in degraded if value]
    given = [f"--{name}" for name, value in degraded[:3] if value]
    check(len(given) < 2, f"{' and '.join(given)}: give one of them")
    check(bool(details), "no degradation given: give --mask, --scale or --blur, or --noise alone")
    operator, spec = degradation(run.config, mask, scale, blur, originals.resize), stored_spec(run.config.data)
    spec = dataclasses.replace(spec, height=spec.height // scale, width=spec.width // scale)
    config = dataclasses.replace(run.config, data=spec) if originals.input else run.config
    images, labels, names, words = originals.load(run, seed, 8, ("resize",) if mask else (), config)
    measurement = images if originals.input else measured(operator, images, noise, seed)
    made, deviation = restore_images(run.model, measurement, operator, noise, steps, starts, seed, labels)
    shown = np.where(operator.missing[..., np.newaxis], 0.5, measurement) if mask else measurement

    def draw(about: "Provenance") -> "Figure":
        from nvae_tf.reports.task_figures import restorations

        return restorations(shown, made, None if originals.input else images, deviation, about)

    return Made(f"{words}, restored", made, names, draw, dict(seed=seed, data=originals.data_words(run, *details)))


def encode(run: "TrainedRun", originals: Originals, *, seed: Seed = 1, mean: Mean = False) -> Made:
    """Turns images into the model's latents, for `nvae-generate decode` or for programs of one's own.

        nvae-generate encode --workdir=runs/digits --output=latents.npz
        nvae-generate encode --workdir=runs/faces --input=my_pictures --mean --output=latents.npz

    The file is NumPy's: latent is float32 [count, total], the groups one after another, the top one first, as exported
    models take it; names are the images' names, about is JSON with the latent shapes. In Python
    nvae_tf.generation.latents_file.load_latents reads it.
    """
    from nvae_tf.generation.sampling import encode_images

    images, labels, names, words = originals.load(run, seed)
    latents = encode_images(run.model, images, seed, mean, _progress(len(images)), labels)
    return Made(f"latents of {words} in {len(latents)} groups", names=names, latents=latents, labels=labels)


def decode(
    run: "TrainedRun",
    *,
    input: Annotated[str, "File of latents, .npz."],
    seed: Seed = 1,
    labels: Labels = None,
    columns: Columns = None,
    kept_groups: KeptOrAll = None,
    temperature: Temperature = 1.0,
) -> Made:
    """Turns latents into images: those of `nvae-generate encode`, or what a program has made of them.

        nvae-generate decode --workdir=runs/digits --input=latents.npz --output=images.png
        nvae-generate decode --workdir=runs/digits --input=latents.npz --kept_groups=2 --output=images/

    An image is the likelihood's mean. With --kept_groups the latents of the other groups are drawn from the prior at
    --temperature. Files of a folder have the names that are in the file of latents.
    """
    from nvae_tf.generation.latents_file import load_latents
    from nvae_tf.generation.sampling import checked_kept_groups, generator_of

    plan = _plan(run, temperature)
    kept = checked_kept_groups(kept_groups, plan)
    latents, names, stored = load_latents(input, plan)
    count = len(latents[0])
    names = names or [f"decoded_{number:05d}" for number in range(count)]
    classes = stored if labels is None else _classes(run, labels, count)
    generator = generator_of(run.model)
    images = generator.generate(count, temperature, seed, _progress(count), latents[:kept], classes)
    # With all latents given, nothing is drawn at random.
    drawn = dict(seed=seed, temperature=temperature) if kept < len(latents) else {}
    return Made(
        f"{counted(count, 'image')} of latents in {input}",
        images,
        names,
        lambda about: _figures().samples(images, about, columns, title=f"Images decoded from {input}"),
        dict(**drawn, data=_class_words(run, labels)),
    )


def nearest(
    run: "TrainedRun",
    *,
    seed: Seed = 1,
    split: Split = "train",
    data_path: DataPath = None,
    count: Samples = 8,
    labels: Labels = None,
    temperature: Temperature = 1.0,
    neighbors: Annotated[int, "Number of nearest images of each sample.", 1] = 8,
) -> Made:
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
    from nvae_tf.runs.loading import spec_to_read

    _plan(run, temperature)
    spec = spec_to_read(run.config, data_path)
    source = load_split(spec, split, StatusLine().report())
    check(neighbors <= source.count, f"--neighbors={neighbors}: the {split} part has only {source.count:,} images")
    classes = _classes(run, labels, count)
    samples = generate_images(run.model, count, temperature, seed, labels=classes)
    batches = iterate(evaluation_batches(source, images_alone(spec), 256, seed), source)
    numbers, distances, images = nearest_images(samples, batches, neighbors, _progress(source.count))
    part = "training" if split == "train" else split
    least = distances[:, 0]
    return Made(
        f"{count:,} samples, each before the nearest of {source.count:,} images of the {split} part (mean squared "
        f"difference from the nearest {least.min():.4g} to {least.max():.4g})",
        samples,
        [f"sample_{number:05d}" for number in range(count)],
        lambda about: _figures().nearest(samples, images, distances, part, about),
        dict(seed=seed, temperature=temperature, data=_joined(f"{split} images", _class_words(run, labels))),
        metrics=dict(
            step=run.step,
            seed=seed,
            temperature=temperature,
            split=split,
            numbers=numbers.tolist(),
            distances=distances.tolist(),
        ),
    )


TASKS = {
    task.__name__: task
    for task in (sample, reconstruct, interpolate, vary, direction, restore, encode, decode, nearest)
}


def parameters_of(task: Callable[..., Made]) -> dict[str, inspect.Parameter]:
    """The parameters of a task without the run, with the fields of `Originals` in place of `originals`."""
    parameters = dict(inspect.signature(task).parameters)
    if "originals" in parameters:
        parameters = dict(inspect.signature(Originals).parameters) | parameters
    return {name: parameter for name, parameter in parameters.items() if name not in ("run", "originals")}


def arguments_of(task: Callable[..., Made], values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a task without the run, made from values for `parameters_of`."""
    if "originals" not in inspect.signature(task).parameters:
        return values
    fields = inspect.signature(Originals).parameters
    originals = Originals(**{name: value for name, value in values.items() if name in fields})
    return {name: value for name, value in values.items() if name not in fields} | {"originals": originals}


def _plan(run: "TrainedRun", temperature: Temperature = 1.0) -> LatentPlan:
    """The run's latent groups, which the temperature fits."""
    from nvae_tf.models.latents import temperatures_of_groups

    plan = latent_plan(run.config.model)
    temperatures_of_groups(temperature, plan)
    return plan


def _classes(run: "TrainedRun", labels: Labels, count: int) -> np.ndarray | None:
    """The numbers of classes that are given by number or name, taken in turn, int32 `[count]`; None without labels."""
    if labels is None:
        return None
    names, numbers = run.class_names, range(-1, run.config.model.num_classes)
    # A text that is the number of a class and the name of another means the number.
    known = {name: number for number, name in enumerate(names)} | {str(number): number for number in numbers}
    listed = f"classes 0 to {numbers[-1]} ({names[0]} to {names[-1]})" if names else "no classes"
    given = [str(label) for label in np.atleast_1d(labels).tolist()]
    for label in given:
        unknown = f"{label} is no class of this model, which has {listed}{did_you_mean(label, names)}"
        check(label in known, f"--labels={','.join(given)}: {unknown}")
    return np.resize(np.array([known[label] for label in given], np.int32), count)


def _class_names(run: "TrainedRun", labels: Labels) -> list[str]:
    numbers = _classes(run, labels, np.size(labels))
    return ["none" if number < 0 else run.class_names[number] for number in numbers]


def _class_words(run: "TrainedRun", labels: Labels) -> str | None:
    return None if labels is None else f"classes {', '.join(_class_names(run, labels))}"


def _listed(places: Places) -> list[str]:
    return [str(place) for place in ([places] if isinstance(places, str | os.PathLike) else places)]


def _joined(*parts: str | None) -> str | None:
    return ", ".join(filter(None, parts)) or None


def _figures() -> Any:
    from nvae_tf.reports import figures

    return figures


def _progress(total: int) -> Callable[[int], None]:
    """A function that shows how many images are done, now and then."""
    return ImageProgress(StatusLine().report().progress, total).show
