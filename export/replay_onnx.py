"""Runs .onnx files with onnxruntime and NumPy alone, for nvae-export-onnx, which compares the numbers."""

import pathlib

import numpy as np
import onnxruntime


def replay(inputs: str, results: str, folder: str) -> None:
    """Writes `FILE/OUTPUT` for the `FILE/INPUT` of a .npz file; the first row goes alone, then the others."""
    outputs = {}
    with np.load(inputs) as given:  # written by the caller
        for file in pathlib.Path(folder).glob("*.onnx"):
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            feeds = {each.name: given[f"{file.stem}/{each.name}"] for each in session.get_inputs()}
            pieces = (np.s_[:1], np.s_[1:])
            parts = [session.run(None, {name: array[rows] for name, array in feeds.items()}) for rows in pieces]
            for each, *arrays in zip(session.get_outputs(), *parts, strict=True):
                outputs[f"{file.stem}/{each.name}"] = np.concatenate(arrays)
    np.savez(results, **outputs)
