"""The explorer's files: a page in `explorer/` that shows in a browser what a served model has learned, over REST alone.

Facts about a model that REST lacks are in `explorer.json` beside the page, made from the export's `assets.extra/`.
"""

import base64
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from nvae_tf import schemas
from nvae_tf.config import MOST_CLASSES, ExperimentConfig
from nvae_tf.errors import wrap_read_errors
from nvae_tf.files import atomic_write, read_arrays
from nvae_tf.generation.image_grid import pixels_of
from nvae_tf.schemas import Field
from nvae_tf.serving.outputs import ASSETS

PAGE, FACTS = "explorer.html", "explorer.json"
EXAMPLES = "examples.npz"
# What the page needs of `config.json` and `latents.json`.
_SIZES = ("image_height", "image_width", "image_channels")
_MODEL = dict.fromkeys(_SIZES, Field("whole number", (), 1, 2**16)) | {
    "num_bits": Field("whole number", (), 1, 8),
    "num_classes": Field("whole number", (), 0, MOST_CLASSES, optional=True),
}
_LAYOUT = {"shapes": schemas.LATENT_SHAPES["latent_shapes"]}
_FOLDER = pathlib.Path(__file__).with_name("explorer")


def write_explorer(folder: pathlib.Path, exports: Mapping[str, pathlib.Path]) -> None:
    """Writes the page into a folder, made if missing, for models that are served by these names.

    `exports` are the folders of one version each. ValueError for one that nvae-export has not made, or a damaged one.
    """
    models = {name: explorer_facts(export) for name, export in exports.items()}
    # `<` as an escape of JSON: nothing in the file can be taken for HTML.
    text = json.dumps({"models": models}, separators=(",", ":")).replace("<", "\\u003c")
    shutil.copytree(_FOLDER, folder, dirs_exist_ok=True)
    atomic_write(folder / FACTS, text + "\n")


def explorer_facts(export: pathlib.Path) -> dict[str, Any]:
    """Returns what the page must know of a version; ValueError where nvae-export has not made it, or it is damaged."""
    assets = export / ASSETS
    with wrap_read_errors(f"{assets}: not written by nvae-export, or damaged (", "); copy the export anew"):
        settings = (assets / "config.json").read_bytes()
        model = schemas.parsed(settings, {"model": Field(_MODEL)}, "config.json: ")["model"]
        layout = schemas.parsed((assets / "latents.json").read_bytes(), _LAYOUT, "latents.json: ")
        sizes, classes = [model[name] for name in _SIZES], list(map(str, range(model.get("num_classes", 0))))
        facts = {"image": sizes, "num_bits": model["num_bits"], "shapes": layout["shapes"], "classes": classes}
        if (assets / EXAMPLES).is_file():
            images = schemas.EXAMPLES["images"]._replace(shape=("count", *sizes))
            examples = read_arrays(assets / EXAMPLES, schemas.EXAMPLES | {"images": images})
            facts["examples"] = base64.b64encode(examples["images"].astype(np.uint8).tobytes()).decode()
            facts |= {name: examples[name].tolist() for name in ("labels", "classes") if name in examples}
    return facts


def example_images(config: ExperimentConfig) -> dict[str, np.ndarray] | None:
    """Returns 16 test images of a run (`chosen_images`): `images` uint8 `[count, H, W, C]`, as models see them.

    With labels also `labels` `[count]`, and `classes`, the names. None where the images can't be read here.
    """
    from nvae_tf.data.pipeline import chosen_images
    from nvae_tf.data.sources import load_split
    from nvae_tf.runs.loading import spec_to_read

    try:
        spec = spec_to_read(config, None)
        if spec.source == "tfds":
            from nvae_tf.data.tfds import tfds_is_prepared

            if not tfds_is_prepared(spec):
                return None  # an export downloads nothing
        source = load_split(spec, "test")
        images, labels, _ = chosen_images(source, spec, "test", at_most=16)
    except (OSError, ValueError):
        return None
    examples = {"images": pixels_of(images)}
    return examples if labels is None else examples | {"labels": labels, "classes": np.array(source.class_names)}


def cached_export(place: str) -> pathlib.Path:
    """Returns the folder of versions of a run's export, which is made unless the cache has an export by this code.

    `place` is what `nvae_tf.load` takes. The folder has the name of the model.
    """
    from nvae_tf.files import cache_folder
    from nvae_tf.runs import loading
    from nvae_tf.runs.checkpoint_files import checkpoint_sha256
    from nvae_tf.serving import saved_model

    run_folder = loading.find_run_folder(place)
    key = hashlib.sha256(checkpoint_sha256(loading.find_run(run_folder)[1]).encode())
    run_files = [run_folder / name for name in ("config.json", "evaluation.json", "prior.npz", "outliers.npz")]
    for file in (*sorted(pathlib.Path(__file__).parents[1].rglob("*.py")), *run_files):
        if file.is_file():
            key.update(file.read_bytes())
    name = os.path.basename(place.partition("@")[0] if place.startswith("hf://") else os.path.abspath(place))
    folder = cache_folder() / "exports" / key.hexdigest()[:16] / name
    if not (folder / "1" / "saved_model.pb").is_file():
        print(f"Exporting {place} to {folder}, once, half a minute or more ...", flush=True)
        run = loading.load_run(run_folder)
        saved_model.export_saved_model(run.model, folder, origin=saved_model.origin_of(run, run_folder))
    return folder
