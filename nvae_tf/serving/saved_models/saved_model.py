"""Writes a model as one version of a SavedModel, and checks it before anyone can see it."""

import os
import pathlib
from typing import NamedTuple

import tensorflow as tf

from nvae_tf.config import check_choice
from nvae_tf.layers import FoldedPass, folded_weights
from nvae_tf.models import NVAE
from nvae_tf.serving.saved_models import extra_assets
from nvae_tf.serving.saved_models.choices import WEIGHTS
from nvae_tf.serving.saved_models.run_source import Origin
from nvae_tf.serving.saved_models.verification import Record, difference, recorded, verified
from nvae_tf.serving.saved_models.version_folder import new_version
from nvae_tf.serving.signatures import Signatures

# Half-precision weights that move a number by more of the largest of its tensor are not published.
LARGEST_DIFFERENCE = 0.2


class Exported(NamedTuple):
    """A version that has been published.

    Attributes:
      folder: the version's.
      largest_difference: how far its numbers are from the model's with float32 weights, relative to the largest of
        each output.
    """

    folder: pathlib.Path
    largest_difference: float


def export_saved_model(
    model: NVAE,
    output: str | os.PathLike,
    version: int = 1,
    weights: str = "float32",
    origin: Origin | None = None,
) -> Exported:
    """Writes `output/version` with the signatures of `nvae_tf.serving.signatures`, as TensorFlow Serving loads it.

    In it are the weights that the signatures use, with weight normalization and batch norm folded into kernels and
    biases: no optimizer state, no Python, no path of this machine. `assets.extra/` has the settings (`config.json`),
    the signatures (`signatures.json`), the layout of a flat latent (`latents.json`), where the weights come from
    (`source.json`), the model's scores (`evaluation.json`), a request for every signature, with which a server warms
    up, and numbers of the model for `export.verify`.

    Before it appears it is run in a process that can't import this package, and compared to rounding: with the model
    itself for float32 weights, else with the model whose weights are rounded in the same way, which in turn may not
    differ from the model by more than `LARGEST_DIFFERENCE`.

    Args:
      model: the model, with its weights.
      output: the folder of all versions; made if it is missing.
      version: a whole number from 1.
      weights: how kernels are kept, one of `WEIGHTS`; half precision halves the file and the memory, not the time.
      origin: where the weights come from.

    Raises:
      ValueError: the version exists, `output` holds something else than versions, or the export gives other
        numbers than the model. Nothing is written then.
    """
    check_choice("weights", weights, WEIGHTS)
    output = pathlib.Path(output)
    folded = folded_weights(model.stacks, weights)
    # Inline: TensorFlow does not rewrite functions that are called, and fuses bias and swish with what is before them.
    signatures = Signatures(model, lambda: FoldedPass(traced_inline=True, folded=folded))
    with new_version(output, version) as folder:
        of_model = recorded(Signatures(model))
        of_export = recorded(signatures, of_model.inputs)
        differences = _differences(of_export, of_model)
        _check_rounding(differences, weights)
        # A server takes no gradients: those of custom operations would be traced and stored for nothing.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        signatures.archive().write_out(str(folder), options=options, verbose=False)
        record = of_model if weights == "float32" else of_export
        rounding = {"weights": weights, "difference_from_model": differences}
        extra_assets.write_all(folder, output.resolve().name, signatures, record, origin or Origin(), rounding)
        try:
            verified(folder)
        except ValueError as error:
            raise ValueError(f"{error}. It was not published") from error
    return Exported(output / str(version), max(differences.values()))


def _differences(of_export: Record, of_model: Record) -> dict[str, float]:
    """How far every output is from the model's, for the same inputs, relative to its largest value."""
    return {name: difference(of_export.outputs[name], array) for name, array in of_model.outputs.items()}


def _check_rounding(differences: dict[str, float], weights: str) -> None:
    worst = max(differences, key=differences.get)
    if differences[worst] > LARGEST_DIFFERENCE:
        raise ValueError(
            f"weights={weights} change too much of what the model gives: {worst} is off by {differences[worst]:.2g} of "
            f"its largest value, {LARGEST_DIFFERENCE:g} is allowed; export float32. It was not published"
        )
