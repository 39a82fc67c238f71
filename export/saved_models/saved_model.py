"""Writes a model as one version of a SavedModel, and checks it before anyone can see it."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from export.saved_models import extra_assets
from export.saved_models.verification import Record, difference, recorded, verified
from export.saved_models.version_folder import new_version
from export.signatures import Signatures
from nvae_tf.layers import FoldedPass, folded_weights
from nvae_tf.models import NVAE
from nvae_tf.setting_checks import check_choice

# In which kernels are kept; all is computed in float32.
WEIGHTS = ("float32", "bfloat16", "float16")


def export_saved_model(
    model: NVAE,
    output: str | os.PathLike,
    version: int = 1,
    weights: str = "float32",
    source: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes `output/version` with the signatures of `export.signatures`, as TensorFlow Serving loads it.

    In it are the weights that the signatures use, with weight normalisation and batch norm folded into kernels and
    biases: no optimizer state, no Python, no path of this machine. `assets.extra/` has the model's settings
    (`config.json`), the signatures (`signatures.json`), the layout of a flat latent (`latents.json`), where the weights
    come from (`source.json`), the model's scores (`evaluation.json`), a request for every signature, with which a
    server warms up, and numbers of the model for `export.verify`.

    Before it appears it is run in a process that can't import this package, and compared with the model: with the model
    itself for float32 weights, else with the model whose weights are rounded in the same way.

    Args:
      model: the model, with its weights.
      output: the folder of all versions; made if it is missing.
      version: a whole number from 1.
      weights: how kernels are kept, one of `WEIGHTS`; half precision halves the file and the memory, not the time.
      source: what to note of where the weights come from, e.g. the step.
      evaluation: the model's scores.

    Returns:
      The version's folder.

    Raises:
      ValueError: the version exists, `output` holds something else than versions, or the export gives other
        numbers than the model. Nothing is written then.
    """
    check_choice("weights", weights, WEIGHTS)
    output = pathlib.Path(output)
    folded = folded_weights(model.stacks, weights)
    signatures = Signatures(model, lambda: FoldedPass(folded=folded))
    with new_version(output, version) as folder:
        of_model = recorded(Signatures(model))
        record = of_model if weights == "float32" else recorded(signatures)
        # A server takes no gradients: those of custom operations would be traced and stored for nothing.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        signatures.archive().write_out(str(folder), options=options, verbose=False)
        rounding = {"weights": weights, "largest_difference_from_model": _largest_difference(record, of_model)}
        extra_assets.write_all(
            folder, output.resolve().name, signatures, record, dict(source or {}) | rounding, evaluation
        )
        try:
            verified(folder)
        except ValueError as error:
            raise ValueError(f"{error}. It was not published") from error
    return output / str(version)


def _largest_difference(record: Record, of_model: Record) -> float:
    """How far half-precision weights move a sampled picture, relative to its largest value; 0 for float32."""
    return difference(record.outputs["sample/image"], of_model.outputs["sample/image"])
