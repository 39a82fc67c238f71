"""Reads published `.pt` files, safely and without the published code; needs the optional extra `torch`.

`torch.load` compares neither checksums nor sizes with what the pickle asks for. So the archive is checked first, and
its pickle is walked through, opcode by opcode, without building anything of it.
"""

import argparse
import io
import math
import mmap
import pathlib
import pickle
import pickletools
import reprlib
import sys
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.errors import first_line
from nvae_tf.models import NVAE
from nvae_tf.progress import byte_bar
from nvae_tf.published.names import COPY, COUNTER
from nvae_tf.published.places import check_file, check_torch
from nvae_tf.published.settings import USED_SETTINGS, model_config_from_published, objective_config_from_published
from nvae_tf.published.weights import check_implied_size, load_published_weights

# The key of what this project adds to files that it writes and the published form has no place for.
OWN_KEY = "nvae_tf"

_NO_TORCH_FILE = "is no torch file; give the path of a published checkpoint (.pt), or get it again from its source"
_UNLIKE = "which no NVAE checkpoint does"
_AGAIN = "the file is damaged, get it again from its source"
_MEGABYTE = 1 << 20
_ARCHIVE_START = b"PK\x03\x04"
# Files before torch 1.6 are no archives: a pickled magic number, three more pickles, the storages' keys and contents.
_OLD_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# Times a file's size, and bytes, to which it may unpack or its tensors add up. Weights hardly shrink when they are
# compressed; zeros do, but no model consists of those.
_MOST_UNPACKED, _UNPACKED_MARGIN = 4, 64 * _MEGABYTE
# A tensor takes some 35 opcodes, and all settings together some hundreds.
_OPCODES, _OPCODES_PER_STORAGE = 50_000, 300
# Tuples in each other; and lists and dictionaries: a parameter's moments, and a group's list of parameters.
_DEEPEST_TUPLE, _DEEPEST = 3, 4
# Of names and settings, in characters.
_LONGEST_TEXT = 500
_EMPTY_CALLS = ("collections OrderedDict", "argparse Namespace")
_REBUILD_CALLS = ("_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2")
_CALLS = {*_EMPTY_CALLS, "torch Size", *(f"torch._utils {name}" for name in _REBUILD_CALLS)}
# On the walker's stack: a list, dictionary, tensor or the like, whose content does not matter there.
_OBJECT = object()


class TorchCheckpoint(NamedTuple):
    """The content of a published file, tensors as arrays in the published layout; empty or None where it lacks it."""

    settings: Mapping[str, Any]  # `args`
    state: Mapping[str, np.ndarray]  # `state_dict`
    optimizer: Mapping[str, Any] = {}
    epoch: int | None = None  # finished passes over the data
    global_step: int | None = None
    own: Mapping[str, Any] = {}  # what this project has added to a file that it wrote
    is_mapped: bool = False  # whether the arrays lie in the file itself, mapped into memory


class _WrongFile(ValueError):
    """A file that must not be read; the message is one line, without the file's name."""


def read_torch_checkpoint(path: str | pathlib.Path) -> TorchCheckpoint:
    """Reads a published `.pt` file; builds tensors, plain data and the settings' namespace, and no other object.

    Checksums are compared; the numbers of the tensors stay in the file until they are used.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: torch is not installed; or it is no whole torch file, holds other objects, or is no NVAE checkpoint.
    """
    path = pathlib.Path(path)
    check_file(path)
    check_torch()
    import torch

    fault = "not a whole torch file, cut short or damaged; download it again"
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            is_mapped = _check_torch_file(path)
            fault = f"torch can't read it; {_AGAIN}"
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
        is_checkpoint = isinstance(content, dict) and {"args", "state_dict"} <= set(dict.keys(content))
        _check(is_checkpoint, "a torch file, but not an NVAE checkpoint: it lacks 'args' or 'state_dict'")
        # Its methods may be hidden by attributes that a file has set.
        content = dict(dict.items(content))
        groups = [_group(content, key) for key in ("args", "state_dict", "optimizer", OWN_KEY)]
        settings, state = _plain_settings(groups[0]), _weights(groups[1], path.stat().st_size)
        counts = _count(content, "epoch"), _count(content, "global_step")
        return TorchCheckpoint(settings, state, groups[2], *counts, groups[3], is_mapped)
    except _WrongFile as error:
        raise ValueError(f"{path}: {error}") from error
    except (MemoryError, PermissionError):
        raise
    # Of damaged files zipfile, zlib, pickletools and torch raise errors of many kinds, AssertionError among them.
    except Exception as error:
        # An UnpicklingError advises to load the file with an open unpickler.
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({first_line(error)[:200]})"
        raise ValueError(f"{path}: {fault}{reason}") from error


def from_torch_checkpoint(path: str | pathlib.Path) -> NVAE:
    """The model of a published `.pt` file, ready to score, sample or train on.

    Raises what `read_torch_checkpoint` and `load_published_weights` do.
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


def _check(valid: bool, message: str) -> None:
    if not valid:
        raise _WrongFile(message)


def _plain_settings(settings: dict[Any, Any]) -> dict[str, Any]:
    """The settings that are plain values; others are not used."""
    plain = {
        name: value
        for name, value in settings.items()
        if value is None
        or isinstance(value, int)
        or (isinstance(value, float) and math.isfinite(value))
        or (isinstance(value, str) and len(value) <= _LONGEST_TEXT)
    }
    _check(all(isinstance(name, str) for name in settings), f"'args' holds settings without a name; {_AGAIN}")
    wrong = ", ".join(sorted((settings.keys() - plain.keys()) & USED_SETTINGS))
    _check(not wrong, f"'args' has a value of {wrong} that is neither a finite number nor a short text; {_AGAIN}")
    return plain


def _weights(state: dict[Any, Any], file_size: int) -> dict[str, np.ndarray]:
    wrong = [str(name) for name, value in state.items() if not isinstance(value, np.ndarray) or isinstance(name, int)]
    _check(not wrong, f"'state_dict' holds something else than tensors by name: {', '.join(wrong[:5])}")
    for name, array in state.items():
        is_weight = array.dtype.kind not in "biuc" or name.endswith((f".{COPY}", f".{COUNTER}"))
        _check(is_weight, f"{name} holds numbers of type {array.dtype}, and weights are floats; {_AGAIN}")
    # Tensors may share their numbers, or repeat them without end.
    is_one_file = sum(array.nbytes for array in state.values()) <= _MOST_UNPACKED * file_size + _UNPACKED_MARGIN
    _check(is_one_file, f"its tensors are far larger than the file, which has one number for many; {_AGAIN}")
    return state


def _group(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    group = content.get(key)
    if group is None and key not in ("args", "state_dict"):
        return {}
    group = vars(group) if isinstance(group, argparse.Namespace) else group
    _check(isinstance(group, dict), f"{key!r} holds no state by name, but a {type(group).__name__}")
    return _with_arrays(key, group, {})


def _with_arrays(place: str, value: Any, known: dict[int, Any], depth: int = 0) -> Any:
    """The same containers, with tensors' own memory as arrays; `known` has results by `id`, which files may repeat."""
    import torch

    if id(value) in known:
        return known[id(value)]
    is_container = isinstance(value, dict | list | tuple)
    _check(depth <= _DEEPEST or not is_container, f"{place!r} is nested deeper than in any NVAE checkpoint; {_AGAIN}")
    made = value
    if isinstance(value, dict):
        items = dict(dict.items(value))
        # Names are shown in messages and tables; parameters have numbers.
        for name in items:
            is_line = isinstance(name, int) or (name.isprintable() and len(name) <= _LONGEST_TEXT)
            _check(is_line, f"{place!r} holds an entry whose name is not one line of text; {_AGAIN}")
        made = {name: _with_arrays(f"{place}.{name}", inner, known, depth + 1) for name, inner in items.items()}
    elif is_container:
        made = type(value)(_with_arrays(place, inner, known, depth + 1) for inner in value)
    elif isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:
        made = value.detach().view(torch.int16).numpy().view(tf.bfloat16.as_numpy_dtype)
    elif isinstance(value, torch.Tensor):
        made = value.detach().numpy()
    known[id(value)] = made
    return made


def _count(content: Mapping[str, Any], key: str) -> int | None:
    value = content.get(key)
    is_count = isinstance(value, int | None) and not isinstance(value, bool) and (value or 0) >= 0
    _check(is_count, f"{key!r} = {reprlib.repr(value)} is no number of steps or epochs")
    return value


def _check_torch_file(path: pathlib.Path) -> bool:
    """Raises _WrongFile unless a file is whole and asks for nothing but tensors and plain data.

    Returns whether its tensors may be mapped into memory: none is compressed, and it is no file before torch 1.6.
    """
    with path.open("rb") as file:
        start = file.read(len(_OLD_START))
        if start == _OLD_START:
            # Reads no more than there is, whatever length a text claims.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                _check_old_form(mapped)
            return False
    _check(start.startswith(_ARCHIVE_START), _NO_TORCH_FILE)
    with zipfile.ZipFile(path) as archive:
        return _check_archive(archive, path.stat().st_size)


def _check_archive(archive: zipfile.ZipFile, size: int) -> bool:
    entries = archive.infolist()
    found = {entry.filename: entry for entry in entries}
    # Torch ignores case.
    _check(len({name.lower() for name in found}) == len(entries), f"has two records of one name; {_AGAIN}")
    for name, entry in found.items():
        is_stored = entry.compress_type == zipfile.ZIP_STORED
        is_read = is_stored or entry.compress_type == zipfile.ZIP_DEFLATED
        _check(is_read, f"{name[:50]!r} is compressed in a way that torch does not read; deflate it")
        _check(not is_stored or entry.compress_size == entry.file_size, f"{name[:50]!r} has two sizes; {_AGAIN}")
    total = sum(entry.file_size for entry in entries)
    sizes = f"{total / 1e6:,.0f} MB from {size / 1e6:,.1f}"
    _check(total <= _MOST_UNPACKED * size + _UNPACKED_MARGIN, f"would unpack to {sizes}: no model's weights; {_AGAIN}")
    if not any(entry.CRC for entry in entries):
        # Torch can be asked to make no checksums; it then writes 0, which `zipfile` would compare.
        for entry in entries:
            entry.CRC = None
    folder = entries[0].filename.partition("/")[0]
    order = archive.read(f"{folder}/byteorder") if f"{folder}/byteorder" in found else sys.byteorder.encode()
    _check(order == sys.byteorder.encode(), "its byte order is not this machine's; save it on a machine of its kind")
    _check(f"{folder}/data.pkl" in found, f"{_NO_TORCH_FILE} (it is an archive of other files)")
    storages = _storages(io.BytesIO(archive.read(f"{folder}/data.pkl")))
    start = f"{folder}/data/"
    sizes = {name.removeprefix(start): entry.file_size for name, entry in found.items() if name.startswith(start)}
    for key, needed in storages.items():
        has = f"has {sizes[key]} bytes" if key in sizes else "is missing"
        _check(sizes.get(key) == needed, f"its record {key[:50]!r} {has} where its tensors need {needed}; {_AGAIN}")
    # Torch writes no numbers without a tensor: where some are left over, a tensor has those of another.
    unused = min(sizes.keys() - storages.keys() - {""}, default="")
    _check(not unused, f"its record {unused[:50]!r} belongs to none of its tensors; {_AGAIN}")
    with byte_bar(total, "checked") as bar:
        for entry in entries:
            with archive.open(entry) as record:
                # At its end `zipfile` compares the checksum.
                while chunk := record.read(_MEGABYTE):
                    bar.update(len(chunk))
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _check_old_form(file: mmap.mmap) -> None:
    file.seek(len(_OLD_START))
    for _ in ("version", "machine"):
        _storages(file)
    storages = _storages(file)
    place = file.tell()
    _storages(file)
    end = file.tell()
    file.seek(place)
    keys = [argument for opcode, argument, _ in pickletools.genops(file) if opcode.name == "BINUNICODE"]
    _check(sorted(keys) == sorted(storages), f"its list of storages is not that of its tensors; {_AGAIN}")
    needed = end + sum(8 + count for count in storages.values())
    _check(len(file) >= needed, f"cut short: it has {len(file)} bytes of {needed}; {_AGAIN}")


def _storages(pickled: io.BytesIO | mmap.mmap) -> dict[str, int]:
    """The bytes of each storage that a pickle asks for, by key; _WrongFile where it asks for what no checkpoint has."""
    walk = _PickleWalk()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        is_short = count <= _OPCODES + _OPCODES_PER_STORAGE * len(walk.storages)
        _check(is_short, f"holds far more than tensors and settings, {_UNLIKE}")
        walk.step(opcode.name, argument)
    return walk.storages


class _Global(NamedTuple):
    """A function or class that a pickle names, "module name"."""

    name: str


class _Tuple(tuple):
    """A tuple that knows how many tuples lie in each other."""

    def __init__(self, items: list[Any]):
        self.depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
        _check(self.depth <= _DEEPEST_TUPLE, "holds values nested deeper than in any NVAE checkpoint")


class _PickleWalk:
    """The stack of an unpickler that builds nothing: plain values and tuples of them as they are, else `_OBJECT`."""

    def __init__(self):
        self.storages: dict[str, int] = {}
        self._stack, self._below, self._memo = [], [], {}

    def step(self, opcode: str, argument: Any) -> None:
        """Takes one opcode; those of torch's safe reader are known."""
        stack, keys = self._stack, []
        match opcode:
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                is_short = not isinstance(argument, int) or -(2**63) <= argument < 2**63
                _check(is_short, f"holds a whole number of more than 64 bits, {_UNLIKE}")
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append(_OBJECT)
            case "GLOBAL":
                # Of its own constants, types and storages torch's reader knows which are harmless.
                is_known = argument in _CALLS or argument.startswith(("torch ", "torch.storage "))
                name = argument.replace(" ", ".")[:200]
                _check(is_known, f"wants to build {name!r}, which no NVAE checkpoint needs; not loaded")
                stack.append(_Global(argument))
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "EMPTY_TUPLE":
                stack.append(_Tuple([]))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-int(opcode[-1]) :] = [_Tuple(stack[-int(opcode[-1]) :])]
            case "TUPLE":
                self._stack = self._below.pop()
                self._stack.append(_Tuple(stack))
            case "APPENDS" | "SETITEMS":
                self._stack = self._below.pop()
                keys = stack[::2] if opcode == "SETITEMS" else []
            case "APPEND":
                stack.pop()
            case "SETITEM":
                keys = [stack.pop(-2)]
                stack.pop()
            case "BUILD":
                _check(not isinstance(stack.pop(), tuple), "sets an object's attributes in an unknown way")
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "REDUCE" | "NEWOBJ":
                called, arguments = stack.pop(-2), stack.pop()
                name = called.name if isinstance(called, _Global) else "something"
                is_known = name in _CALLS and isinstance(arguments, tuple) and not (name in _EMPTY_CALLS and arguments)
                name = name.replace(" ", ".")[:200]
                _check(is_known, f"wants to call {name!r} in a way that no NVAE checkpoint does; not loaded")
                stack.append(_OBJECT)
            case "BINPERSID":
                self._note_storage(stack.pop())
                stack.append(_OBJECT)
            case "PROTO" | "STOP":
                pass
            case _:
                raise _WrongFile(f"{_NO_TORCH_FILE} (its pickle has {opcode})")
        # Python compares and hashes nested tuples without a bound.
        are_plain = all(isinstance(key, str | int) for key in keys)
        _check(are_plain, "has entries whose names are neither text nor numbers")

    def _note_storage(self, what: Any) -> None:
        """Notes `("storage", type, key, location, count)`; files before torch 1.6 have one item more."""
        import torch

        is_storage = isinstance(what, tuple) and len(what) in (5, 6) and what[0] == "storage"
        _check(is_storage, f"asks for something else than tensors, {_UNLIKE}")
        _, kind, key, location, count = what[:5]
        name = kind.name.rpartition(" ")[2] if isinstance(kind, _Global) else ""
        dtype = getattr(getattr(torch, name, None), "dtype", None)
        is_known = name.endswith("Storage") and isinstance(dtype, torch.dtype)
        _check(is_known, f"asks for tensors of an unknown kind, {_UNLIKE}")
        is_place = isinstance(key, str) and isinstance(location, str) and isinstance(count, int) and count >= 0
        _check(is_place, f"does not say which numbers its tensors have; {_AGAIN}")
        size = count * dtype.itemsize
        is_same = self.storages.setdefault(key, size) == size
        _check(is_same, f"asks for its record {key[:50]!r} in two sizes; {_AGAIN}")
