"""The explorer's files: a page in `explorer/` that shows in a browser what a served model has learned, over REST alone.

Facts about a model that REST lacks are in `explorer.json` beside the page, made from the export's `assets.extra/`.
"""

import base64
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nvae_tf import errors, files, schemas
from nvae_tf.config import MOST_CHANNELS, MOST_CLASSES
from nvae_tf.serving.outputs import ASSETS

PAGE, FACTS = "explorer.html", "explorer.json"
EXAMPLES = "examples.npz"
# What the page needs of `config.json` and `latents.json`.
_SIZES = ("image_height", "image_width", "image_channels")
_MODEL = dict.fromkeys(_SIZES, schemas.Field("whole number", (), 1, 2**16)) | {
    "num_bits": schemas.Field("whole number", (), 1, 16),
    "num_classes": schemas.Field("whole number", (), 0, MOST_CLASSES, optional=True),
}
_DATA = {"display_channels": schemas.Field("whole number", (None,), 0, MOST_CHANNELS - 1, optional=True)}
_CONFIG = {"model": schemas.Field(_MODEL), "data": schemas.Field(_DATA, optional=True)}
_LAYOUT = {"shapes": schemas.LATENT_SHAPES["latent_shapes"]}
_FOLDER = pathlib.Path(__file__).with_name("explorer")


def write_explorer(folder: pathlib.Path, exports: Mapping[str, pathlib.Path]) -> None:
    """Writes the page into a folder, made if missing, for models that are served by these names.

    `exports` are the folders of one version each. ValueError for one that nvae-export has not made, or a damaged one.
    """
    write_pages(folder, {name: explorer_facts(export) for name, export in exports.items()})


def write_pages(folder: pathlib.Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the page into a folder, made if missing, for models with these facts, see `model_facts`.

    A model that runs in the browser also has its `file` and `step`.
    """
    # `<` as an escape of JSON: nothing in the file can be taken for HTML.
    text = json.dumps({"models": models}, separators=(",", ":")).replace("<", "\\u003c")
    folder.mkdir(parents=True, exist_ok=True)
    for file in _FOLDER.iterdir():  # without its mode: an installed package may be read-only
        shutil.copyfile(file, folder / file.name)
    files.atomic_write(folder / FACTS, text + "\n")


def model_facts(model: Mapping[str, Any], shapes: Sequence, shown: Sequence[int]) -> dict[str, Any]:
    """Returns what the page must know of a model with these settings; `shown` are its data's `display_channels`."""
    sizes, classes = [model[name] for name in _SIZES], list(map(str, range(model.get("num_classes", 0))))
    # The page's images have 8 bits at most.
    facts = {"image": sizes, "num_bits": min(8, model["num_bits"]), "shapes": shapes, "classes": classes}
    if shown or sizes[2] > 4:
        facts["shown"] = shown * 3 if len(shown) == 1 else shown or [0, 1, 2]
    return facts


def explorer_facts(export: pathlib.Path) -> dict[str, Any]:
    """Returns what the page must know of a version; ValueError where nvae-export has not made it, or it is damaged."""
    assets = export / ASSETS
    with errors.wrap_read_errors(f"{assets}: not written by nvae-export, or damaged (", "); copy the export anew"):
        settings = (assets / "config.json").read_bytes()
        config = schemas.parsed(settings, _CONFIG, "config.json: ")
        model, shown = config["model"], config.get("data", {}).get("display_channels", [])
        layout = schemas.parsed((assets / "latents.json").read_bytes(), _LAYOUT, "latents.json: ")
        facts = model_facts(model, layout["shapes"], shown)
        if (assets / EXAMPLES).is_file():
            images = schemas.EXAMPLES["images"]._replace(shape=("count", *facts["image"]))
            examples = schemas.read_arrays(assets / EXAMPLES, schemas.EXAMPLES | {"images": images})
            facts["examples"] = base64.b64encode(examples["images"].astype(np.uint8).tobytes()).decode()
            facts |= {name: examples[name].tolist() for name in ("labels", "classes") if name in examples}
    return facts
