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
import datetime
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.command_line import at_least_one, benchmark_parser, tell_uneven, write_figures
from benchmarks.train_step import describe_machine, say

PRESETS = ("digits", "mnist", "cifar10")
# Nodes that compute nothing.
_FREE = ("Const", "Identity", "IdentityN", "NoOp", "Placeholder", "ReadVariableOp", "VarHandleOp")


def measure(preset: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Runs the four ways in turn and returns the figures, in seconds a batch, as `--json` writes them."""
    import tensorflow as tf

    from nvae_tf.config import experiment_config
    from nvae_tf.models.nvae import NVAE
    from nvae_tf.training.strategy import configure_runtime

    machine = describe_machine()
    configure_runtime()
    from nvae_tf import presets

    model = NVAE(experiment_config(presets.preset(preset)).model)
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways, operations, stored = {"keras": _keras(model, batch_size)}, {}, {}
        for name, forward in _forwards(model).items():
            say(f"{preset}: writing {name}")
            folder = place / name
            write_sampling(model, forward, folder)
            stored[name] = (folder / "variables" / "variables.data-00000-of-00001").stat().st_size
            operations[name] = operations_of(folder, "sample")
            ways[name] = sampling_session(stack, folder, batch_size)
        seconds = _seconds(ways, rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "preset": preset,
        "batch_size": batch_size,
        "seconds": medians,
        "ratio_to_keras": {name: median / medians["keras"] for name, median in medians.items()},
        "operations": operations,
        "weights_bytes": stored,
        "every_seconds": seconds,
        "tensorflow": tf.__version__,
        "machine": machine,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _forwards(model: Any) -> dict[str, Callable]:
    from nvae_tf.layers import FoldedPass, ForwardPass, folded_weights

    folded = {name: folded_weights(model.stacks, name) for name in ("float32", "bfloat16")}
    return {
        "unfolded": ForwardPass,
        "folded": lambda: FoldedPass(traced_inline=True, folded=folded["float32"]),
        "bfloat16": lambda: FoldedPass(traced_inline=True, folded=folded["bfloat16"]),
    }


def write_sampling(model: Any, forward: Callable, folder: pathlib.Path) -> None:
    """A SavedModel with the signature `sample` alone."""
    import keras
    import tensorflow as tf

    from nvae_tf.serving.signatures import Signatures

    signatures = Signatures(model, forward)
    archive = keras.export.ExportArchive()
    archive.add_endpoint("sample", signatures.sample, signatures.input_specs("sample"))
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    archive.write_out(str(folder), options=options, verbose=False)


def _keras(model: Any, batch_size: int) -> Callable[[], None]:
    from nvae_tf.generation.sampling import BATCH_SIZE, ImageGenerator

    if batch_size % BATCH_SIZE:
        raise SystemExit(f"--batch_size={batch_size}: must be a multiple of {BATCH_SIZE}, what the model draws at once")
    generator = ImageGenerator(model)
    return lambda: generator.generate(batch_size)


def sampling_session(stack: contextlib.ExitStack, folder: pathlib.Path, batch_size: int) -> Callable[[], None]:
    """Draws a batch with an export."""
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
    """How many operations a request of a signature is, see above."""
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


def _seconds(ways: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for draw in ways.values():
        draw()
    for number in range(1, rounds + 1):
        for name, draw in ways.items():
            start = time.perf_counter()
            draw()
            seconds[name].append(time.perf_counter() - start)
        say(f"round {number} of {rounds}: " + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items()))
    return seconds


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    machine = result["machine"]
    lines = [
        f"{result['preset']}, {result['batch_size']} samples a batch, {result['date']}, "
        f"TensorFlow {result['tensorflow']}",
        f"{'':10}{'seconds':>10}{'to keras':>10}{'operations':>12}{'weights MB':>12}",
    ]
    for name, seconds in result["seconds"].items():
        operations = result["operations"].get(name)
        stored = f"{result['weights_bytes'][name] / 1e6:.1f}" if operations else "-"
        lines.append(
            f"{name:10}{seconds:10.3f}{result['ratio_to_keras'][name]:10.2f}{operations or '-':>12}{stored:>12}"
        )
    lines.append(f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_at_start']:.1f}")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser("exported_sampling", __doc__)
    parser.add_argument("--preset", choices=PRESETS, required=True, help="whose architecture")
    parser.add_argument("--batch_size", type=at_least_one, default=16, help="samples at once (default: 16)")
    parser.add_argument("--rounds", type=at_least_one, default=9, help="timed rounds (default: 9)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    options = parse_arguments(arguments)
    result = measure(options.preset, options.batch_size, options.rounds)
    print(table(result))
    tell_uneven(result["every_seconds"])
    write_figures(result, options.json)


if __name__ == "__main__":
    main()
