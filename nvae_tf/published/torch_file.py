"""Reading published `.pt` files, safely and without the published code. Needs the optional extra `torch`."""

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.errors import first_line
from nvae_tf.models import NVAE
from nvae_tf.published.settings import (
    model_config_from_published,
    objective_config_from_published,
)
from nvae_tf.published.stacks import pass_over
from nvae_tf.published.weights import load_published_weights

# Of this project, in files that it has written: what the published form has no place for. Other code passes over it.
OWN_KEY = "nvae_tf"


class TorchCheckpoint(NamedTuple):
    """What a published file holds; tensors as arrays in the published layout, which lie in the mapped file.

    Attributes:
      settings: its `args`.
      state: the weights by name, its `state_dict`.
      optimizer: the optimizer's state; empty where the file has none.
      epoch: how many passes over the data it was trained; None where the file does not tell.
      global_step: how many steps; None where the file does not tell.
      own: what this project has added to a file that it wrote; empty in all others.
      is_mapped: whether the tensors lie in the file itself, mapped into memory; those of very old files do not.
    """

    settings: Mapping[str, Any]
    state: Mapping[str, np.ndarray]
    optimizer: Mapping[str, Any] = {}
    epoch: int | None = None
    global_step: int | None = None
    own: Mapping[str, Any] = {}
    is_mapped: bool = False


def read_torch_checkpoint(path: str | pathlib.Path, report: Callable[[int], None] = pass_over) -> TorchCheckpoint:
    """Reads a published `.pt` file; no object but tensors, plain data and the settings' namespace is ever built.

    Its checksums are looked at; the numbers of its tensors stay in the file until they are used.

    Args:
      path: the file.
      report: is given the bytes whose checksums are looked at so far.

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
            _check_sums(path, report)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        found = f"wants to build '{foreign[1]}', which no NVAE checkpoint needs" if foreign else "is no torch file"
        raise ValueError(
            f"{path}: {found}; it was not loaded. Get the file again from where it was published"
        ) from error
    except MemoryError:
        raise
    # Garbled bytes end torch's reader by exceptions of many kinds, struct.error and AssertionError among them.
    except Exception as error:
        if not archive and not _is_pickle(path):
            raise ValueError(f"{path}: no torch file at all; give the path of a published checkpoint (.pt)") from error
        raise ValueError(
            f"{path}: not a whole torch file, probably cut short or damaged; download it again ({first_line(error)})"
        ) from error
    if not isinstance(content, dict) or not {"args", "state_dict"} <= content.keys():
        raise ValueError(f"{path}: a torch file, but not an NVAE checkpoint: it lacks 'args' or 'state_dict'")
    return TorchCheckpoint(
        _plain_settings(path, content["args"]),
        _weights(path, content["state_dict"]),
        _group(path, content, "optimizer"),
        _count(path, content, "epoch"),
        _count(path, content, "global_step"),
        _group(path, content, OWN_KEY),
        archive,
    )


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


def _is_pickle(path: pathlib.Path) -> bool:
    """Whether a file begins as files before torch 1.6 do, and archives that were cut short."""
    with path.open("rb") as file:
        start = file.read(2)
    return start == b"PK" or start[:1] == b"\x80"


def _check_sums(path: pathlib.Path, report: Callable[[int], None]) -> None:
    """Reads every part of an archive; `zipfile` raises BadZipFile at one whose checksum is wrong."""
    done = 0
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # Torch writes 0 where it was told to make no checksums.
            if entry.CRC:
                with archive.open(entry) as part:
                    while chunk := part.read(1 << 20):
                        done += len(chunk)
                        report(done)


def _plain_settings(path: pathlib.Path, args: Any) -> dict[str, Any]:
    if not isinstance(args, dict | argparse.Namespace):
        raise ValueError(f"{path}: 'args' holds no settings, but a {type(args).__name__}")
    settings = dict(args) if isinstance(args, dict) else dict(vars(args))
    if not all(isinstance(name, str) for name in settings):
        raise ValueError(f"{path}: 'args' holds settings whose names are no text")
    return settings


def _weights(path: pathlib.Path, state: Any) -> dict[str, np.ndarray]:
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: 'state_dict' holds no weights by name, but a {type(state).__name__}")
    tensor = _torch().Tensor
    wrong = [str(name) for name, value in state.items() if not isinstance(name, str) or not isinstance(value, tensor)]
    if wrong:
        raise ValueError(f"{path}: 'state_dict' holds something else than tensors by name: {', '.join(wrong[:5])}")
    return {name: _array(path, name, value) for name, value in state.items()}


def _group(path: pathlib.Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    group = content.get(key)
    if group is None:
        return {}
    if not isinstance(group, Mapping):
        raise ValueError(f"{path}: {key!r} holds no state by name, but a {type(group).__name__}")
    return _with_arrays(path, key, group)


def _with_arrays(path: pathlib.Path, place: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_arrays(path, f"{place}.{name}", inner) for name, inner in value.items()}
    return _array(path, place, value) if isinstance(value, _torch().Tensor) else value


def _array(path: pathlib.Path, name: str, tensor: Any) -> np.ndarray:
    """The tensor's own memory, never a copy."""
    torch, tensor = _torch(), tensor.detach()
    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(tf.bfloat16.as_numpy_dtype)
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        kind = f"{tensor.layout}, {tensor.dtype}".replace("torch.", "")
        raise ValueError(
            f"{path}: {name} is a tensor of a kind that no NVAE checkpoint has ({kind}); save it as a plain float32 one"
        ) from error


def _count(path: pathlib.Path, content: Mapping[str, Any], key: str) -> int | None:
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{path}: {key!r} = {value!r} is no number of steps or epochs")
    return value
