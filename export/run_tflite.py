"""Runs a signature of a .tflite model row by row, as a device does: without TensorFlow and without this package.

    python -I export/run_tflite.py MODEL.tflite SIGNATURE OUTPUT INPUTS.npz RESULTS.npz THREADS

A process of its own: the interpreter ends the process where a model goes beyond what its kernels can compute.
"""

import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main(model: str, signature: str, output: str, inputs: str, results: str, threads: str) -> None:
    """Writes the output of all rows, `[count, ...]`, as `output`, and the time of each, `[count]`, as `seconds`."""
    with np.load(inputs) as file:
        arrays = dict(file)
    count = len(next(iter(arrays.values())))
    rows = [{name: array[index : index + 1] for name, array in arrays.items()} for index in range(count)]
    run = Interpreter(model_path=model, num_threads=int(threads)).get_signature_runner(signature)
    # The first time, memory is allotted and weights are packed.
    run(**rows[0])
    outputs, seconds = [], []
    for row in rows:
        begun = time.perf_counter()
        result = run(**row)[output]
        seconds.append(time.perf_counter() - begun)
        outputs.append(result)
    np.savez(results, output=np.concatenate(outputs), seconds=seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
