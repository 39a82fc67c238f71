"""Which changes of the published recipe give a better score for the same processor time: the study of docs/recipes.md.

    python -m examples.score_per_hour run gray|binary|digits --output=FOLDER [--recipe=TEXT] [--seed=0] [--test]
    python -m examples.score_per_hour table --output=FOLDER [--figure=FILE]

A recipe is "published", or changes joined by "+", as "residual 0.3+latent 8+batch x0.5+length x0.75".
`python -m examples.score_per_hour run --help` and `table --help` say more.
"""

import collections
import json
import operator
import pathlib
import time
from collections.abc import Callable
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from benchmarks import results
from examples.digits import digits
from examples.fashion import DEBIAN, Images, fashion
from nvae_tf.config import ExperimentConfig, check_choice, resolve_lengths
from nvae_tf.data.pipeline import evaluation_batches, training_batches
from nvae_tf.data.sources import ArraySource
from nvae_tf.presets import experiment_config
from nvae_tf.runs.loading import model_for_training

# The preset, what else is set, and the steps of a run of full length.
_SMALL = {"size": "tiny", "train.batch_size": 32}
DATA = {"gray": ("fashion_mnist", _SMALL, 1500), "binary": ("mnist", _SMALL, 1500), "digits": ("digits", {}, 1000)}
# Of Fashion-MNIST; the validation images are the last ones of its training part.
TRAINING_IMAGES, SCORED_IMAGES = 9600, 1000
SCORES = 5  # of a run, the last one at its end
CHANGES = {
    "published": {},
    "residual 0.2": {"model.residual_scale": 0.2},
    "residual 0.3": {"model.residual_scale": 0.3},
    "residual 0.5": {"model.residual_scale": 0.5},
    "latent 8": {"model.num_latent_per_group": 8},
    "latent 4": {"model.num_latent_per_group": 4},
    "KL warm-up 0.1": {"objective.kl_anneal_portion": 0.1},
    "no regularization": {"objective.regularization": 0.0},
    "no squeeze-excite": {"model.squeeze_excite": False},
    "exact edges": {"model.exact_edges": True},
    "absolute posteriors": {"model.residual_distributions": False},
}
# What a change like "batch x0.5" multiplies; a run of other batches has as many images, and so other steps.
FACTORS = {"batch": "train.batch_size", "rate": "optimizer.learning_rate", "length": "train.steps"}
Data = Annotated[str, "Which images; may stand without --kind=.", *DATA]
Recipe = Annotated[str, "The changes of the published recipe."]
Output = Annotated[str, "Folder of the results, a file for each run."]


def settings_of(kind: str, recipe: str, seed: int) -> ExperimentConfig:
    """The settings of a run; ValueError for a recipe that is not one."""
    preset, settings, steps = DATA[kind]
    config = experiment_config(preset, settings)
    start = {"train.batch_size": config.train.batch_size, "optimizer.learning_rate": config.optimizer.learning_rate}
    changed = start | {"train.steps": steps}
    for change in recipe.split("+"):
        name, _, factor = change.partition(" x")
        if factor:
            check_choice("change", name, FACTORS)
            value = changed[FACTORS[name]] * float(factor)
            changed[FACTORS[name]] = value if name == "rate" else round(value)
        else:
            check_choice("change", change, CHANGES)
            changed |= CHANGES[change]
    steps = changed["train.steps"] * start["train.batch_size"] // max(1, changed["train.batch_size"])
    changed["train.steps"] = max(1, round(steps / SCORES)) * SCORES
    return experiment_config(preset, settings | changed | {"train.seed": seed})


def images_of(kind: str, is_test: bool, folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Images to train with, and those to score: of the test part, or a part that was split off for validation."""
    if kind == "digits":
        parts = {split: np.uint8(digits(split)[0] * 255) for split in ("train", "test")}
        return (parts["train"], parts["test"]) if is_test else (parts["train"][:-300], parts["train"][-300:])
    training, _ = fashion(folder, "train")
    scored = fashion(folder, "test", SCORED_IMAGES)[0] if is_test else training[-SCORED_IMAGES:]
    return training[:TRAINING_IMAGES], scored


def run(
    kind: Data,
    output: Output,
    recipe: Recipe = "published",
    seed: Annotated[int, "Of the weights, the images' order and all draws.", 0] = 0,
    test: Annotated[bool, "Score the test images, rather than validation images."] = False,
    images: Images = DEBIAN,
) -> dict[str, Any]:
    """Trains a model and scores it five times on the way: the NELBO over the processor time of its training.

    The time is that of this process, on one thread, and includes the tracing of the graph, but not the scoring. At the
    end also the importance-weighted bound of 100 draws, of the first 200 images. Nats per image.
    """
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    config = settings_of(kind, recipe, seed)
    training, scored = map(ArraySource, images_of(kind, test, images))
    length = training.count // config.train.batch_size, config.train.steps
    config = resolve_lengths(config, *length)
    model = model_for_training(config, *length).model
    to_score = np.concatenate(list(evaluation_batches(scored, config.data, 100, 0).as_numpy_iterator()))
    batches = training_batches(training, config.data, config.train.batch_size, seed)
    curve, spent = [], 0.0

    class Scores(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.start = time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            nonlocal spent
            spent += time.process_time() - self.start
            nelbo = float(np.mean(model.score(to_score, per_group=True, batch_size=100).nelbo))
            curve.append({"step": (epoch + 1) * (length[1] // SCORES), "processor_s": spent, "nelbo": nelbo})
            results.say(f"{kind}, {recipe}, seed {seed}: {curve[-1]}")

    model.fit(batches, steps_per_epoch=length[1] // SCORES, epochs=SCORES, callbacks=[Scores()], verbose=0)
    bound = float(np.mean(model.score(to_score[:200], importance_samples=100, batch_size=100)))
    made = {"data": kind, "recipe": recipe, "seed": seed, "scored": "test" if test else "validation"}
    made |= {"bound_k100": bound, "curve": curve}
    pathlib.Path(output).mkdir(parents=True, exist_ok=True)
    file = pathlib.Path(output, f"{kind}-{recipe}-{seed}-{made['scored']}.json".replace(" ", "_"))
    results.write_json(results.stamp() | made, str(file))
    return made


def table(
    output: Output,
    baseline: Annotated[str, "The recipe that the others are compared with."] = "published",
    figure: Annotated[str | None, "PNG file for the curves: their means, and the range over seeds."] = None,
) -> dict[str, Any]:
    """A row for each recipe: means over its seeds, and differences from the baseline, paired by seed.

    Of the baseline those seeds count that the recipe has too. `+-` is twice the standard error of the difference.
    `time` is the share of the baseline's processor time after which the mean curve is below the baseline's final NELBO,
    between two scores on a straight line.
    """
    runs = collections.defaultdict(dict)
    for file in sorted(pathlib.Path(output).glob("*.json")):
        made = json.loads(file.read_text())
        runs[made["data"], made["scored"], made["recipe"]][made["seed"]] = made
    rows = []
    for (kind, scored, recipe), by_seed in runs.items():
        reference = {seed: run for seed, run in runs.get((kind, scored, baseline), {}).items() if seed in by_seed}
        by_seed = {seed: by_seed[seed] for seed in reference}
        if not reference:
            raise ValueError(f"{output}: no run of {kind}, {baseline!r}, scored on {scored} images with that seed")
        (seconds, nelbos), (base_seconds, base_nelbos) = mean_curve(by_seed), mean_curve(reference)
        reached = np.interp(-base_nelbos[-1], -np.minimum.accumulate(nelbos), seconds, right=np.nan)
        row = {"data": kind, "scored": scored, "recipe": recipe, "seeds": len(by_seed)}
        row |= {"steps": by_seed[min(by_seed)]["curve"][-1]["step"], "processor_s": seconds[-1], "NELBO": nelbos[-1]}
        row |= {"NELBO, difference": difference(by_seed, reference, final_nelbo)}
        row |= {"bound": float(np.mean([made["bound_k100"] for made in by_seed.values()]))}
        row |= {"bound, difference": difference(by_seed, reference, operator.itemgetter("bound_k100"))}
        rows.append(row | {"time": float(reached / base_seconds[-1])})
    if figure:
        save_curves(runs, pathlib.Path(figure))
    return {"baseline": baseline, "rows": rows}


def mean_curve(by_seed: dict[int, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Processor seconds and NELBO at each of the scores, means over the seeds."""
    values = [[(point["processor_s"], point["nelbo"]) for point in made["curve"]] for made in by_seed.values()]
    return tuple(np.mean(values, axis=0).T)


def final_nelbo(made: dict[str, Any]) -> float:
    return made["curve"][-1]["nelbo"]


def difference(runs: dict[int, Any], others: dict[int, Any], value: Callable[[dict], float]) -> str:
    """The mean difference over the seeds of the others, and twice its standard error."""
    values = [value(runs[seed]) - value(others[seed]) for seed in others]
    error = f" +- {2.0 * np.std(values, ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{error}"


def save_curves(runs: dict[tuple, dict[int, Any]], file: pathlib.Path) -> None:
    """A panel for each set of scored images: the mean NELBO over the minutes of training, and the range over seeds."""
    panels = collections.defaultdict(dict)
    for (kind, scored, recipe), by_seed in runs.items():
        panels[f"{kind}, {scored} images"][recipe] = by_seed
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (title, recipes) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for recipe, by_seed in recipes.items():
            seconds, nelbos = mean_curve(by_seed)
            every = [[point["nelbo"] for point in made["curve"]] for made in by_seed.values()]
            (line,) = axes.plot(seconds[1:] / 60, nelbos[1:], marker=".", label=recipe)
            lowest, highest = np.min(every, axis=0)[1:], np.max(every, axis=0)[1:]
            axes.fill_between(seconds[1:] / 60, lowest, highest, alpha=0.2, color=line.get_color())
        axes.set(title=title, xlabel="processor time, minutes", ylabel="NELBO, nats per image")
        axes.legend(loc="upper right", fontsize="small")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    results.run_recipe("examples.score_per_hour", __doc__, run, table)
