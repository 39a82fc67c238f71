"""Ways to draw samples take turns in one process, with an untrained model: time depends on no weights.

    python -m benchmarks.alternatives --preset=mnist [--batch_size=16] [--rounds=9] [--json=FILE]

The model in Python (`keras`); a SavedModel of the same graph (`unfolded`), run by TensorFlow's session loader as
TensorFlow Serving does; as it is exported, weight norm and batch norm folded into kernels and biases (`folded`); and
that with kernels kept in half the bytes (`bfloat16`). Operations are counted in the SavedModel, calls of functions as
often as they are made, constants and reading of variables aside. Let nothing else run meanwhile.
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
    add("--preset", choices=workloads.PRESETS, required=True, help="whose architecture")
    add("--batch_size", type=count, default=16, help="samples at once (16)")
    add("--rounds", type=count, default=9, help="timed rounds (9)")
    results.run(parser.parse_args(arguments), exported_sampling)


if __name__ == "__main__":
    main()
