"""Several ways to the same result take turns in one process, with an untrained model: time depends on no weights.

    python -m benchmarks.alternatives evaluation --preset=mnist [--importance_samples=100] [--rounds=3] [--json=FILE]
    python -m benchmarks.alternatives exported_sampling --preset=mnist [--batch_size=16] [--rounds=9] [--json=FILE]

`evaluation`: `bound`, K samples an image as `train.evaluate --metrics=iw` draws them (one bottom-up pass, several
samples in one top-down pass); `naive`, K complete passes, one after the other; and sampling. The aim for the ratio of
bound to naive is at most 0.6.

`exported_sampling`: the model in Python (`keras`); a SavedModel of the same graph (`unfolded`), run by TensorFlow's
session loader as TensorFlow Serving does; as it is exported, weight norm and batch norm folded into kernels and biases
(`folded`); and that with kernels kept in half the bytes (`bfloat16`). Operations are counted in the SavedModel, calls
of functions as often as they are made, constants and reading of variables aside. Let nothing else run meanwhile.
"""

import argparse
import functools
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks import results, workloads
from benchmarks.results import say, take_turns

# Nodes that compute nothing.
_FREE = ("Const", "Identity", "IdentityN", "NoOp", "Placeholder", "ReadVariableOp", "VarHandleOp")


def evaluation(options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import tensorflow as tf

    from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
    from nvae_tf.generation.sampling import ImageGenerator
    from nvae_tf.models.latents import image_seeds, noise_of_samples
    from nvae_tf.objective import log_posterior_and_prior

    batch_size, count = workloads.BATCH_SIZES[options.preset], options.importance_samples
    model = workloads.untrained_model(options.preset)
    images, seeds = workloads.random_images(model.config, batch_size), image_seeds(0, batch_size)
    evaluator, generator = LikelihoodEvaluator(model, batch_size, count), ImageGenerator(model)

    @tf.function(autograph=False)
    def log_weight(sample: tf.Tensor) -> tf.Tensor:
        decoded = model.inference_pass(images, noise_of_samples(model.plan.latent_shapes(), seeds, sample, 1))
        log_q, log_p = log_posterior_and_prior(decoded.latents)
        return decoded.likelihood.log_prob(images) + log_p - log_q

    def naive() -> Any:
        weights = [log_weight(tf.constant(sample)).numpy() for sample in range(count)]
        return np.log(np.mean(np.exp(weights - np.max(weights, axis=0)), axis=0))

    ways = {"bound": lambda: evaluator.evaluate_batch(images, 0, 0), "naive": naive}
    turns = take_turns(ways | {"sampling": lambda: generator.generate(workloads.SAMPLES_A_BATCH)}, options.rounds)
    counts = {"bound": batch_size, "naive": batch_size, "sampling": workloads.SAMPLES_A_BATCH}
    seconds = {name: [time / counts[name] for time in times] for name, times in turns.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "preset": options.preset,
        "batch_size": batch_size,
        "importance_samples": count,
        "ratio": medians["bound"] / medians["naive"],
        "images_per_second": {name: 1.0 / median for name, median in medians.items()},
        "every_seconds_an_image": seconds,
    }


def exported_sampling(options: argparse.Namespace) -> dict[str, Any]:
    from nvae_tf.generation.sampling import BATCH_SIZE, ImageGenerator
    from nvae_tf.layers import FoldedPass, ForwardPass, folded_weights

    batch_size = options.batch_size
    if batch_size % BATCH_SIZE:
        raise SystemExit(f"--batch_size={batch_size}: must be a multiple of {BATCH_SIZE}, what the model draws at once")
    model = workloads.untrained_model(options.preset)
    forwards: dict[str, Callable] = {"unfolded": ForwardPass}
    for name, dtype in (("folded", "float32"), ("bfloat16", "bfloat16")):
        folded = folded_weights(model.stacks, dtype)
        forwards[name] = functools.partial(FoldedPass, traced_inline=True, folded=folded)
    generator, operations, stored = ImageGenerator(model), {}, {}
    ways: dict[str, Callable] = {"keras": lambda: generator.generate(batch_size)}
    with tempfile.TemporaryDirectory() as place:
        for name, forward in forwards.items():
            say(f"writing {name}")
            folder = pathlib.Path(place, name)
            workloads.write_sampling(model, forward, folder)
            stored[name] = (folder / "variables" / "variables.data-00000-of-00001").stat().st_size
            operations[name] = operations_of(folder, "sample")
            ways[name] = workloads.sampling_session(folder, batch_size)
    seconds = take_turns(ways, options.rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "preset": options.preset,
        "batch_size": batch_size,
        "seconds": medians,
        "ratio_to_keras": {name: median / medians["keras"] for name, median in medians.items()},
        "operations": operations,
        "weights_bytes": stored,
        "every_seconds": seconds,
    }


def operations_of(folder: pathlib.Path, signature: str) -> int:
    """How many operations a request of a signature is."""
    from tensorflow.core.protobuf import saved_model_pb2

    (saved,) = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs
    functions = {function.signature.name: function for function in saved.graph_def.library.function}
    # Every output is one of the call of the signature's function.
    output = next(iter(saved.signature_def[signature].outputs.values()))
    (call,) = (node for node in saved.graph_def.node if node.name == output.name.partition(":")[0])

    @functools.cache
    def count(name: str) -> int:
        total = 0
        for node in functions[name].node_def:
            called = [value.func.name for value in node.attr.values() if value.func.name in functions]
            total += sum(map(count, called)) if called else node.op not in _FREE
        return total

    return count(call.attr["f"].func.name)


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("alternatives", __doc__)
    add, count = parser.add_argument, results.at_least(1)
    add("what", choices=("evaluation", "exported_sampling"))
    add("--preset", choices=workloads.PRESETS, required=True, help="whose architecture")
    add("--importance_samples", type=count, default=100, help="evaluation: K of the bound (100)")
    add("--batch_size", type=count, default=16, help="exported_sampling: samples at once (16)")
    add("--rounds", type=count, help="timed rounds (3 of evaluation, 9 of exported_sampling)")
    options = parser.parse_args(arguments)
    measure, rounds = (evaluation, 3) if options.what == "evaluation" else (exported_sampling, 9)
    options.rounds = options.rounds or rounds
    results.run(options, measure)


if __name__ == "__main__":
    main()
