"""Reads published `.pt` files, safely and without the published code; needs the optional extra `torch`."""

import argparse
import math
import pathlib
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.errors import first_line, require
from nvae_tf.models import NVAE
from nvae_tf.published.settings import USED_SETTINGS, model_config_from_published, objective_config_from_published
from nvae_tf.published.tensor_names import COPY, COUNTER, check_implied_size, load_published_weights

OWN_KEY = "nvae_tf"  # the entry that this project adds to the files that it writes
_AGAIN = "the file is damaged, get it again from its source"
_LONGEST_TEXT = 500  # characters of a name or a setting


class TorchCheckpoint(NamedTuple):
    """The content of a published file, tensors as arrays in the published layout."""

    settings: Mapping[str, Any]  # the entry `args`; those in `USED_SETTINGS` are plain values
    state: Mapping[str, np.ndarray]  # the entry `state_dict`
    epoch: int | None = None  # finished passes over the data; None where the file lacks it
    global_step: int | None = None  # None where the file lacks it
    own: Mapping[str, Any] = {}  # the entry of this project, empty in files of others


def read_torch_checkpoint(path: str | pathlib.Path) -> TorchCheckpoint:
    """Reads a published `.pt` file: checksums and sizes first, then PyTorch's safe loader, which builds no objects.

    FileNotFoundError: there is none. ValueError: it is damaged or no NVAE checkpoint, or PyTorch is not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a published checkpoint (.pt)")
    torch = require("torch", "torch")
    # The bytes to which a file may unpack: weights hardly shrink when they are compressed.
    largest = 4 * path.stat().st_size + (64 << 20)
    try:
        _check_archive(path, largest)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not {"args", "state_dict"} <= content.keys():
            raise ValueError("a torch file, but not an NVAE checkpoint: it lacks 'args' or 'state_dict'")
        counts = [content.get(name) for name in ("epoch", "global_step")]
        if any(type(count) not in (int, type(None)) or (count or 0) < 0 for count in counts):
            raise ValueError(f"'epoch' or 'global_step' is no whole number; {_AGAIN}")
        settings, state, own = (_mapping(content, name) for name in ("args", "state_dict", OWN_KEY))
        for name in sorted(USED_SETTINGS & settings.keys()):
            value = settings[name]
            is_number = isinstance(value, int | None) or (isinstance(value, float) and math.isfinite(value))
            if not is_number and not (isinstance(value, str) and len(value) <= _LONGEST_TEXT):
                raise ValueError(f"'args' has a value of {name} that is no finite number and no short text; {_AGAIN}")
        return TorchCheckpoint(settings, _weights(state, largest), *counts, own)
    except PermissionError:
        raise
    # The readers of archives, pickles and tensors raise errors of many kinds where a file is damaged.
    except Exception as error:
        reason = first_line(error)
        if not isinstance(error, ValueError):
            # PyTorch's message goes on with advice to load the file unsafely.
            reason = f"not a checkpoint that PyTorch's safe loader reads ({reason.partition('. ')[0][:200]}); {_AGAIN}"
        raise ValueError(f"{path}: {reason}") from error


def from_torch_checkpoint(path: str | pathlib.Path) -> NVAE:
    """The model of a published `.pt` file; raises what `read_torch_checkpoint` and `load_published_weights` do."""
    checkpoint = read_torch_checkpoint(path)
    try:
        config = model_config_from_published(checkpoint.settings)
        check_implied_size(config, checkpoint.state)
        model = NVAE(config, objective_config_from_published(checkpoint.settings))
        load_published_weights(model, checkpoint.state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model


def _check_archive(path: pathlib.Path, largest: int) -> None:
    """ValueError unless a file is a whole archive of a plausible size; files from before PyTorch 1.6 are none."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > largest:
            raise ValueError(f"would unpack to far more bytes than it has; {_AGAIN}")
        if len({record.filename.lower() for record in records}) < len(records):
            raise ValueError(f"has two records of one name; {_AGAIN}")
        # PyTorch can be asked to write no checksums: then all of them are zero.
        if any(record.CRC for record in records) and (damaged := archive.testzip()):
            raise ValueError(f"its record {damaged[:50]!r} has a wrong checksum; {_AGAIN}")


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An entry of the file as a dictionary, empty where the file lacks it; ValueError where it is something else."""
    entry = content.get(key, {})
    entry = vars(entry) if isinstance(entry, argparse.Namespace) else entry
    names = entry if isinstance(entry, dict) else [None]
    if not all(isinstance(name, str) and name.isprintable() and len(name) <= _LONGEST_TEXT for name in names):
        raise ValueError(f"{key!r} does not hold values by names of one line; {_AGAIN}")
    return dict(entry)


def _weights(state: Mapping[str, Any], largest: int) -> dict[str, np.ndarray]:
    """The tensors of `state_dict` as arrays, with bfloat16 as TensorFlow's type of that name."""
    import torch

    arrays = {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"'state_dict' holds something other than a dense tensor by the name {name}; {_AGAIN}")
        if not tensor.is_floating_point() and not name.endswith((f".{COPY}", f".{COUNTER}")):
            raise ValueError(f"{name} holds numbers of type {tensor.dtype}, and weights are floats; {_AGAIN}")
        if tensor.dtype == torch.bfloat16:
            arrays[name] = tensor.detach().view(torch.int16).numpy().view(tf.bfloat16.as_numpy_dtype)
        else:
            arrays[name] = tensor.detach().numpy()
    # A tensor may repeat one number of the file without end.
    if sum(array.nbytes for array in arrays.values()) > largest:
        raise ValueError(f"its tensors are far larger than the file; {_AGAIN}")
    return arrays
