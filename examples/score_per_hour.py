"""Which changes of the published recipe give a better score for the same processor time: the study of docs/recipes.md.

    python -m examples.score_per_hour run gray|binary|digits --output=FOLDER [--recipe=TEXT] [--seed=0] [--test]
    python -m examples.score_per_hour table --output=FOLDER [--figure=FILE]

A recipe is "published", or changes joined by "+", as "residual 0.3+latent 8+batch x0.5+length x0.75".
`python -m examples.score_per_hour RECIPE --help` says what a recipe measures.
"""

import collections
import json
import os
import pathlib
import time
from typing import Annotated, Any

import keras
import numpy as np

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
DATA = {"gray": ("fashion_mnist", _SMALL, 1800), "binary": ("mnist", _SMALL, 1800), "digits": ("digits", {}, 1000)}
# Of Fashion-MNIST; the validation images are the last ones of its training part.
TRAINING_IMAGES, VALIDATION_IMAGES = 9600, 2000
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
            changed[FACTORS[name]] = type(changed[FACTORS[name]])(changed[FACTORS[name]] * float(factor))
        else:
            check_choice("change", change, CHANGES)
            changed |= CHANGES[change]
    changed["train.steps"] = changed["train.steps"] * start["train.batch_size"] // changed["train.batch_size"]
    return experiment_config(preset, settings | changed | {"train.seed": seed})


def images_of(kind: str, is_test: bool, folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Images to train with, and those to score: of the test part, or a part that was split off for validation."""
    if kind == "digits":
        parts = {split: np.uint8(digits(split)[0] * 255) for split in ("train", "test")}
        return (parts["train"], parts["test"]) if is_test else (parts["train"][:-300], parts["train"][-300:])
    training, _ = fashion(folder, "train")
    scored = fashion(folder, "test", VALIDATION_IMAGES)[0] if is_test else training[-VALIDATION_IMAGES:]
    return training[:TRAINING_IMAGES], scored


def run(
    kind: Data,
    output: Output,
    recipe: Recipe = "published",
    seed: Annotated[int, "Of the weights, the images' order and all draws.", 0] = 0,
    test: Annotated[bool, "Score the test images, rather than validation images."] = False,
    images: Images = DEBIAN,
) -> dict[str, Any]:
    """Trains a model and scores it ten times on the way: the NELBO over the processor time of its training.

    The time is that of this process, on one thread, and includes the tracing of the graph, but not the scoring. At the
    end also the importance-weighted bound of 100 draws, of the first 200 images. Nats per image.
    """
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
            parts = model.score(to_score, per_group=True, batch_size=100)
            nelbo = float(np.mean(parts.reconstruction) + np.mean(np.sum(parts.kl, axis=1)))
            curve.append({"step": (epoch + 1) * (length[1] // 10), "processor_s": spent, "nelbo": nelbo})
            results.say(f"{kind}, {recipe}, seed {seed}: {curve[-1]}")

    model.fit(batches, steps_per_epoch=length[1] // 10, epochs=10, callbacks=[Scores()], verbose=0)
    bound = float(np.mean(model.score(to_score[:200], importance_samples=100, batch_size=100)))
    made = {"data": kind, "recipe": recipe, "seed": seed, "scored": "test" if test else "validation"}
    made |= {"bound_k100": bound, "curve": curve}
    pathlib.Path(output).mkdir(parents=True, exist_ok=True)
    file = pathlib.Path(output, f"{kind}-{recipe}-{seed}-{made['scored']}.json".replace(" ", "_"))
    results.write_json(results.stamp() | made, str(file))
    return made


if __name__ == "__main__":
    results.run_recipe("examples.score_per_hour", __doc__, run)
