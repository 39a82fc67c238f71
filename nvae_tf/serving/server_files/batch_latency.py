"""How long an export takes for batches of 1, 2, 4, ... rows, loaded as a server loads it."""

import pathlib
import runpy
import statistics
import time
from collections.abc import Callable

import numpy as np

from nvae_tf.files import beside_package
from nvae_tf.serving.clients.signature_specs import SignatureSpec, signature_specs
from nvae_tf.serving.server_files.batching_fit import MOST_ROWS, BatchTiming, largest_worthwhile

BATCHES = (1, 2, 4, 8, 16, 32, MOST_ROWS)
# A median is over so many runs; over fewer, not below the least, once they have taken so long.
MOST_RUNS, LEAST_RUNS, ENOUGH_SECONDS = 25, 3, 2.0
# The signature of which a server of a generative model is asked most.
USUAL_SIGNATURE = "sample"


def measure_batches(folder: pathlib.Path, longest_seconds: float) -> tuple[str, list[BatchTiming]]:
    """Runs growing batches until one takes too long or a larger one does not pay, as `largest_worthwhile` says.

    Args:
      folder: one version of an export.
      longest_seconds: how long a batch of several rows may take.

    Returns:
      The signature that was run, `sample` or else the first that has images, and the timings; the last one may be
      of the batch that does not pay.

    Raises:
      ValueError: the export can't be loaded or run, or has no signature for images.
    """
    try:
        session_of = runpy.run_path(str(beside_package("export") / "run_saved_model.py"))["session_of"]
        with session_of(str(folder)) as run:
            signature, spec = _image_signature(folder)
            timings: list[BatchTiming] = []
            for rows in BATCHES:
                inputs = _inputs(spec, rows)
                timings.append(BatchTiming(rows, _median_seconds(run, signature, inputs)))
                if largest_worthwhile(timings, longest_seconds) < rows:
                    # Another program may have been in the way: once more before larger batches are ruled out.
                    again = BatchTiming(rows, _median_seconds(run, signature, inputs))
                    timings[-1] = min(timings[-1], again)
                    if largest_worthwhile(timings, longest_seconds) < rows:
                        break
        return signature, timings
    except Exception as error:  # TensorFlow and protobuf have many kinds for a damaged file
        # Its first line may say no more than that the graph could not be run.
        lines = [line for line in str(error).splitlines() if line.strip() and "Graph execution error" not in line]
        reason = lines[0] if lines else type(error).__name__
        raise ValueError(f"{folder}: its batches can't be measured ({reason}); is the export whole?") from error


def _median_seconds(run: Callable[..., dict[str, np.ndarray]], signature: str, inputs: dict[str, np.ndarray]) -> float:
    run(signature, **inputs)  # the first run optimizes the graph
    seconds: list[float] = []
    while len(seconds) < MOST_RUNS and (len(seconds) < LEAST_RUNS or sum(seconds) < ENOUGH_SECONDS):
        start = time.perf_counter()
        run(signature, **inputs)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _image_signature(folder: pathlib.Path) -> tuple[str, SignatureSpec]:
    from tensorflow.core.protobuf import saved_model_pb2  # TensorFlow runs by now, see session_of

    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    specs = signature_specs(saved.meta_graphs[0].signature_def)
    for name in [USUAL_SIGNATURE, *specs]:
        if name in specs and "image" in {*specs[name].inputs, *specs[name].outputs}:
            return name, specs[name]
    raise ValueError("none of its signatures has an input or an output `image`")


def _inputs(spec: SignatureSpec, rows: int) -> dict[str, np.ndarray]:
    """Inputs that every signature takes: images and temperatures of 0.5, seeds 0, 1, 2, ..."""
    inputs = {}
    for name, tensor in spec.inputs.items():
        shape = (rows, *tensor.shape[1:])
        if tensor.dtype.startswith("int"):
            inputs[name] = np.arange(rows, dtype=tensor.dtype)
        else:
            inputs[name] = np.full(shape, 0.5, tensor.dtype)
    return inputs
