"""How fast a model is evaluated: the importance-weighted bound against the obvious way, and samples.

    python -m benchmarks.evaluation --preset=mnist [--importance_samples=100] [--rounds=3] [--json=FILE]

Three workloads take turns in one process, on a batch of random images and an untrained model of the preset's
architecture (time does not depend on the weights):

    bound     the bound with K samples an image, as `train.evaluate --metrics=iw` measures it: the bottom-up pass once,
              several samples in one top-down pass
    naive     K whole passes of the batch, bottom-up and top-down, one after the other; each a call of one traced graph
    sampling  as many images from the prior as are in a batch of `train.generate`

The figure to compare is the ratio of bound to naive; the issue of this project asks for at most 0.6. Let nothing else
run meanwhile.
"""

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.command_line import at_least_one, benchmark_parser, tell_uneven, write_figures
from benchmarks.train_step import describe_machine, say

BATCH_SIZES = {"digits": 60, "mnist": 16, "cifar10": 4}


def measure(preset: str, importance_samples: int, rounds: int) -> dict[str, Any]:
    """Runs the workloads in turn and returns the figures, in seconds and images a second, as `--json` writes them."""
    import tensorflow as tf

    machine = describe_machine()
    workloads = _workloads(preset, importance_samples)
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for name, workload in workloads.items():
        say(f"{preset}: building the graph of {name}")
        workload()
    for number in range(1, rounds + 1):
        for name, workload in workloads.items():
            start = time.perf_counter()
            count = workload()
            seconds[name].append((time.perf_counter() - start) / count)
        say(
            f"round {number} of {rounds}: " + ", ".join(f"{name} {s[-1]:.3f} s an image" for name, s in seconds.items())
        )
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "preset": preset,
        "batch_size": BATCH_SIZES[preset],
        "importance_samples": importance_samples,
        "ratio": medians["bound"] / medians["naive"],
        "images_per_second": {name: 1.0 / median for name, median in medians.items()},
        "every_seconds_an_image": seconds,
        "tensorflow": tf.__version__,
        "machine": machine,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _workloads(preset: str, importance_samples: int) -> dict[str, Callable[[], int]]:
    """Each does its work once and returns the number of images."""
    import numpy as np
    import tensorflow as tf

    from benchmarks.train_step_worker import random_images
    from nvae_tf import presets
    from nvae_tf.config import experiment_config
    from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
    from nvae_tf.generation.sampling import ImageGenerator
    from nvae_tf.models.latents import image_seeds, noise_of_samples
    from nvae_tf.models.nvae import NVAE
    from nvae_tf.objective import log_posterior_and_prior
    from nvae_tf.training.strategy import configure_runtime

    configure_runtime()

    config = experiment_config(presets.preset(preset))
    model, batch_size = NVAE(config.model), BATCH_SIZES[preset]
    images = random_images(config.model, batch_size)
    evaluator = LikelihoodEvaluator(model, batch_size, importance_samples)
    generator = ImageGenerator(model)
    seeds = image_seeds(0, batch_size)

    @tf.function(autograph=False)
    def log_weight(images: tf.Tensor, sample: tf.Tensor) -> tf.Tensor:
        decoded = model.infer(images, noise_of_samples(model.plan.latent_shapes(), seeds, sample, 1))
        log_q, log_p = log_posterior_and_prior(decoded.latents)
        return decoded.likelihood.log_prob(images) + log_p - log_q

    def bound() -> int:
        evaluator.evaluate_batch(images, 0, 0)
        return batch_size

    def naive() -> int:
        weights = [log_weight(images, tf.constant(sample)).numpy() for sample in range(importance_samples)]
        np.log(np.mean(np.exp(weights - np.max(weights, axis=0)), axis=0))
        return batch_size

    def sampling() -> int:
        return len(generator.generate(16))

    return {"bound": bound, "naive": naive, "sampling": sampling}


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    samples, rate = result["importance_samples"], result["images_per_second"]
    machine = result["machine"]
    return "\n".join(
        [
            f"{result['preset']}, batch {result['batch_size']}, {result['date']}, TensorFlow {result['tensorflow']}",
            f"bound with {samples} samples       {rate['bound']:10.3f} images/s",
            f"{samples} whole passes            {rate['naive']:10.3f} images/s",
            f"  ratio of their times       {result['ratio']:10.3f}",
            f"sampling                     {rate['sampling']:10.2f} images/s",
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_at_start']:.1f}",
        ]
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser("evaluation", __doc__)
    parser.add_argument("--preset", choices=sorted(BATCH_SIZES), required=True, help="whose architecture")
    parser.add_argument("--importance_samples", type=at_least_one, default=100, help="K of the bound (default: 100)")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="timed rounds (default: 3)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    options = parse_arguments(arguments)
    result = measure(options.preset, options.importance_samples, options.rounds)
    print(table(result))
    tell_uneven(result["every_seconds_an_image"])
    write_figures(result, options.json)


if __name__ == "__main__":
    main()
