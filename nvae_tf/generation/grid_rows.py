"""The order in which images stand in the grids of `train.generate`."""

import numpy as np


def pairs_of_rows(originals: np.ndarray, reconstructions: np.ndarray, columns: int) -> np.ndarray:
    """Images of a grid `[count, height, width, channels]`: each original stands above its reconstruction."""
    missing = -len(originals) % columns
    rows = []
    for images in (originals, reconstructions):
        filled = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)], constant_values=0.5)
        rows.append(filled.reshape(-1, columns, *images.shape[1:]))
    return np.stack(rows, axis=1).reshape(-1, *originals.shape[1:])


def rows_of_path(path: np.ndarray, steps: int) -> np.ndarray:
    """Images of a grid of `steps` + 1 columns: a row begins with the picture that the row before ends with."""
    return np.concatenate([path[first : first + steps + 1] for first in range(0, len(path) - 1, steps)])
