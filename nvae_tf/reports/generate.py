"""What `nvae-generate` does, a function for each of its modes: images from the model of a run, and a figure of them.

    run = nvae_tf.runs.loading.load_run("runs/digits")
    made = nvae_tf.reports.generate.sample(run, count=16, temperature=0.7)
    made.images; made.draw(nvae_tf.reports.figures.Provenance("digits", run.step))

Each function takes a run and, where it starts from images, an `Originals`. Its docstring is the mode's manual page; its
parameters, and the fields of `Originals`, are the flags.
"""

import dataclasses
import inspect
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from nvae_tf import config as configuration
from nvae_tf.data.picture_folder import Places, find_pictures, pictures_for_model
from nvae_tf.data.sources import load_split
from nvae_tf.generation.latents_file import load_latents
from nvae_tf.latent_plan import feature_names
from nvae_tf.progress import ImageProgress, StatusLine, counted

Run = Any  # a `nvae_tf.runs.loading.TrainedRun`, whose import would start TensorFlow
_PICTURES = "Picture files: a file, a folder with all in it, or several with commas; .npy and .npz files of images"
_COUNT = "Number of images of the data set; if not given, 40 for reconstruct, all for encode, 8 where they are changed."
_CLASSES = "Classes by number or name: 3, or 0,cat in turn; -1 is none. Images of the data set have theirs."
_RESIZE = "How picture files get the model's size, if not as in training."
_KEPT = "How many groups, from the top, keep their latents; the others are drawn, so 0 gives samples."
_GUIDANCE = "Classifier-free guidance: 1 as trained, above 1 more typical of the class, 0 without the class."
_DRAWS = "Draws whose mean and deviation are taken; 0 for one pass at the posterior's means."
# What the parameters are and mean, and the limits of their values, see `nvae_tf.command_line.define_parameters`.
Seed = Annotated[int, "Of the latents, and of the binarization of images.", 0, configuration.LARGEST_SEED]
Split = Annotated[str, "Part of the data set.", "test", "train"]
DataPath = Annotated[str | None, configuration.DATA_PATH_HELP]
Samples = Annotated[int, "Number of samples.", 1]
Labels = Annotated[str | int | Sequence[str] | Sequence[int] | np.ndarray | None, _CLASSES]
Columns = Annotated[int | None, "Images a row at most; nearly a square if not given.", 1]
Mean = Annotated[bool, "Take the posterior's means as latents, not draws."]
KeptOrAll = Annotated[int | None, f"{_KEPT} All if not given.", 0]
Temperature = Annotated[float | Sequence[float], configuration.TEMPERATURE_HELP]
# The parameters that a figure's last line names where they are not at their defaults.
_SHOWN = "labels guidance batch_norm_iterations prior pixels mean kept_groups how mask scale blur noise samples".split()


class Made(NamedTuple):
    """The results of a task; a field is None where the task makes nothing of its kind.

    `text` is a line about it. Images are `[count, height, width, channels]` in [0, 1], or `[originals, variants, ...]`,
    with a name for each (or for each original). Latents, with the `labels` they belong to, are arrays to be stored.
    """

    text: str
    images: np.ndarray | None = None
    names: Sequence[str] | None = None
    figure: tuple[Any, ...] = ()  # the name of a function of `figures`, and its first arguments
    options: Mapping[str, Any] = {}  # of that function
    deviation: np.ndarray | None = None  # of each value of the images
    latents: Sequence[np.ndarray] | None = None
    labels: np.ndarray | None = None
    columns: Sequence[str] | None = None  # the names of features, which are then the `latents`
    metrics: dict[str, Any] | None = None

    def draw(self, about: Any, **options: Any) -> Any:
        """The figure of the images, a matplotlib `Figure`; `about` is a `nvae_tf.reports.figures.Provenance`."""
        from nvae_tf.reports import figures  # not at the top: matplotlib is an extra

        name, *data = self.figure
        return getattr(figures, name)(*data, about=about, **self.options | options)


@dataclasses.dataclass(frozen=True)
class Originals:
    """Which images a task starts from: picture files, or images of the run's data set.

    `labels` are classes, taken in turn; without them the data set's own are used. ValueError for two ways to choose at
    once; FileNotFoundError where `input` is missing.
    """

    input: Annotated[Places | None, f"{_PICTURES}; without it, images of the data set"] = None
    resize: Annotated[str | None, _RESIZE, "crop", "stretch"] = None
    convert: Annotated[bool | None, "Convert picture files that have other channels, if not as in training."] = None
    indices: Annotated[Sequence[int] | None, "Numbers of images of the data set, counted from 0: 3,17.", 0] = None
    split: Split = "test"
    data_path: DataPath = None
    count: Annotated[int | None, _COUNT, 1] = None
    labels: Labels = None

    def __post_init__(self):
        _check_one_of(input=self.input, indices=self.indices, count=self.count)
        _check_one_of(input=self.input, data_path=self.data_path)
        if self.input:
            find_pictures(self.input)

    def load(self, run: Run, seed: int, at_most=None, pictures=None, used=()) -> tuple[np.ndarray, Any, list[str], str]:
        """The images as the model sees them, their labels or None, a name for each, and which they are, in words.

        Where nothing says how many, there are `at_most`, or all if there are fewer. `pictures` is the `DataSpec` of
        the images of `input` if not as in training; `used` names `resize` or `convert` if other pictures need them.
        """
        labels = None
        for name in ("resize", "convert"):
            if not self.input and name not in used and getattr(self, name) is not None:
                raise ValueError(f"--{name} is for pictures of --input; the data set's images come as trained")
        if self.input:
            images, names = pictures_for_model(self.input, pictures or run.config.data, seed, self.resize, self.convert)
            words = f"{counted(len(images), 'picture')} of {', '.join(_listed(self.input))}"
        else:
            from nvae_tf.data.pipeline import chosen_images

            spec = run.config.data_at(self.data_path)
            source = load_split(spec, self.split, StatusLine().report())
            images, labels, names = chosen_images(source, spec, self.split, self.indices, self.count, at_most, seed)
            words = f"{counted(len(images), 'image')} of the {self.split} part"
        labels = labels if self.labels is None else _classes(run, self.labels, len(images))
        return images, labels, names, words


def sample(
    run: Run,
    *,
    seed: Seed = 1,
    count: Samples = 64,
    labels: Labels = None,
    columns: Columns = None,
    temperature: Temperature = 1.0,
    guidance: Annotated[float, _GUIDANCE] = 1.0,
    batch_norm_iterations: Annotated[int, configuration.BATCH_NORM_HELP, 0] = 0,
    prior: Annotated[str, configuration.PRIOR_HELP, *configuration.PRIORS] = configuration.PRIORS[0],
    pixels: Annotated[str, "The likelihood's mean, or a draw from it.", "mean", "sample"] = "mean",
) -> Made:
    """Draws samples from a trained model.

        nvae-generate sample --workdir=runs/digits --output=samples.png
        nvae-generate --workdir=runs/digits --output=samples/ --count=100 --temperature=0.6 --seed=7

    An image is the likelihood's mean for latents from the prior; with --pixels=sample it is a draw from the likelihood.
    Image i depends on the seed and on i alone. Below temperature 1 images are cleaner and more alike (the paper shows
    0.6 to 1). A conditional model draws its classes in turn, or from --labels. --batch_norm_iterations=500 takes a
    while, and helps where low temperatures come out wrong in color or contrast.
    """
    from nvae_tf.evaluation.batch_norm_statistics import readjusted
    from nvae_tf.generation.sampling import generate_images
    from nvae_tf.models.latents import check_guidance

    num_classes = run.config.model.num_classes  # drawn in turn where no labels are given
    check_guidance(guidance, num_classes > 0, num_classes, run.config.train.label_dropout)
    classes, model = _classes(run, labels, count), run.model
    if batch_norm_iterations:
        model, text = readjusted(model, temperature, batch_norm_iterations, seed=seed, prior=prior)
        StatusLine().print(text)
    if prior == "model" and guidance == 1.0 and not isinstance(model.reweighted_prior, str):
        StatusLine().print("This model has a reweighted prior: --prior=reweighted draws from it (docs/prior.md).")
    how = {"guidance": guidance, "prior": prior, "mean": pixels == "mean", "labels": classes}
    images = generate_images(model, count, temperature, seed, progress=_progress(count), **how)
    names = run.class_names
    if labels is not None:
        names = ["none" if number < 0 else names[number] for number in _classes(run, labels, np.size(labels))]
    options = {"columns": columns, "classes": names}
    return Made(counted(count, "image"), images, _numbered("sample", count), ("samples", images), options)


def reconstruct(
    run: Run,
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

    The figure has pairs of rows: images of the test part, or the picture files of --input, as the model sees them, and
    below them the likelihood's means for latents from the posterior. With --kept_groups the latents of the other groups
    come from the prior at --temperature. Files of a folder have the originals' names.
    """
    from nvae_tf.generation.sampling import reconstruct_images

    images, labels, names, words = originals.load(run, seed, 40)
    how = {"mean": mean, "labels": labels, "progress": _progress(len(images))}
    made = reconstruct_images(run.model, images, kept_groups, temperature, seed, **how)
    options, groups = {"columns": columns}, run.model.plan.num_groups
    if kept_groups not in (None, groups):
        options["kept"] = f" of the top {kept_groups} of {groups} groups; the others are drawn from the prior"
    return Made(f"{words}, reconstructed", made, names, ("reconstructions", images, made), options)


def interpolate(
    run: Run,
    originals: Originals,
    *,
    seed: Seed = 1,
    mean: Mean = False,
    steps: Annotated[int, "Steps from one image to the next.", 1] = 10,
    how: Annotated[str | Sequence[str], "spherical, linear or keep; one, or one a scale or a group."] = "spherical",
) -> Made:
    """Goes from image to image in small steps: a path between their latents, as a grid or an animation.

        nvae-generate interpolate --workdir=runs/digits --indices=3,17 --output=path.png
        nvae-generate interpolate --workdir=runs/faces --input=a.png,b.png --steps=30 --output=path.gif
        nvae-generate interpolate --workdir=runs/faces --indices=1,5,9 --how=spherical,linear --output=path/

    The path goes through the reconstructions of all images in turn. --how says how the latents go: spherical (along an
    arc, which keeps their length), linear, or keep (the first image's stay); one word for all, or one for
    every scale (the smallest first) or every latent group (the top one first). The figure has a row for the path from
    one image to the next, between both originals. A GIF has 256 colors, a WebP all.
    """
    from nvae_tf.generation.sampling import interpolate_images

    if not (originals.input or originals.indices or originals.count):
        raise ValueError("between which images? give --input=FILE_OR_FOLDER, or of the data set --indices or --count")
    images, labels, _, words = originals.load(run, seed)
    options = {"mean": mean, "labels": labels, "progress": _progress((len(images) - 1) * (steps - 1))}
    path = interpolate_images(run.model, images, steps, how, seed, **options)
    text, names = f"{len(path):,} images through {words}", _numbered("image", len(path))
    return Made(text, path, names, ("interpolation", images, path, steps))


def vary(
    run: Run,
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
    the prior at --temperature. The figure has a row for every image: itself, then its variants. Files of a folder have
    the originals' names and a number.
    """
    from nvae_tf.generation.sampling import vary_images

    images, labels, names, words = originals.load(run, seed, 8)
    how = {"mean": mean, "labels": labels, "progress": _progress(len(images) * variants)}
    made = vary_images(run.model, images, kept_groups, variants, temperature, seed, **how)
    groups = run.model.plan.num_groups
    text = f"The top {kept_groups} of {groups} groups have the original's latents; group 0 is the coarsest."
    figure = "variants", images, made, "variants: the other groups redrawn", text
    return Made(f"{variants:,} variants of each of {words}", made, names, figure)


def direction(
    run: Run,
    originals: Originals,
    *,
    positive: Annotated[Places, f"{_PICTURES}, which have what the direction adds"],
    negative: Annotated[Places, f"{_PICTURES}, which lack what the direction adds"],
    seed: Seed = 1,
    mean: Mean = False,
    strengths: Annotated[Sequence[float], "Multiples of the direction to add."] = (-2, -1, 0, 1, 2),
) -> Made:
    """Moves images along what sets one folder of pictures apart from another, such as smiling faces from others.

        nvae-generate direction --workdir=runs/digits --positive=eights/ --negative=threes/ --output=direction.png
        nvae-generate direction --workdir=runs/faces --positive=happy/ --negative=sad/ --input=me.png --output=me/

    The direction is the mean latents of --positive minus the mean latents of --negative in every group. Each strength
    times it is added to the latents of an image: 0 is the reconstruction, 1 the whole difference, below 0 the way back.
    Some tens of pictures each are needed, which differ in nothing else. The figure has a row for every image, itself
    first. Files of a folder have the originals' names and a number.
    """
    from nvae_tf.generation.sampling import latent_direction, move_images

    form = run.config.data, seed, originals.resize, originals.convert
    added, subtracted = (pictures_for_model(places, *form)[0] for places in (positive, negative))
    images, labels, names, words = originals.load(run, seed, 8, used=("resize", "convert"))
    how = {"mean": mean, "labels": labels, "progress": _progress(len(images) * len(strengths))}
    made = move_images(run.model, images, latent_direction(run.model, added, subtracted), strengths, seed, **how)
    plus, minus = (", ".join(pathlib.Path(place).name for place in _listed(side)) for side in (positive, negative))
    text = f"Below each: the multiple of the difference of the mean latents, {plus} minus {minus}, that is added."
    options = {"notes": [f"{strength:g}" for strength in strengths], "title": "Images moved along a direction"}
    figure = "variants", images, made, "moved along the direction", text
    return Made(f"{words}, moved along the direction", made, names, figure, options)


def restore(
    run: Run,
    originals: Originals,
    *,
    seed: Seed = 1,
    mask: Annotated[str | None, "A picture that is white where pixels are missing."] = None,
    scale: Annotated[int, "How many times smaller they are: 2 for half the height and width.", 1] = 1,
    blur: Annotated[float, "Standard deviation, in pixels, of the Gaussian that blurred them.", 0.0] = 0.0,
    noise: Annotated[float, "Standard deviation of their noise; pixels are in [0, 1].", 0.0] = 0.0,
    steps: Annotated[int, "Steps of gradient descent; 0 is quick and less exact.", 0] = 40,
    starts: Annotated[int, "Draws of the latents to begin at, for the deviation; 0 leaves it out.", 0] = 4,
) -> Made:
    """Restores images with the model as the prior: fills holes, enlarges, deblurs, takes out noise.

        nvae-generate restore --workdir=runs/digits --scale=2 --output=restored.png
        nvae-generate restore --workdir=runs/faces --input=old.png --mask=scratches.png --output=restored.png
        nvae-generate restore --workdir=runs/faces --input=my_pictures --blur=1.5 --noise=0.02 --output=out/

    One of --mask, --scale (each pixel is the mean of SCALE x SCALE pixels) and --blur describes how the images were
    degraded, and --noise, alone or besides, their noise. Pictures of --input are so already, and with --scale smaller
    than the model's; images of the data set are made so, and the figure shows them too. Its last column is the
    deviation of a pixel over restorations from --starts draws of the latents: bright where the answer is open.
    """
    from nvae_tf.data.pipeline import stored_spec
    from nvae_tf.generation.sampling import degradation, restore_images
    from nvae_tf.models.restoration import measured

    _check_one_of(mask=mask, scale=scale if scale > 1 else None, blur=blur or None)
    if not (mask or scale > 1 or blur or noise):
        raise ValueError("no degradation given: give --mask, --scale or --blur, or --noise alone")
    operator, spec = degradation(run.config, mask, scale, blur, originals.resize), stored_spec(run.config.data)
    spec = dataclasses.replace(spec, height=spec.height // scale, width=spec.width // scale)
    images, labels, names, words = originals.load(run, seed, 8, spec, ("resize",) if mask else ())
    measurement = images if originals.input else measured(operator, images, noise, seed)
    made, deviation = restore_images(run.model, measurement, operator, noise, steps, starts, seed, labels)
    shown = np.where(operator.missing, 0.5, measurement) if mask else measurement
    figure = "restorations", shown, made, None if originals.input else images, deviation
    return Made(f"{words}, restored", made, names, figure)


def denoise(run: Run, originals: Originals, *, seed: Seed = 1, samples: Annotated[int, _DRAWS, 0] = 0) -> Made:
    """Takes the noise out of images, with a model that was trained on noisy ones alone (data.noise).

        nvae-generate denoise --workdir=runs/noisy --output=denoised.png
        nvae-generate denoise --workdir=runs/noisy --input=stack.tif --samples=64 --output=denoised.tif

    A .npy or .tif file has float32 numbers in the units of the data; with --samples another beside it, named
    ..._deviation, has their standard deviation over the draws, which shows where the answer is open; --overwrite
    removes an older one. Files of --input may be larger than the model's images: they are denoised in tiles that
    overlap. The figure has a row for every image: itself, the signal, and with --samples two single draws and the
    deviation.
    """
    from nvae_tf.models.denoising import check_is_denoising

    check_is_denoising(run.config.model, "denoise")
    data = run.config.data
    if data.resize == "none" and not originals.resize:  # pictures keep their size, which may be larger
        data = dataclasses.replace(data, crop="none", crop_box=None, height=None, width=None)
    images, labels, names, words = originals.load(run, seed, 8, data)
    signal, deviation = run.model.denoise(images, samples, seed, labels)
    signal, deviation = signal.numpy(), None if deviation is None else deviation.numpy()

    def draws() -> list[np.ndarray]:
        # The first of the draws, and one of another seed.
        seeds = (seed, seed ^ 1) if samples > 1 else ()
        return [run.model.denoise(images, 1, each, labels).images.numpy() for each in seeds]

    figure = "restorations", images, signal, None, deviation
    return Made(f"{words}, denoised", signal, names, figure, {"draws": draws, "done": "denoised"}, deviation)


def encode(run: Run, originals: Originals, *, seed: Seed = 1, mean: Mean = False) -> Made:
    """Turns images into the model's latents, for `nvae-generate decode` or for programs of one's own.

        nvae-generate encode --workdir=runs/digits --output=latents.npz
        nvae-generate encode --workdir=runs/faces --input=my_pictures --mean --output=latents.npz

    The file is NumPy's: latent is float32 [count, total], the groups one after another, the top one first, as exported
    models take it; names are the images' names. In Python nvae_tf.generation.latents_file.load_latents reads it.
    """
    from nvae_tf.generation.sampling import encode_images

    images, labels, names, words = originals.load(run, seed)
    latents = encode_images(run.model, images, seed, mean, _progress(len(images)), labels)
    return Made(f"latents of {words} in {len(latents)} groups", names=names, latents=latents, labels=labels)


def features(
    run: Run,
    originals: Originals,
    *,
    seed: Seed = 1,
    groups: Annotated[Sequence[int] | None, "Numbers of latent groups, 0 for the top one; all if not given.", 0] = None,
    pool: Annotated[str | None, "Means over the positions, instead of all positions.", "mean"] = None,
) -> Made:
    """Turns images into features, the posterior's means in units of the prior's sigma, for classifiers and searches.

        nvae-generate features --workdir=runs/digits --output=features.npz
        nvae-generate features --workdir=runs/faces --input=my_pictures --pool=mean --output=features.parquet

    The file has a row for each image: features float32 [count, features], and columns, their names, as
    group0_y1_x0_c3; names are the images' names. Parquet, which needs pyarrow, has a column for each. In Python
    model.features gives the same.
    """
    images, labels, names, words = originals.load(run, seed)
    groups, batch = "all" if groups is None else groups, min(len(images), run.config.train.batch_size)
    rows = run.model.features(images, groups, pool, labels, batch_size=batch).numpy()
    columns = feature_names(run.model.plan, groups, pool)
    return Made(f"{len(columns):,} features of {words}", names=names, latents=rows, labels=labels, columns=columns)


def decode(
    run: Run,
    *,
    input: Annotated[str, "File of latents, .npz."],
    seed: Seed = 1,
    labels: Labels = None,
    columns: Columns = None,
    kept_groups: KeptOrAll = None,
    temperature: Temperature = 1.0,
) -> Made:
    """Turns latents into images: from `nvae-generate encode`, or what a program has made of them.

        nvae-generate decode --workdir=runs/digits --input=latents.npz --output=images.png
        nvae-generate decode --workdir=runs/digits --input=latents.npz --kept_groups=2 --output=images/

    An image is the likelihood's mean. With --kept_groups the latents of the other groups are drawn from the prior at
    --temperature. Files of a folder have the names that are in the file of latents.
    """
    from nvae_tf.generation.sampling import checked_kept_groups, generate_images

    latents, names, classes, _ = load_latents(input, run.model)
    latents, count = latents[: checked_kept_groups(kept_groups, run.model.plan)], len(latents[0])
    given = {"latents": latents, "labels": classes if labels is None else _classes(run, labels, count)}
    images = generate_images(run.model, count, temperature, seed, progress=_progress(count), **given)
    names, text = names or _numbered("decoded", count), f"{counted(count, 'image')} of latents in {input}"
    options = {"columns": columns, "title": f"Images decoded from {input}"}
    return Made(text, images, names, ("samples", images), options)


def nearest(
    run: Run,
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
    is the mean squared difference of a pixel value in [0, 1] from the image as the model sees it.
    """
    from nvae_tf.data.pipeline import evaluation_batches, images_alone, iterate
    from nvae_tf.generation.sampling import generate_images, nearest_images

    spec = run.config.data_at(data_path)
    source = load_split(spec, split, StatusLine().report())
    if neighbors > source.count:
        raise ValueError(f"--neighbors={neighbors}: the {split} part has only {source.count:,} images")
    samples = generate_images(run.model, count, temperature, seed, labels=_classes(run, labels, count))
    batches = iterate(evaluation_batches(source, images_alone(spec), 256, seed), source)
    numbers, distances, images = nearest_images(samples, batches, neighbors, _progress(source.count))
    text = f"{count:,} samples, each before the nearest of {source.count:,} images of the {split} part"
    figure = "nearest", samples, images, distances, "training" if split == "train" else split
    metrics = {"step": run.step, "seed": seed, "temperature": temperature, "split": split}
    metrics |= {"numbers": numbers.tolist(), "distances": distances.tolist()}
    return Made(text, samples, _numbered("sample", count), figure, metrics=metrics)


TASKS = {
    task.__name__: task
    for task in (sample, reconstruct, interpolate, vary, direction, restore, denoise, encode, features, decode, nearest)
}


def task_parameters(task: Callable[..., Made]) -> dict[str, inspect.Parameter]:
    """The parameters of a task without the run, with the fields of `Originals` in place of `originals`."""
    parameters = dict(inspect.signature(task).parameters)
    if "originals" in parameters:
        parameters = dict(inspect.signature(Originals).parameters) | parameters
    return {name: parameter for name, parameter in parameters.items() if name not in ("run", "originals")}


def task_arguments(task: Callable[..., Made], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a task without the run, made from values for `task_parameters`."""
    if "originals" not in inspect.signature(task).parameters:
        return dict(values)
    fields = inspect.signature(Originals).parameters
    originals = Originals(**{name: value for name, value in values.items() if name in fields})
    return {name: value for name, value in values.items() if name not in fields} | {"originals": originals}


def provenance(task: Callable[..., Made], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a figure's `Provenance` that follow from values for `task_parameters`."""
    parameters = task_parameters(task)
    data = [f"{values['split']} images"] if "split" in values and not values.get("input") else []
    for name in _SHOWN:
        if name in values and values[name] != parameters[name].default:
            data.append(f"{name} {','.join(map(str, np.ravel(values[name])))}")
    draws = values.get("kept_groups", 0) is not None
    temperature = values.get("temperature") if draws else None
    return {"seed": values["seed"], "temperature": temperature, "data": ", ".join(data) or None}


def _classes(run: Run, labels: Labels, count: int) -> np.ndarray | None:
    """The numbers of classes that are given by number or name, taken in turn, int32 `[count]`; None without labels."""
    if labels is None:
        return None
    names, numbers = run.class_names, range(-1, run.config.model.num_classes)
    # A text that is the number of a class and the name of another means the number.
    known = {name: number for number, name in enumerate(names or ())} | {str(number): number for number in numbers}
    listed = f"classes 0 to {numbers[-1]} ({names[0]} to {names[-1]})" if names else "no classes"
    given = [str(label) for label in np.atleast_1d(labels).tolist()]
    for label in given:
        if label not in known:
            hint = configuration.did_you_mean(label, names)
            raise ValueError(f"--labels: {label} is no class of this model, which has {listed}{hint}")
    return np.resize(np.array([known[label] for label in given], np.int32), count)


def _check_one_of(**values: Any) -> None:
    given = [f"--{name}" for name, value in values.items() if value is not None]
    configuration.check(len(given) <= 1, f"{' and '.join(given)}: give one of them")


def _listed(places: Places) -> list[str]:
    return [str(place) for place in ([places] if isinstance(places, str | os.PathLike) else places)]


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}_{number:05d}" for number in range(count)]


def _progress(total: int) -> Callable[[int], None]:
    """A function that shows how many images are done, now and then."""
    return ImageProgress(StatusLine().report().progress, total).show
