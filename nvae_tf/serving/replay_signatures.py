"""Runs the signatures of a SavedModel on recorded inputs, where the package that made it can't be imported.

    python -I nvae_tf/serving/replay_signatures.py SAVED_MODEL INPUTS.npz OUTPUTS.npz

The files hold arrays called `signature/input` and `signature/output`. Every new export is checked by this.
"""

import importlib
import pathlib
import sys

import numpy as np


def main(saved_model: str, inputs: str, outputs: str) -> None:
    """Runs every signature that `inputs` has arrays for, and writes their outputs to `outputs`."""
    # An installed package can be imported from anywhere; None in its place makes that fail.
    sys.modules.update(dict.fromkeys(("nvae_tf", "export", "train", "configs")))
    package = pathlib.Path(__file__).resolve().parents[1]
    # Inside an installed package, beside it in a checkout.
    sys.path += [str(package / "export"), str(package.parent / "export")]
    run_saved_model = importlib.import_module("run_saved_model")

    arguments: dict[str, dict[str, np.ndarray]] = {}
    with np.load(inputs) as arrays:
        for name, array in arrays.items():
            signature, argument = name.split("/")
            arguments.setdefault(signature, {})[argument] = array
    results = {}
    with run_saved_model.session_of(saved_model) as run:
        for signature, values in arguments.items():
            for name, array in run(signature, **values).items():
                # PNG files as an array that needs no pickle to be stored.
                results[f"{signature}/{name}"] = array.astype("S") if array.dtype == object else array
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
