"""Reading published `.pt` files, safely and without the published code. Needs the optional extra `torch`."""

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.checkpoints.published_settings import (
    model_config_from_published,
    objective_config_from_published,
)
from nvae_tf.checkpoints.published_weights import load_published_weights
from nvae_tf.command_errors import first_line
from nvae_tf.models import NVAE


class TorchCheckpoint(NamedTuple):
    """What is kept of a published file: its settings and its weights in the published layout."""

    settings: Mapping[str, Any]
    state: Mapping[str, np.ndarray]


def read_torch_checkpoint(path: str | pathlib.Path) -> TorchCheckpoint:
    """Reads a published `.pt` file; no object but tensors, plain data and the settings' namespace is ever built.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: torch is not installed.
      ValueError: the file is not a whole torch file, holds other pickled objects, or is no NVAE checkpoint.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a published checkpoint (.pt)")
    torch = _torch()
    try:
        # Torch itself maps a file into memory without a look at its checksums; files before torch 1.6 are no archives.
        archive = zipfile.is_zipfile(path)
        if archive:
            _check_sums(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        found = f"wants to build '{foreign[1]}', which no NVAE checkpoint needs" if foreign else "is no torch file"
        raise ValueError(
            f"{path}: {found}; it was not loaded. Get the file again from where it was published"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: not a whole torch file, probably cut short or damaged; download it again ({first_line(error)})"
        ) from error
    if not isinstance(content, dict) or not {"args", "state_dict"} <= content.keys():
        raise ValueError(f"{path}: a torch file, but not an NVAE checkpoint: it lacks 'args' or 'state_dict'")
    return TorchCheckpoint(_plain_settings(path, content["args"]), _arrays(path, content["state_dict"]))


def from_torch_checkpoint(path: str | pathlib.Path) -> NVAE:
    """The model of a published `.pt` file, ready to score, sample or train on.

    Raises:
      FileNotFoundError, ImportError, ValueError: see `read_torch_checkpoint` and `load_published_weights`.
    """
    checkpoint = read_torch_checkpoint(path)
    try:
        config = model_config_from_published(checkpoint.settings)
        model = NVAE(config, objective_config_from_published(checkpoint.settings))
        load_published_weights(model, checkpoint.state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model


def _torch():
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "reading a published .pt file needs PyTorch, an optional extra: `make torch` installs it"
        ) from error
    return torch


def _check_sums(path: pathlib.Path) -> None:
    """Reads every part of an archive; `zipfile` raises BadZipFile at one whose checksum is wrong."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # Torch writes 0 where it was told to make no checksums.
            if entry.CRC:
                with archive.open(entry) as part:
                    while part.read(1 << 20):
                        pass


def _plain_settings(path: pathlib.Path, args: Any) -> dict[str, Any]:
    if not isinstance(args, dict | argparse.Namespace):
        raise ValueError(f"{path}: 'args' holds no settings, but a {type(args).__name__}")
    return dict(args) if isinstance(args, dict) else dict(vars(args))


def _arrays(path: pathlib.Path, state: Any) -> dict[str, np.ndarray]:
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: 'state_dict' holds no weights by name, but a {type(state).__name__}")
    tensor = _torch().Tensor
    wrong = [str(name) for name, value in state.items() if not isinstance(value, tensor)]
    if wrong:
        raise ValueError(f"{path}: 'state_dict' holds something else than tensors: {', '.join(wrong[:5])}")
    return {name: value.detach().float().numpy() for name, value in state.items()}
