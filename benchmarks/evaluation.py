"""How fast a model is evaluated: the importance-weighted bound against the obvious way, and samples.

    python -m benchmarks.evaluation --preset=mnist [--importance_samples=100] [--rounds=3] [--json=FILE]

Three workloads take turns in one process, on a batch of random images and an untrained model of the preset's
architecture (time does not depend on the weights):

    bound     the bound with K samples an image, as `train.evaluate --metrics=iw` measures it: the bottom-up pass once,
              several samples in one top-down pass
    naive     K complete passes of the batch, bottom-up and top-down, one after the other; each a call of one graph
    sampling  as many images from the prior as are in a batch of `train.generate`

Compare the ratio of bound to naive; the aim is at most 0.6. Let nothing else run meanwhile.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks import results
from benchmarks.interleaved import note_uneven, take_turns
from benchmarks.workloads import BATCH_SIZES, SAMPLES_A_BATCH, random_images, untrained_model


def measure(options: argparse.Namespace) -> dict[str, Any]:
    preset = options.preset
    counts = {"bound": BATCH_SIZES[preset], "naive": BATCH_SIZES[preset], "sampling": SAMPLES_A_BATCH}
    turns = take_turns(_workloads(preset, options.importance_samples), options.rounds)
    seconds = {name: [time / counts[name] for time in times] for name, times in turns.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "preset": preset,
        "batch_size": BATCH_SIZES[preset],
        "importance_samples": options.importance_samples,
        "ratio": medians["bound"] / medians["naive"],
        "images_per_second": {name: 1.0 / median for name, median in medians.items()},
        "every_seconds_an_image": seconds,
    }


def _workloads(preset: str, importance_samples: int) -> dict[str, Callable[[], Any]]:
    import numpy as np
    import tensorflow as tf

    from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
    from nvae_tf.generation.sampling import ImageGenerator
    from nvae_tf.models.latents import image_seeds, noise_of_samples
    from nvae_tf.objective import log_posterior_and_prior

    model, batch_size = untrained_model(preset), BATCH_SIZES[preset]
    images = random_images(model.config, batch_size)
    evaluator, generator = LikelihoodEvaluator(model, batch_size, importance_samples), ImageGenerator(model)
    seeds = image_seeds(0, batch_size)

    @tf.function(autograph=False)
    def log_weight(images: tf.Tensor, sample: tf.Tensor) -> tf.Tensor:
        decoded = model.inference_pass(images, noise_of_samples(model.plan.latent_shapes(), seeds, sample, 1))
        log_q, log_p = log_posterior_and_prior(decoded.latents)
        return decoded.likelihood.log_prob(images) + log_p - log_q

    def naive() -> Any:
        weights = [log_weight(images, tf.constant(sample)).numpy() for sample in range(importance_samples)]
        return np.log(np.mean(np.exp(weights - np.max(weights, axis=0)), axis=0))

    return {
        "bound": lambda: evaluator.evaluate_batch(images, 0, 0),
        "naive": naive,
        # The generator does not keep the model alive.
        "sampling": lambda model=model: generator.generate(SAMPLES_A_BATCH),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("evaluation", __doc__)
    parser.add_argument("--preset", choices=("cifar10", "digits", "mnist"), required=True, help="whose architecture")
    parser.add_argument("--importance_samples", type=results.at_least(1), default=100, help="K of the bound (100)")
    parser.add_argument("--rounds", type=results.at_least(1), default=3, help="timed rounds (default: 3)")
    note_uneven(results.run(parser.parse_args(arguments), measure)["every_seconds_an_image"])


if __name__ == "__main__":
    main()
