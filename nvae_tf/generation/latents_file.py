"""Latents as a `.npz` file: `latent` `[count, total]`, and the images' names, their classes, and the latent shapes.

A row of `latent` has the groups one after another, the top group first, as exported models take it. Every command reads
and writes this one format; older files, which are read too, have an array `group_00`, `group_01` ... for each group.
"""

import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nvae_tf import errors, files, schemas
from nvae_tf.latent_plan import LatentPlan

_FIX = "`encode` of nvae-generate or nvae-client writes one"


class StoredLatents(NamedTuple):
    """Latents, a list of one array a group or flat `[count, total]`, and what else the file has, None for nothing."""

    latents: list[np.ndarray] | np.ndarray
    names: list[str] | None  # of the images
    labels: np.ndarray | None  # the images' classes, `[count]`
    shapes: list[tuple[int, ...]] | None  # of the groups' latents


def save_latents(path: str | os.PathLike, latents: Sequence[np.ndarray], names=None, labels=None) -> None:
    """Writes latents, names of the images and their classes, atomically; ValueError if they do not fit each other."""
    latents = [np.asarray(latent, np.float32) for latent in latents]
    shapes = [latent.shape for latent in latents]
    counts = {len(part) for part in (*latents, *([] if names is None else [names]))}
    if len(counts) != 1 or {len(shape) for shape in shapes} != {4}:
        raise ValueError(f"latents of shapes {shapes}: give [count, height, width, channels] each, and count names")
    flat = np.concatenate([latent.reshape(len(latent), -1) for latent in latents], axis=1)
    write_flat_latents(path, flat, [shape[1:] for shape in shapes], names, labels)


def write_flat_latents(path: str | os.PathLike, latent: np.ndarray, shapes=None, names=None, labels=None) -> None:
    """Writes latents `[count, total]`, and what else is known of them, atomically; the folder is made."""
    about = json.dumps({"format": "nvae_tf latents", "latent_shapes": shapes}) if shapes else None
    texts = {"about": about, "names": names}
    arrays = {name: np.array(value, np.str_) for name, value in texts.items() if value is not None}
    arrays |= {"latent": latent} | ({} if labels is None else {"labels": np.array(labels, np.int32)})
    schemas.write_arrays(pathlib.Path(path), arrays)


def save_features(path: str | os.PathLike, features: np.ndarray, columns, names, labels=None) -> None:
    """Writes features `[count, features]`, the names of both, and classes: .npz, or .parquet with a column for each."""
    path = pathlib.Path(path)
    if path.suffix.lower() != ".parquet":
        arrays = {"features": features, "columns": np.array(columns, np.str_), "names": np.array(names, np.str_)}
        return schemas.write_arrays(path, arrays | ({} if labels is None else {"labels": np.array(labels, np.int32)}))
    pyarrow, parquet = (errors.require(module, "parquet") for module in ("pyarrow", "pyarrow.parquet"))
    by_column = {"name": names} | ({} if labels is None else {"label": labels})
    with files.atomic_file(path) as partial:
        parquet.write_table(pyarrow.table(by_column | dict(zip(columns, features.T, strict=True))), partial)


def read_flat_latents(path: str | os.PathLike) -> StoredLatents:
    """Reads a file of flat latents of any model, without TensorFlow; ValueError where it is damaged or another file."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file of latents; {_FIX}")
    with errors.wrap_read_errors(f"{path}: damaged, or not a file of latents (", f"); {_FIX}"):
        entries = schemas.read_arrays(pathlib.Path(path), schemas.LATENTS)
        parts = ["latent"] if "latent" in entries else sorted(name for name in entries if name.startswith("group_"))
        latent = np.concatenate([entries[name].reshape(len(entries[name]), -1) for name in parts], axis=1)
        # A served model knows only the total, so the latents of one come without shapes.
        about = schemas.parsed(str(entries["about"]), schemas.LATENT_SHAPES) if "about" in entries else None
        names = [str(name) for name in entries["names"]] if "names" in entries else None
    return StoredLatents(latent, names, entries.get("labels"), about and list(map(tuple, about["latent_shapes"])))


def load_latents(path: str | os.PathLike, model: Any) -> StoredLatents:
    """Reads a file of `save_latents` for a model or its plan; ValueError where it is damaged or fits another model."""
    from nvae_tf.models.latents import check_latents, groups_of_flat

    plan, stored = model if isinstance(model, LatentPlan) else model.plan, read_flat_latents(path)
    shapes = stored.shapes or list(plan.latent_shapes())
    total = sum(map(math.prod, shapes))
    if stored.latents.shape[1] != total:
        raise ValueError(f"{path}: `latent` is of shape {list(stored.latents.shape)}; it must be [count, {total}]")
    with errors.wrap_read_errors(f"{path}: ", ""):
        latents = check_latents(groups_of_flat(stored.latents, shapes), plan)
    return stored._replace(latents=[latent.numpy() for latent in latents], shapes=shapes)
