"""What the files that this package writes must hold: tables of fields, by which `.npz` and JSON files are read."""

import dataclasses
import fnmatch
import io
import json
import math
import pathlib
import reprlib
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, ClassVar, NamedTuple, Self

import numpy as np

from nvae_tf.errors import wrap_read_errors
from nvae_tf.files import atomic_file

LARGEST = float(np.finfo(np.float32).max)
# The most bytes of an unpacked `.npz` file, besides four times its own: arrays of random numbers hardly shrink.
_UNPACKED = 2**28
_LONGEST_HEADER = 2**14  # bytes before the values of an array
# By NumPy's letters for types; JSON may write a number without a point.
_KINDS = {"number": "fiu", "whole number": "iu", "truth value": "b", "text": "U", "value": "fiubUS"}
_LETTERS = {float: "f", int: "i", bool: "b", str: "U"}


class Field(NamedTuple):
    """What an array of a `.npz` file, or a value of a JSON object, must be."""

    kind: Any  # one of `_KINDS`, or the schema of an object; None: anything
    # Sizes. None: any size. A name: a size of at least 1, the same wherever the name occurs; where a whole number of
    # this name comes before, that number. None in place of the tuple: any shape.
    shape: tuple[int | str | None, ...] | None = ()
    least: float | None = -LARGEST  # None: numbers may be anything, NaN too
    most: float = LARGEST
    optional: bool | str = False  # a text: it may be missing where there are names of this pattern
    ascending: bool = False


Schema = Mapping[str, Field]  # by name or by pattern
_COUNT, _TEXT = Field("whole number", (), 0, 2**63), Field("text")
_LABELS = Field("whole number", ("count",), -1, 2**31 - 1, optional=True)
# `images.json` and `origin.json` of a run folder.
IMAGE_COUNTS = dict.fromkeys(("train", "test"), _COUNT) | {
    "a_step": _COUNT._replace(least=1, optional=True),
    "held_out": Field("truth value", optional=True),
    "class_names": Field("text", (None,), optional=True),
}
ORIGIN = dict.fromkeys(("source_file", "sha256", "license"), Field("text", optional=True))
ORIGIN["step"] = _COUNT._replace(optional=True)
# What belongs to exact weights: `outliers.npz`, and `prior.npz` with `ABOUT` as JSON and the weights that it implies.
OWNER = {"step": _COUNT, "weights_sha256": _TEXT}
PRIOR = OWNER | {"about": _TEXT}
ABOUT = {
    **dict.fromkeys(("groups", "proposals", "steps", "seed", "images"), _COUNT),
    "kind": _TEXT,
    # Of a mixture the one, of classifiers the others.
    "components": Field("whole number", (), 1, 100, optional="cross_entropy"),
    **dict.fromkeys(("cross_entropy", "effective_proposals"), Field("number", ("groups",), optional="components")),
    **dict.fromkeys(("log_normalizers", "log_normalizer_errors"), Field("number", (None,))),
    "bounds": Field(
        dict.fromkeys(("samples", "images"), _COUNT) | dict.fromkeys(("model", "reweighted"), Field("number")),
        optional=True,
    ),
}
CALIBRATION = OWNER | {
    "mean": Field("number", ("numbers",)),
    "covariance": Field("number", ("numbers", "numbers")),
    "kl": Field("number", ("images",), ascending=True),
    "mahalanobis": Field("number", ("images",), 0.0, ascending=True),
}
LATENTS = {  # files of latents; older ones have an array for each group
    "latent": Field("number", ("count", "total"), optional="group_*"),
    "group_*": Field("number", ("count", None, None, None), optional=True),
    "about": Field("text", optional=True),
    "names": Field("text", ("count",), optional=True),
    "labels": _LABELS,
}
LATENT_SHAPES = {"latent_shapes": Field("whole number", ("groups", 3), 1, 2**31 - 1)}
# `verification.npz` and `examples.npz` of an export.
RECORD = dict.fromkeys(("inputs/*/*", "outputs/*/*"), Field("value", None))
EXAMPLES = {
    "images": Field("whole number", ("count", None, None, None), 0, 255),
    "labels": _LABELS,
    "classes": Field("text", (None,), optional=True),
}


def checked(values: Any, schema: Schema, where: str = "", sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The values that a schema names, of arrays or of what JSON gives; `sizes` are those that are known before.

    ValueError, which begins with `where`, for what is missing, of another type or shape, or out of its range.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}it is {reprlib.repr(values)}; it must be an object")
    sizes, fields = dict(sizes or {}), fields_of(values, schema, where)
    for name, field in fields.items():
        if isinstance(field.kind, Mapping):
            checked(values[name], field.kind, f"{where}`{name}`: ")
        elif field.kind:
            _check_field(values[name], field, f"{where}`{name}`", sizes)
            sizes |= {name: int(values[name])} if (field.kind, field.shape) == ("whole number", ()) else {}
    return {name: values[name] for name in fields}


def fields_of(names: Iterable[str], schema: Schema, where: str = "") -> dict[str, Field]:
    """The fields of those names that a schema knows; ValueError where one is missing."""
    fields = {name: field for pattern, field in schema.items() for name in names if fnmatch.fnmatchcase(name, pattern)}
    for pattern, field in schema.items():
        others = () if field.optional is True else (pattern, field.optional or pattern)
        if others and not any(fnmatch.fnmatchcase(name, other) for name in fields for other in others):
            there = ", ".join(sorted(names)[:5]) or "nothing"
            raise ValueError(f"{where}it has {there}, and no entry `{pattern}`")
    return fields


def _check_field(value: Any, field: Field, place: str, sizes: dict[str, int]) -> None:
    """Raises ValueError for a value that does not fit a field; adds to `sizes`."""
    form = value if hasattr(value, "dtype") else np.asarray(value, object)
    is_json = form.dtype == object
    letters = {_LETTERS.get(type(item), "O") for item in form.flat} if is_json else {form.dtype.kind}
    shape = form.shape if field.shape is None else field.shape
    for name, size in zip(shape, form.shape, strict=False):
        if isinstance(name, str) and size:
            sizes.setdefault(name, size)
    wanted = [sizes.get(size, size) for size in shape]
    fits = len(wanted) == form.ndim and all(map(lambda size, there: size in (None, there), wanted, form.shape))
    if not fits or not letters <= set(_KINDS[field.kind]):
        actual = reprlib.repr(value) if is_json else f"of shape {list(form.shape)} and type {form.dtype}"
        axes = f" of shape [{', '.join('any' if size is None else str(size) for size in wanted)}]" if wanted else ""
        raise ValueError(f"{place} is {actual}; it must be a {field.kind}{axes}")
    if field.least is None or not letters <= set("fiu") or not form.size:
        return
    # Without a copy: arrays may be large. NaN is their smallest.
    extremes = form.flat if is_json else (form.min().item(), form.max().item())
    if not all(field.least <= number <= field.most for number in extremes):
        rule = "finite" if field.least == -LARGEST else f"from {field.least:.8g} to {field.most:.8g}"
        raise ValueError(f"{place} has numbers that are not all {rule}")
    if field.ascending and not (np.diff(form) >= 0).all():
        raise ValueError(f"{place} is not in ascending order")


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a `.npz` file."""
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: pathlib.Path, schema: Schema, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file that a schema names, see `checked`; others are not read.

    ValueError with the reason alone where the file is damaged or something else, before much is unpacked.
    """
    with path.open("rb") as stream, wrap_read_errors("", ""):
        if not zipfile.is_zipfile(stream):
            raise ValueError("not a .npz file, or cut off")
        with zipfile.ZipFile(stream) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            wanted = {name: entries[name] for name in fields_of(entries, schema)}
            total = sum(entry.file_size for entry in wanted.values())
            # Of other methods zipfile unpacks blocks of any size.
            plain = {entry.compress_type for entry in wanted.values()} <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
            if total > _UNPACKED + 4 * path.stat().st_size or not plain:
                raise ValueError(f"it would unpack to {total:,} bytes; numpy.savez writes its arrays as they are")
            arrays = {name: read_array(archive.open(entry), entry.file_size) for name, entry in wanted.items()}
    return checked(arrays, schema, sizes=sizes)


def read_array(stream: BinaryIO, most: int) -> np.ndarray:
    """The array in NumPy's format that a stream holds to its end, of this machine's byte order.

    ValueError for more than `most` bytes of values by the header, for other bytes behind them, and for Python objects.
    """
    shape, dtype = read_array_header(stream)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > most:
        raise ValueError(f"its header says {dtype} {list(shape)}, and there are {most:,} bytes")
    stream.seek(0)
    # Into its place piece by piece: with the bytes beside the array it would take twice the memory.
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if stream.read(1):  # reading to the end checks the CRC of an entry too
        raise ValueError("other bytes follow its values")
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_array_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the type of an array in NumPy's format."""
    # The second version's header may say that it is gigabytes long.
    start = io.BytesIO(stream.read(_LONGEST_HEADER))
    is_first = np.lib.format.read_magic(start) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(start)
    return shape, dtype


def parsed(text: str | bytes, schema: Schema, where: str = "") -> dict[str, Any]:
    """The values that a schema names of a JSON object, see `checked`."""
    with wrap_read_errors(f"{where}not JSON (", ")"):
        values = json.loads(text)
    return checked(values, schema, where)


def read_object(file: pathlib.Path) -> dict[str, Any]:
    """The values of a JSON file, whatever their names; ValueError where it is none, OSError where it can't be read."""
    return parsed(file.read_bytes(), {"*": Field(None, optional=True)}, f"{file}: ")


@dataclasses.dataclass(frozen=True)
class Record:
    """A small JSON file of a run folder, of the fields in `schema`; a field that is None is left out."""

    schema: ClassVar[Schema]

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """The record in the contents of a file; a ValueError says which form is needed."""
        values = parsed(text, cls.schema)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    @classmethod
    def read(cls, file: pathlib.Path) -> Self | None:
        """The record in a file; None where there is none, ValueError where it has another form."""
        try:
            return cls.parse(file.read_bytes()) if file.is_file() else None
        except ValueError as error:
            raise ValueError(f"{file}: {error}; fix or delete it") from error

    def text(self) -> str:
        """The contents of the file."""
        return json.dumps({name: value for name, value in vars(self).items() if value is not None}) + "\n"
