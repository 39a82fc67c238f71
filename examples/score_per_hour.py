"""Which changes of the published recipe give a better score for the same processor time: the study of docs/recipes.md.

    python -m examples.score_per_hour run DATA --output=FOLDER [--recipe=TEXT] [--seed=0] [--test]
    python -m examples.score_per_hour table --output=FOLDER [--figure=FILE]

DATA is gray, gray_all, binary or digits. A recipe is "published", or changes joined by "+", as
"residual 0.3+latent 8+batch x0.5+length x0.75".
`python -m examples.score_per_hour run --help` and `table --help` say more.
"""

import collections
import itertools
import json
import pathlib
import time
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from benchmarks import results
from examples.digits import digits
from examples.fashion import DEBIAN, Images, fashion
from nvae_tf.config import ExperimentConfig, check, check_choice, named_settings, resolve_lengths
from nvae_tf.data.pipeline import evaluation_batches, training_batches
from nvae_tf.data.sources import ArraySource
from nvae_tf.optimization import averaged_weights
from nvae_tf.presets import experiment_config
from nvae_tf.runs.loading import model_for_training

# The preset, and what else is set.
_SMALL = {"size": "tiny", "train.batch_size": 32, "train.steps": 1500}
DATA = {"gray": ("fashion_mnist", _SMALL), "binary": ("mnist", _SMALL), "digits": ("digits", {"train.steps": 1000})}
DATA["gray_all"] = DATA["gray"]
# Images of Fashion-MNIST. Validation images are the last ones of the training part; gray_all trains with all others.
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
    "average of weights": {"optimizer.ema_momentum": 0.99},
    "constant rate": {"optimizer.learning_rate_min": 0.01},
    "no weight decay": {"optimizer.weight_decay": 0.0},
    "bfloat16": {"train.precision": "mixed_bfloat16"},
}
# What a change like "batch x0.5" multiplies; a run of other batches has as many images, and so other steps.
FACTORS = {"batch": "train.batch_size", "rate": "optimizer.learning_rate", "length": "train.steps"}
Output = Annotated[str, "Folder of the results, a file for each run."]


def settings_of(kind: str, recipe: str, seed: int) -> ExperimentConfig:
    """The settings of a run; ValueError for a recipe that is not one."""
    preset, settings = DATA[kind]
    config = experiment_config(preset, settings)
    published = named_settings(config)
    changed = {name: published[name] for name in FACTORS.values()}
    for change in recipe.split("+"):
        name, _, factor = change.partition(" x")
        if factor:
            check_choice("change", name, FACTORS)
            value = changed[FACTORS[name]] * float(factor)
            changed[FACTORS[name]] = value if name == "rate" else round(value)
        else:
            check_choice("change", change, CHANGES)
            changed |= CHANGES[change]
    steps = changed["train.steps"] * config.train.batch_size // max(1, changed["train.batch_size"])
    changed["train.steps"] = max(1, round(steps / SCORES)) * SCORES
    return experiment_config(preset, settings | changed | {"train.seed": seed})


def images_of(kind: str, is_test: bool, folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Images to train with, and those to score: of the test part, or a part that was split off for validation."""
    if kind == "digits":
        parts = {split: np.uint8(digits(split)[0] * 255) for split in ("train", "test")}
        return (parts["train"], parts["test"]) if is_test else (parts["train"][:-300], parts["train"][-300:])
    training, _ = fashion(folder, "train")
    scored = fashion(folder, "test", SCORED_IMAGES)[0] if is_test else training[-SCORED_IMAGES:]
    return training[: -SCORED_IMAGES if kind == "gray_all" else TRAINING_IMAGES], scored


def run(
    kind: Annotated[str, "Which images; may stand without --kind=.", *DATA],
    output: Output,
    recipe: Annotated[str, "The changes of the published recipe."] = "published",
    seed: Annotated[int, "Of the weights, the images' order and all draws.", 0] = 0,
    test: Annotated[bool, "Score the test images, rather than validation images."] = False,
    images: Images = DEBIAN,
) -> dict[str, Any]:
    """Trains a model and scores it five times on the way: the NELBO over the processor time of its training.

    The time is this process's, on one thread, and includes the tracing of the graph, but not the scoring. At the
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
    curve, spent = [], 0.0
    for first_step, end in itertools.pairwise(np.linspace(0, config.train.steps, SCORES + 1).astype(int).tolist()):
        begun = time.process_time()
        batches = training_batches(training, config.data, config.train.batch_size, seed, first_step)
        model.fit(batches, steps_per_epoch=end - first_step, verbose=0)
        spent += time.process_time() - begun
        with averaged_weights(model):
            nelbo = float(np.mean(model.score(to_score, per_group=True, batch_size=100).nelbo))
        curve.append({"step": end, "processor_s": spent, "nelbo": nelbo})
        results.say(f"{kind}, {recipe}, seed {seed}: {curve[-1]}")
    with averaged_weights(model):
        bound = float(np.mean(model.score(to_score[:200], importance_samples=100, batch_size=100)))
    made = {"data": kind, "recipe": recipe, "seed": seed, "scored": "test" if test else "validation"}
    made |= {"bound_k100": bound, "curve": curve}
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
    runs: dict[tuple, dict] = collections.defaultdict(lambda: collections.defaultdict(dict))
    for file in sorted(pathlib.Path(output).glob("*.json")):
        made = json.loads(file.read_text())
        runs[made["data"], made["scored"]][made["recipe"]][made["seed"]] = made
    rows = []
    for (kind, scored), recipes in runs.items():
        for recipe, by_seed in recipes.items():
            seeds = sorted(by_seed.keys() & recipes.get(baseline, {}).keys())
            check(len(seeds) > 0, f"{output}: no run of {kind}, {baseline!r}, scored on {scored} images with that seed")
            own, others = ([recipes[name][seed] for seed in seeds] for name in (recipe, baseline))
            (seconds, nelbos), (base_seconds, base_nelbos) = curves(own), curves(others)
            bounds, base_bounds = (np.array([made["bound_k100"] for made in each]) for each in (own, others))
            lowest = np.minimum.accumulate(nelbos.mean(axis=1))
            row = {"data": kind, "scored": scored, "recipe": recipe, "seeds": len(seeds)}
            row |= {"steps": own[0]["curve"][-1]["step"], "processor_s": float(seconds[-1].mean())}
            row |= {"NELBO": float(nelbos[-1].mean()), "NELBO, difference": difference(nelbos[-1] - base_nelbos[-1])}
            row |= {"bound": float(bounds.mean()), "bound, difference": difference(bounds - base_bounds)}
            reached = np.interp(-base_nelbos[-1].mean(), -lowest, seconds.mean(axis=1), right=np.nan)
            rows.append(row | {"time": float(reached / base_seconds[-1].mean())})
    if figure:
        drawn = Figure(figsize=(5 * len(runs), 4), layout="constrained")
        panels = np.atleast_1d(drawn.subplots(1, len(runs)))
        for axes, ((kind, scored), recipes) in zip(panels, runs.items(), strict=True):
            for recipe, by_seed in recipes.items():
                seconds, nelbos = curves(by_seed.values())[:, 1:]
                minutes = seconds.mean(axis=1) / 60
                (line,) = axes.plot(minutes, nelbos.mean(axis=1), marker=".", label=recipe)
                axes.fill_between(minutes, nelbos.min(axis=1), nelbos.max(axis=1), alpha=0.2, color=line.get_color())
            axes.set(title=f"{kind}, {scored} images", xlabel="processor time, minutes", ylabel="NELBO, nats per image")
            axes.legend(loc="upper right", fontsize="small")
        drawn.savefig(figure, dpi=120)
    return {"baseline": baseline, "rows": rows}


def curves(runs: Iterable[dict[str, Any]]) -> np.ndarray:
    """Processor seconds and NELBO of runs at each of their scores: `[2, scores, runs]`."""
    return np.array([[(point["processor_s"], point["nelbo"]) for point in made["curve"]] for made in runs]).T


def difference(values: np.ndarray) -> str:
    """The mean of differences, one for each seed, and twice its standard error."""
    error = f" +- {2.0 * np.std(values, ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{error}"


if __name__ == "__main__":
    results.run_recipe("examples.score_per_hour", __doc__, run, table)
