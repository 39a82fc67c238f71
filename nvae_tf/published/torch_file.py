"""Reading published `.pt` files, safely and without the published code. Needs the optional extra `torch`."""

import argparse
import math
import pathlib
import pickle
import re
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.errors import first_line
from nvae_tf.models import NVAE
from nvae_tf.published.implied_size import check_implied_size
from nvae_tf.published.names import COPY, COUNTER
from nvae_tf.published.settings import (
    USED_SETTINGS,
    model_config_from_published,
    objective_config_from_published,
)
from nvae_tf.published.stacks import pass_over
from nvae_tf.published.torch_file_checks import AGAIN, WrongFile, check_torch_file, most_unpacked
from nvae_tf.published.weights import load_published_weights

# Of this project, in files that it has written: what the published form has no place for. Other code passes over it.
OWN_KEY = "nvae_tf"
# Of names and settings.
_LONGEST_TEXT = 500
# Lists and dictionaries within each other: a parameter's moments, and a group's list of parameters.
_DEEPEST = 4


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
        is_mapped = check_torch_file(path, report)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
        if not isinstance(content, dict) or not {"args", "state_dict"} <= set(dict.keys(content)):
            raise WrongFile("a torch file, but not an NVAE checkpoint: it lacks 'args' or 'state_dict'")
        content = _items(content)
        return TorchCheckpoint(
            _plain_settings(content["args"]),
            _weights(content["state_dict"], most_unpacked(path.stat().st_size)),
            _group(content, "optimizer"),
            _count(content, "epoch"),
            _count(content, "global_step"),
            _group(content, OWN_KEY),
            is_mapped,
        )
    except WrongFile as error:
        raise ValueError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        found = f"wants to build '{foreign[1]}', which no NVAE checkpoint needs" if foreign else "is no torch file"
        raise ValueError(f"{path}: {found}; it was not loaded. Get the file again from its source") from error
    except (MemoryError, PermissionError):
        raise
    # What is wrong in the pickle ends torch's reader by exceptions of many kinds, AssertionError among them.
    except Exception as error:
        raise ValueError(f"{path}: torch can't read it ({first_line(error)[:200]}); {AGAIN}") from error


def from_torch_checkpoint(path: str | pathlib.Path) -> NVAE:
    """The model of a published `.pt` file, ready to score, sample or train on.

    Raises:
      FileNotFoundError, ImportError, ValueError: see `read_torch_checkpoint` and `load_published_weights`.
    """
    checkpoint = read_torch_checkpoint(path)
    try:
        config = model_config_from_published(checkpoint.settings)
        check_implied_size(config, checkpoint.state)
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


def _items(value: Any) -> dict[Any, Any]:
    """What a dictionary holds, whatever else a file has made of it: attributes may hide its methods."""
    return dict(dict.items(value))


def _plain_settings(args: Any) -> dict[str, Any]:
    """The settings that are plain values; of others no use is made."""
    if not isinstance(args, dict | argparse.Namespace):
        raise WrongFile(f"'args' holds no settings, but a {type(args).__name__}")
    settings = _items(args if isinstance(args, dict) else vars(args))
    _check_names("args", settings)
    wrong = {name for name, value in settings.items() if not _is_plain(value)}
    if used := sorted(wrong & USED_SETTINGS):
        raise WrongFile(f"'args' has a value of {used[0]} that is neither a finite number nor a short text; {AGAIN}")
    return {name: value for name, value in settings.items() if name not in wrong}


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, int) or (isinstance(value, str) and len(value) <= _LONGEST_TEXT)


def _check_names(place: str, names: Iterable[Any]) -> None:
    """Names are shown in messages and tables: each is text, and one line of it."""
    for name in names:
        if not isinstance(name, str) or not name.isprintable() or len(name) > _LONGEST_TEXT:
            raise WrongFile(f"{place!r} holds an entry whose name is not one line of text; {AGAIN}")


def _weights(state: Any, most_bytes: int) -> dict[str, np.ndarray]:
    if not isinstance(state, dict):
        raise WrongFile(f"'state_dict' holds no weights by name, but a {type(state).__name__}")
    state = _items(state)
    _check_names("state_dict", state)
    wrong = [name for name, value in state.items() if not isinstance(value, _torch().Tensor)]
    if wrong:
        raise WrongFile(f"'state_dict' holds something else than tensors by name: {', '.join(wrong[:5])}")
    weights = {name: _array(name, value) for name, value in state.items()}
    for name, array in weights.items():
        if array.dtype.kind in "biuc" and not name.endswith((f".{COPY}", f".{COUNTER}")):
            raise WrongFile(f"{name} holds numbers of type {array.dtype}, and weights are floats; {AGAIN}")
    # Tensors may share their numbers, or repeat them without end.
    if sum(array.nbytes for array in weights.values()) > most_bytes:
        raise WrongFile(f"its tensors are far larger than the file, which has one number for many; {AGAIN}")
    return weights


def _group(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    group = content.get(key)
    if group is None:
        return {}
    if not isinstance(group, dict):
        raise WrongFile(f"{key!r} holds no state by name, but a {type(group).__name__}")
    return _with_arrays(key, group, {})


def _with_arrays(place: str, value: Any, known: dict[int, Any], depth: int = 0) -> Any:
    """The same containers, and arrays for tensors; `known` has what is done, by `id`: a file may repeat it at will."""
    if id(value) in known:
        return known[id(value)]
    if depth > _DEEPEST and isinstance(value, dict | list | tuple):
        raise WrongFile(f"{place!r} is nested deeper than in any NVAE checkpoint; {AGAIN}")
    if isinstance(value, dict):
        items = _items(value)
        _check_names(place, (name for name in items if not isinstance(name, int)))
        made = {name: _with_arrays(f"{place}.{name}", inner, known, depth + 1) for name, inner in items.items()}
    elif isinstance(value, list | tuple):
        made = type(value)(_with_arrays(place, inner, known, depth + 1) for inner in value)
    else:
        made = _array(place, value) if isinstance(value, _torch().Tensor) else value
    known[id(value)] = made
    return made


def _array(name: str, tensor: Any) -> np.ndarray:
    """The tensor's own memory, never a copy."""
    torch, tensor = _torch(), tensor.detach()
    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(tf.bfloat16.as_numpy_dtype)
        return tensor.numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"{tensor.layout}, {tensor.dtype}".replace("torch.", "")
        raise WrongFile(
            f"{name} is a tensor of a kind that no NVAE checkpoint has ({kind}); save it as a plain float32 one"
        ) from error


def _count(content: Mapping[str, Any], key: str) -> int | None:
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise WrongFile(f"{key!r} = {reprlib.repr(value)} is no number of steps or epochs")
    return value
