"""Checks of a `.pt` file before torch reads it, without torch: whether its parts are whole and are what it says.

Torch takes a tensor's numbers from where the archive's directory puts them, as many as the pickle asks for, and looks
at neither sizes nor checksums. Here the pickle is walked through, opcode by opcode, and nothing of it is built.
"""

import io
import mmap
import pathlib
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from nvae_tf.errors import first_line

NO_TORCH_FILE = "is no torch file; give the path of a published checkpoint (.pt), or get it again from its source"
AGAIN = "the file is damaged, get it again from its source"

_ARCHIVE_START = b"PK\x03\x04"
# Files before torch 1.6 are no archives: a pickled magic number, three more pickles, the storages' keys, and these.
_OLD_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_MEGABYTE = 1 << 20
# Weights hardly shrink when they are packed; zeros do, but no model consists of those.
_MOST_UNPACKED, _UNPACKED_MARGIN = 4, 64 * _MEGABYTE
# A tensor takes some 35 opcodes, and all settings together some hundreds.
_OPCODES, _OPCODES_A_STORAGE = 50_000, 300
_DEEPEST_TUPLE = 3

_ITEM_BYTES = {
    "BFloat16Storage": 2,
    "BoolStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "IntStorage": 4,
    "LongStorage": 8,
    "QInt32Storage": 4,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "ShortStorage": 2,
    "UntypedStorage": 1,
}
# Each is called with nothing.
_EMPTY = ("collections OrderedDict", "argparse Namespace")
# With kinds of tensors that no NVAE checkpoint has: what reads them later names the tensor.
_CALLED = {
    *_EMPTY,
    "torch Size",
    "torch.serialization _get_layout",
    *(f"torch._utils _rebuild_{kind}" for kind in ("parameter", "qtensor", "sparse_tensor", "tensor", "tensor_v2")),
    "torch._utils _rebuild_tensor_v3",
}
# Lists, dictionaries, tensors: what is in them does not matter here.
_OBJECT = object()


class WrongFile(ValueError):
    """A file that must not be read; the message is one line, without the file's name."""


class _Global(NamedTuple):
    """A function or class that a pickle names, "module name"."""

    name: str


class _Tuple(tuple):
    """A tuple that knows how many tuples lie within each other."""

    depth = 1


def check_torch_file(path: pathlib.Path, report: Callable[[int], None]) -> bool:
    """Checks that a file is whole and asks for nothing but tensors and plain data.

    Args:
      path: the file.
      report: is given the bytes whose checksums are looked at so far.

    Returns:
      Whether its tensors may be mapped into memory: none of them is compressed, and it is no file before torch 1.6.

    Raises:
      WrongFile: it must not be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_OLD_START))
            if start == _OLD_START:
                # Reads no more than there is, however long a text is said to be.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    _check_old_form(mapped)
                return False
        if not start.startswith(_ARCHIVE_START):
            raise WrongFile(NO_TORCH_FILE)
        with zipfile.ZipFile(path) as archive:
            return _check_archive(archive, path.stat().st_size, report)
    except (WrongFile, MemoryError, PermissionError):
        raise
    # Of damaged files zipfile, zlib and pickletools raise errors of many kinds.
    except Exception as error:
        raise WrongFile(
            f"not a whole torch file, cut short or damaged; download it again ({first_line(error)[:200]})"
        ) from error


def most_unpacked(size: int) -> int:
    """To how many bytes a file of `size` may unpack, or its tensors add up that share their numbers."""
    return _MOST_UNPACKED * size + _UNPACKED_MARGIN


def _check_archive(archive: zipfile.ZipFile, size: int, report: Callable[[int], None]) -> bool:
    entries = archive.infolist()
    _check_directory(entries, size)
    if not any(entry.CRC for entry in entries):
        # Torch can be asked to make no checksums; it then writes 0, which `zipfile` would compare.
        for entry in entries:
            entry.CRC = None
    folder = entries[0].filename.partition("/")[0]
    found = {entry.filename: entry for entry in entries}
    if f"{folder}/data.pkl" not in found:
        raise WrongFile(f"{NO_TORCH_FILE} (it is an archive of other files)")
    if f"{folder}/byteorder" in found and archive.read(found[f"{folder}/byteorder"]) != sys.byteorder.encode():
        raise WrongFile(
            "its numbers are in a byte order that is not this machine's; load and save it on one of its kind"
        )
    storages = _storages(io.BytesIO(archive.read(found[f"{folder}/data.pkl"])))
    for key, needed in storages.items():
        entry = found.get(f"{folder}/data/{key}")
        if entry is None or entry.file_size != needed:
            has = "is missing" if entry is None else f"has {entry.file_size} bytes"
            raise WrongFile(f"its part {key[:50]!r} {has} where its tensors need {needed}; {AGAIN}")
    _check_all_used(folder, found, storages)
    done = 0
    for entry in entries:
        with archive.open(entry) as part:
            while chunk := part.read(_MEGABYTE):
                done += len(chunk)
                report(done)
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _check_directory(entries: list[zipfile.ZipInfo], size: int) -> None:
    # Torch passes over upper and lower case.
    if len({entry.filename.lower() for entry in entries}) < len(entries):
        raise WrongFile(f"has two parts of one name; {AGAIN}")
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise WrongFile(
                f"has {entry.filename[:50]!r} packed in a way that torch does not read; pack it by deflation"
            )
        if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
            raise WrongFile(f"has {entry.filename[:50]!r} with two sizes; {AGAIN}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > most_unpacked(size):
        raise WrongFile(f"would unpack to {unpacked / 1e6:,.0f} MB from {size / 1e6:,.1f}: no model's weights; {AGAIN}")


def _check_all_used(folder: str, found: Iterable[str], storages: Iterable[str]) -> None:
    """Torch writes no numbers without a tensor: where some are left over, a tensor has those of another."""
    start = f"{folder}/data/"
    unused = {name.removeprefix(start) for name in found if name.startswith(start)}.difference(storages, {""})
    if unused:
        raise WrongFile(f"its part {min(unused)[:50]!r} belongs to none of its tensors; {AGAIN}")


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
    if sorted(keys) != sorted(storages):
        raise WrongFile(f"its list of storages is not that of its tensors; {AGAIN}")
    needed = end + sum(8 + count for count in storages.values())
    if len(file) < needed:
        raise WrongFile(f"cut short: it has {len(file)} bytes of {needed}; {AGAIN}")


def _storages(pickled: io.BytesIO | mmap.mmap) -> dict[str, int]:
    """The bytes of each storage that a pickle asks for, by key.

    Raises:
      WrongFile: it asks for more than tensors and plain data, or for numbers or nested values that no checkpoint has.
    """
    walk = _PickleWalk()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if count > _OPCODES + _OPCODES_A_STORAGE * len(walk.storages):
            raise WrongFile("holds far more than tensors and settings, which no NVAE checkpoint does")
        walk.step(opcode.name, argument)
    return walk.storages


class _PickleWalk:
    """The stack of an unpickler that builds nothing: plain values and tuples of them as they are, else `_OBJECT`.

    Attributes:
      storages: the bytes of each storage so far, by key.
    """

    def __init__(self):
        self.storages: dict[str, int] = {}
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Takes one opcode; those of torch's safe reader are known."""
        stack = self._stack
        match opcode:
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(_plain(argument))
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append(_OBJECT)
            case "GLOBAL":
                stack.append(_global(argument))
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "EMPTY_TUPLE":
                stack.append(_tuple([]))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-int(opcode[-1]) :] = [_tuple(stack[-int(opcode[-1]) :])]
            case "TUPLE" | "APPENDS" | "SETITEMS":
                self._stack = self._below.pop()
                self._take(opcode, stack)
            case "APPEND" | "BUILD":
                self._take(opcode, [stack.pop()])
            case "SETITEM":
                self._take(opcode, [stack.pop(-2), stack.pop()])
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "REDUCE" | "NEWOBJ":
                _check_call(stack.pop(-2), stack.pop())
                stack.append(_OBJECT)
            case "BINPERSID":
                self._note_storage(stack.pop())
                stack.append(_OBJECT)
            case "PROTO" | "STOP":
                pass
            case _:
                raise WrongFile(f"{NO_TORCH_FILE} (its pickle has {opcode})")

    def _take(self, opcode: str, items: list[Any]) -> None:
        if opcode == "TUPLE":
            self._stack.append(_tuple(items))
        elif opcode == "BUILD" and isinstance(items[0], tuple):
            raise WrongFile("sets an object's attributes in a way that no NVAE checkpoint does")
        # Python compares and hashes nested tuples without a bound.
        elif opcode.startswith("SETITEM") and not all(isinstance(key, str | int) for key in items[::2]):
            raise WrongFile("has entries whose names are neither text nor numbers")

    def _note_storage(self, what: Any) -> None:
        """Notes `("storage", type, key, location, count)`; in files before torch 1.6 there is one thing more."""
        if not isinstance(what, tuple) or len(what) not in (5, 6) or what[0] != "storage":
            raise WrongFile("asks for something else than tensors, which no NVAE checkpoint does")
        _, kind, key, location, count = what[:5]
        module, _, name = kind.name.rpartition(" ") if isinstance(kind, _Global) else ("", "", "")
        if module not in ("torch", "torch.storage") or name not in _ITEM_BYTES:
            raise WrongFile("asks for tensors of a kind that is not known, which no NVAE checkpoint has")
        if not isinstance(key, str) or not isinstance(location, str) or not isinstance(count, int) or count < 0:
            raise WrongFile(f"does not say which numbers its tensors have; {AGAIN}")
        if self.storages.setdefault(key, count * _ITEM_BYTES[name]) != count * _ITEM_BYTES[name]:
            raise WrongFile(f"asks for its part {key[:50]!r} in two sizes; {AGAIN}")


def _plain(value: Any) -> Any:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise WrongFile(f"holds a whole number of {value.bit_length()} bits, which no NVAE checkpoint does")
    return value


def _global(name: str) -> _Global:
    # Of torch's own constants, types and storages torch's reader knows which are harmless.
    if name not in _CALLED and not name.startswith(("torch ", "torch.storage ")):
        raise WrongFile(f"wants to build {name.replace(' ', '.')[:200]!r}, which no NVAE checkpoint needs; not loaded")
    return _Global(name)


def _tuple(items: list[Any]) -> "_Tuple":
    made = _Tuple(items)
    made.depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
    if made.depth > _DEEPEST_TUPLE:
        raise WrongFile("holds values nested deeper than in any NVAE checkpoint")
    return made


def _check_call(called: Any, arguments: Any) -> None:
    if not isinstance(called, _Global) or called.name not in _CALLED or not isinstance(arguments, tuple):
        name = called.name.replace(" ", ".")[:200] if isinstance(called, _Global) else "something"
        raise WrongFile(f"wants to call {name!r}, which no NVAE checkpoint needs; not loaded")
    if called.name in _EMPTY and arguments:
        name = called.name.replace(" ", ".")
        raise WrongFile(f"wants to call {name!r} with arguments, which no NVAE checkpoint needs; not loaded")
