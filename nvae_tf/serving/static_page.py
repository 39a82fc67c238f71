"""Writes the explorer as a folder for any static host: the model runs in the browser, by LiteRT.js."""

import importlib.metadata
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any

from nvae_tf.config import ExperimentConfig, config_to_dict
from nvae_tf.files import atomic_folder, check_new_folder
from nvae_tf.layers.normalization import FoldedWeights
from nvae_tf.models import NVAE
from nvae_tf.serving.explorer_files import PAGE, model_facts, write_pages
from nvae_tf.serving.saved_model import example_images
from nvae_tf.serving.tflite import export_tflite

# Google's packages on the npm registry (Apache 2.0), of one version.
LITERT = ("@litertjs/core@2.5.3", "@litertjs/wasm-utils@2.5.3")
_MODEL = "compose.tflite"


def write_static_page(
    model: NVAE,
    output: pathlib.Path,
    name: str,
    source: Mapping[str, Any],
    config: ExperimentConfig | None = None,
    folded: FoldedWeights | None = None,
) -> None:
    """Writes `output`, a new folder with the explorer as `index.html`, a model, and LiteRT.js, which npm gets.

    `name` is the model's on the page, `config` has its data, for the names of classes and the channels that are shown.
    Raises ValueError, and writes nothing, where the folder is not new, npm can't get LiteRT.js, or `export_tflite`
    refuses the model.
    """
    examples, shown = (example_images(config) or {}, config.data.display_channels) if config else ({}, ())
    facts = model_facts(config_to_dict(model.config), model.plan.latent_shapes(), shown)
    facts |= {"classes": list(map(str, examples.get("classes", facts["classes"])))}
    facts |= {"file": _MODEL, "step": source.get("step", 0)}
    with atomic_folder(output, lambda: check_new_folder(output, f"--page={output}")) as folder:
        write_pages(folder, {name: facts})
        (folder / PAGE).rename(folder / "index.html")
        _write_litert(folder / "litert")
        export_tflite(model, folder / _MODEL, "compose", "none", lambda *_: None, source, folded=folded)


def _write_litert(folder: pathlib.Path) -> None:
    """Writes LiteRT.js as files that a page can import, with its license, Apache 2.0, which is this package's too."""
    npm = shutil.which("npm")  # the whole path, as Windows must have it
    if npm is None:
        raise ValueError("npm is not installed, which gets LiteRT.js for the page: install Node.js")
    with tempfile.TemporaryDirectory() as place:
        # What npm has got once it need not get again; without a network it would retry for more than a minute.
        options = "--ignore-scripts --no-audit --no-fund --loglevel=error --fetch-retries=0 --prefer-offline".split()
        command = [npm, "install", *options, f"--prefix={place}", *LITERT]
        process = subprocess.run(command, capture_output=True, text=True, cwd=place)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or ["no message"])[0]
            raise ValueError(f"npm can't get {LITERT[0]} ({reason}); is the npm registry reachable?")
        packages = pathlib.Path(place, "node_modules", "@litertjs")
        unused = shutil.ignore_patterns("*_threaded_*", "*_jspi_*", "*.ts", "*.map", "*metafile*")
        for part in ("core/dist", "core/wasm", "wasm-utils/dist"):  # without a folder `dist`, which Git may ignore
            shutil.copytree(packages / part, folder / part.removesuffix("/dist"), ignore=unused)
        shutil.copyfile(packages / "core" / "package.json", folder / "package.json")
    script = folder / "core" / "index.js"
    # A page knows no names of packages.
    script.write_text(script.read_text().replace('"@litertjs/wasm-utils"', '"../wasm-utils/index.js"'))
    # A folder nvae_tf.egg-info, which old builds leave behind, has no license.
    installed = importlib.metadata.distributions(name="nvae_tf")
    (folder / "LICENSE").write_text(next(filter(None, (each.read_text("licenses/LICENSE") for each in installed))))
