"""The explorer's files: a page in `explorer/` that shows in a browser what a served model has learned, over REST alone.

What REST does not say of a model is in `explorer.json` beside the page, made of the export's `assets.extra/`.
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
from nvae_tf.config import ExperimentConfig, check
from nvae_tf.files import atomic_write, read_arrays
from nvae_tf.generation.image_grid import pixels_of

PAGE, FACTS = "explorer.html", "explorer.json"
EXAMPLES = "examples.npz"
_FOLDER = pathlib.Path(__file__).with_name("explorer")
_COUNT = 16


def write_explorer(folder: pathlib.Path, exports: Mapping[str, pathlib.Path]) -> list[pathlib.Path]:
    """Writes the page into a folder, made if missing, for models that are served by these names; gives its files.

    `exports` are the folders of one version each. ValueError where one is no export of this project, or damaged.
    """
    models = {name: _facts(export) for name, export in exports.items()}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / FACTS, json.dumps({"models": models}, separators=(",", ":")) + "\n")
    files = [file for file in sorted(_FOLDER.iterdir()) if file.is_file()]
    return [folder / FACTS, *(pathlib.Path(shutil.copyfile(file, folder / file.name)) for file in files)]


def check_has_facts(export: pathlib.Path) -> None:
    """Raises ValueError for a version that is not of this project."""
    known = all((export / "assets.extra" / name).is_file() for name in ("config.json", "latents.json"))
    check(known, f"{export}: nvae-export has not made it: no config.json and latents.json in assets.extra")


def _facts(export: pathlib.Path) -> dict[str, Any]:
    check_has_facts(export)
    assets = export / "assets.extra"
    model = json.loads((assets / "config.json").read_text())["model"]
    facts = {
        "image": [model[f"image_{name}"] for name in ("height", "width", "channels")],
        "num_bits": model["num_bits"],
        "shapes": json.loads((assets / "latents.json").read_text())["shapes"],
        "classes": list(map(str, range(model.get("num_classes", 0)))),
    }
    if (assets / EXAMPLES).is_file():
        examples = read_arrays(assets / EXAMPLES, schemas.EXAMPLES)
        facts["examples"] = base64.b64encode(examples["images"].tobytes()).decode()
        facts |= {name: examples[name].tolist() for name in ("labels", "classes") if name in examples}
    return facts


def example_images(config: ExperimentConfig) -> dict[str, np.ndarray] | None:
    """16 test images of a run (`shown_numbers`): `images` uint8 `[count, height, width, channels]`, as models see them.

    With labels also `labels` `[count]`, and `classes`, the names. None where the images can't be read here.
    """
    from nvae_tf.data.pipeline import chosen_images
    from nvae_tf.data.sources import load_split
    from nvae_tf.training.loading import spec_to_read

    try:
        spec = spec_to_read(config, None)
        if spec.source == "tfds":
            from nvae_tf.data.tfds import tfds_is_prepared

            if not tfds_is_prepared(spec):
                return None  # an export downloads nothing
        source = load_split(spec, "test")
        images, labels, _ = chosen_images(source, spec, "test", at_most=_COUNT)
        examples = {"images": pixels_of(images)}
        if labels is not None:
            examples |= {"labels": labels, "classes": np.array(source.class_names)}
        return examples
    except (OSError, ValueError):
        return None


def cached_export(place: str) -> pathlib.Path:
    """The folder of versions of an export of a shared run, which is made where the cache has none of this code yet.

    `place` is what `nvae_tf.load` takes. The folder has the name of the model.
    """
    from nvae_tf.evaluation.inception import cache_folder
    from nvae_tf.progress import StatusLine
    from nvae_tf.serving import saved_model
    from nvae_tf.training import loading
    from nvae_tf.training.checkpoints import checkpoint_sha256

    run_folder = loading.find_run_folder(place)
    _, checkpoint = loading.find_run(run_folder)
    key = hashlib.sha256(checkpoint_sha256(checkpoint).encode())
    code = sorted(pathlib.Path(__file__).parents[1].rglob("*.py"))
    of_run = (run_folder / name for name in ("config.json", "evaluation.json", "prior.npz", "outliers.npz"))
    for file in (*code, *of_run):
        if file.is_file():
            key.update(file.read_bytes())
    name = os.path.basename(place.partition("@")[0] if place.startswith("hf://") else os.path.abspath(place))
    folder = cache_folder() / "exports" / key.hexdigest()[:16] / name
    if not (folder / "1" / "saved_model.pb").is_file():
        print(f"Exporting {place} to {folder}, once, half a minute or more ...", flush=True)
        run, status = loading.load_run(run_folder), StatusLine()
        origin = saved_model.origin_of(run, run_folder)
        saved_model.export_saved_model(run.model, folder, origin=origin, report=status.report())
    return folder
