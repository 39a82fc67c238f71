"""What folding does for an export: operations of a request, seconds of a batch of samples, size on disk.

    python -m benchmarks.exported_sampling --preset=mnist [--batch_size=16] [--rounds=9] [--json=FILE]

Four ways to draw the same samples take turns in one process, with an untrained model of the preset's architecture (time
does not depend on the weights):

    keras      the model in Python: its sampling as one traced graph, weights as they are trained
    unfolded   a SavedModel of the same graph, run by TensorFlow's session loader, as TensorFlow Serving does
    folded     the SavedModel as it is exported: weight norm and batch norm folded into kernels and biases
    bfloat16   the same with kernels kept in half the bytes

Operations are counted in the SavedModel, calls of functions as often as they are made, constants and reading of
variables aside. Let nothing else run meanwhile.
"""

import argparse
import contextlib
import functools
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.interleaved import note_uneven, say, take_turns
from benchmarks.workloads import untrained_model

PRESETS = ("digits", "mnist", "cifar10")
# Nodes that compute nothing.
_FREE = ("Const", "Identity", "IdentityN", "NoOp", "Placeholder", "ReadVariableOp", "VarHandleOp")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from nvae_tf.generation.sampling import BATCH_SIZE, ImageGenerator
    from nvae_tf.layers import FoldedPass, ForwardPass, folded_weights

    preset, batch_size = options.preset, options.batch_size
    if batch_size % BATCH_SIZE:
        raise SystemExit(f"--batch_size={batch_size}: must be a multiple of {BATCH_SIZE}, what the model draws at once")
    model = untrained_model(preset)
    forwards: dict[str, Callable] = {"unfolded": ForwardPass}
    for name, dtype in (("folded", "float32"), ("bfloat16", "bfloat16")):
        folded = folded_weights(model.stacks, dtype)
        forwards[name] = functools.partial(FoldedPass, traced_inline=True, folded=folded)
    generator, operations, stored = ImageGenerator(model), {}, {}
    ways: dict[str, Callable] = {"keras": lambda: generator.generate(batch_size)}
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, forward in forwards.items():
            say(f"{preset}: writing {name}")
            folder = place / name
            write_sampling(model, forward, folder)
            stored[name] = (folder / "variables" / "variables.data-00000-of-00001").stat().st_size
            operations[name] = operations_of(folder, "sample")
            ways[name] = sampling_session(stack, folder, batch_size)
        seconds = take_turns(ways, options.rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "preset": preset,
        "batch_size": batch_size,
        "seconds": medians,
        "ratio_to_keras": {name: median / medians["keras"] for name, median in medians.items()},
        "operations": operations,
        "weights_bytes": stored,
        "every_seconds": seconds,
    }


def write_sampling(model: Any, forward: Callable, folder: pathlib.Path) -> None:
    """Writes a SavedModel with the signature `sample` alone."""
    import keras
    import tensorflow as tf

    from nvae_tf.serving.signatures import Signatures

    signatures = Signatures(model, forward)
    archive = keras.export.ExportArchive()
    archive.add_endpoint("sample", signatures.sample, signatures.input_specs("sample"))
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    archive.write_out(str(folder), options=options, verbose=False)


def sampling_session(stack: contextlib.ExitStack, folder: pathlib.Path, batch_size: int) -> Callable[[], Any]:
    import tensorflow as tf

    # With the rewriting of graphs, as TensorFlow Serving has it: a session takes over what `configure_runtime` has set.
    config = tf.compat.v1.ConfigProto()
    session = stack.enter_context(contextlib.closing(tf.compat.v1.Session(graph=tf.Graph(), config=config)))
    loaded = tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], str(folder))
    definition = loaded.signature_def["sample"]
    image = definition.outputs["image"].name
    feed = {
        definition.inputs["seed"].name: np.arange(batch_size, dtype=np.int64) << 32,
        definition.inputs["temperature"].name: np.ones(batch_size, np.float32),
    }
    return lambda: session.run(image, feed)


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
    parser = results.benchmark_parser("exported_sampling", __doc__)
    parser.add_argument("--preset", choices=PRESETS, required=True, help="whose architecture")
    parser.add_argument("--batch_size", type=results.at_least(1), default=16, help="samples at once (default: 16)")
    parser.add_argument("--rounds", type=results.at_least(1), default=9, help="timed rounds (default: 9)")
    note_uneven(results.run(parser.parse_args(arguments), measure)["every_seconds"])


if __name__ == "__main__":
    main()
