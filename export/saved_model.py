"""Writes a model as one version of a SavedModel, and checks it before anyone can see it."""

import json
import os
import pathlib
from collections.abc import Mapping

import tensorflow as tf

from export.signatures import Signatures
from export.verification import check_same_numbers
from export.version_folder import new_version
from nvae_tf.config import config_to_dict
from nvae_tf.models import NVAE


def export_saved_model(
    model: NVAE,
    output: str | os.PathLike,
    version: int = 1,
    source: Mapping[str, str | int] | None = None,
) -> pathlib.Path:
    """Writes `output/version` with the signatures of `export.signatures`, as TensorFlow Serving loads it.

    In it are the weights that the signatures use: no optimizer state, no Python, no path of this machine.
    `assets.extra/` has the model's settings (`config.json`), the layout of a flat latent (`latents.json`) and where the
    weights come from, if that is given (`source.json`).

    Before it appears it is run in a process that can't import this package, and compared with the model.

    Args:
      model: the model, with its weights.
      output: the folder of all versions; made if it is missing.
      version: a whole number from 1.
      source: what to note of where the weights come from, e.g. the step.

    Returns:
      The version's folder.

    Raises:
      ValueError: the version exists, `output` holds something else than versions, or the export gives other
        numbers than the model. Nothing is written then.
    """
    output = pathlib.Path(output)
    signatures = Signatures(model)
    # A server takes no gradients: those of custom operations would be traced and stored for nothing.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with new_version(output, version) as folder:
        signatures.archive().write_out(str(folder), options=options, verbose=False)
        _write_extra_assets(folder / "assets.extra", signatures, source)
        check_same_numbers(folder, signatures)
    return output / str(version)


def _write_extra_assets(folder: pathlib.Path, signatures: Signatures, source: Mapping[str, str | int] | None) -> None:
    """Writes what a user of the export may want to know."""
    folder.mkdir()
    # The model's settings alone: those of a run may name a folder of this machine.
    _write_json(folder / "config.json", {"model": config_to_dict(signatures.model.config)})
    layout = {
        "order": "group after group, the top group first; each [height, width, channels], row-major",
        "shapes": [list(shape) for shape in signatures.latent_shapes],
        "total": sum(signatures.latent_sizes),
    }
    _write_json(folder / "latents.json", layout)
    if source is not None:
        _write_json(folder / "source.json", dict(source))


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
