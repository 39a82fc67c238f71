"""What the files that this package writes must hold, and the check of that for arrays of `.npz` files and for JSON.

A schema is a table from names to fields. What has the right types, shapes and ranges can still be wrong: digests are
against that.
"""

import fnmatch
import json
import pathlib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Union

import numpy as np

# The largest finite float32.
LARGEST = float(np.finfo(np.float32).max)
MOST_PROPOSALS = 10_000  # of the reweighted prior
# NumPy's letters for the types that fit each kind; JSON may write a number without a point.
_KINDS = {"number": "fiu", "whole number": "iu", "truth value": "b", "text": "U", "any": "fiubUS"}
_LETTERS = {float: "f", int: "i", bool: "b", str: "U"}


class Field(NamedTuple):
    """What one array of a `.npz` file or one value of a JSON object must be.

    Attributes:
      kind: "number", "whole number", "truth value", "text", or "any" of these and bytes; or the schema of an object.
      shape: sizes of the axes, `()` for a single value; None for any size. A name stands for one size of at least 1,
        the same wherever it occurs, and as given by a whole number of this name before. None, no tuple: any shape.
      least: smallest number; None: numbers are not looked at, they may be NaN.
      most: largest number.
      optional: whether it may be missing; a text: the pattern of names of which one must be there in its place.
      ascending: whether numbers `[count]` must not fall.
    """

    kind: Union[str, "Schema"]
    shape: tuple[int | str | None, ...] | None = ()
    least: float | None = -LARGEST
    most: float = LARGEST
    optional: bool | str = False
    ascending: bool = False


# By name, or by pattern (`group_*`).
Schema = Mapping[str, Field]

_COUNT = Field("whole number", least=0, most=2**63)
_NUMBERS = Field("number", (None,))
# `prior.npz`: `ABOUT` as JSON, and the weights, whose shapes follow from that and the model.
OWNER = {"step": _COUNT, "weights_sha256": Field("text")}
PRIOR = OWNER | {"about": Field("text")}
ABOUT = {
    "kind": Field("text"),
    "groups": _COUNT,
    "proposals": _COUNT,
    **dict.fromkeys(("steps", "seed", "images"), _COUNT),
    "components": Field("whole number", (), 1, 100, optional=True),
    **dict.fromkeys(("cross_entropy", "effective_proposals"), Field("number", ("groups",), optional=True)),
    **dict.fromkeys(("log_normalizers", "log_normalizer_errors"), _NUMBERS),
    "bounds": Field(
        {name: _COUNT for name in ("samples", "images")} | dict.fromkeys(("model", "reweighted"), Field("number")),
        optional=True,
    ),
}
# `outliers.npz`: of each group's KL and of the reconstruction.
CALIBRATION = OWNER | {
    "mean": Field("number", ("numbers",)),
    "covariance": Field("number", ("numbers", "numbers")),
    "kl": Field("number", ("images",), ascending=True),
    "mahalanobis": Field("number", ("images",), 0.0, ascending=True),
}
# Files of latents; older ones have an array for each group.
LATENTS = {
    "latent": Field("number", ("count", "total"), optional="group_*"),
    "group_*": Field("number", ("count", None, None, None), optional=True),
    "about": Field("text", optional=True),
    "names": Field("text", ("count",), optional=True),
    "labels": Field("whole number", ("count",), -1, 2**31 - 1, optional=True),
}
LATENT_SHAPES = {"latent_shapes": Field("whole number", ("groups", 3), 1, 2**31 - 1)}
# `verification.npz` of an export, and its `examples.npz`.
RECORD = {name: Field("any", None) for name in ("inputs/*/*", "outputs/*/*")}
EXAMPLE_IMAGES = {
    "images": Field("whole number", ("count", "height", "width", "channels"), 0, 255),
    "labels": Field("whole number", ("count",), -1, 2**31 - 1, optional=True),
    "classes": Field("text", (None,), optional=True),
}
# What is kept of the features of images, see `nvae_tf.evaluation.fid`.
STATISTICS = {
    "mean": Field("number", ("features",)),
    "covariance": Field("number", ("features", "features")),
    "count": Field("whole number", (), 2, 2**63),
    "fingerprint": Field("text"),
}
# Of whatever names and values.
ANY = {"*": Field("any", None, None)}


def checked(values: Any, schema: Schema, where: str = "", sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The values that a schema names, out of arrays or out of what JSON gives; others are left out.

    `sizes` are those of named axes that are known before, `where` begins the message. ValueError, one line, for values
    that are missing, or of other types, shapes or ranges.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}it is {reprlib.repr(values)}; it must be an object")
    sizes, fields = dict(sizes or {}), fields_of(values, schema, where)
    for name, field in fields.items():
        value, place = values[name], f"{where}`{name}`"
        if isinstance(field.kind, Mapping):
            checked(value, field.kind, f"{place}: ")
        else:
            array = value if isinstance(value, np.ndarray) else np.asarray(value, object)
            check_form(array, field, place, sizes)
            _check_values(array, field, place)
            sizes |= {name: int(value)} if (field.kind, field.shape) == ("whole number", ()) else {}
    return {name: values[name] for name in fields}


def fields_of(names: Iterable[str], schema: Schema, where: str = "") -> dict[str, Field]:
    """The field of each of the names that a schema knows; ValueError where one is missing."""

    def matches(pattern: str) -> list[str]:
        return [name for name in names if fnmatch.fnmatchcase(name, pattern)]

    for pattern, field in schema.items():
        needed = [] if field.optional is True else [pattern, *filter(None, [field.optional])]
        if needed and not any(map(matches, needed)):
            there = ", ".join(sorted(names)[:5]) or "nothing"
            raise ValueError(f"{where}it has {there}, and no entry `{pattern}`")
    return {name: field for pattern, field in schema.items() for name in matches(pattern)}


def check_form(form: Any, field: Field, place: str, sizes: dict[str, int]) -> None:
    """Raises ValueError unless an array, or the header of one, has the type and shape of a field; adds to `sizes`."""
    of_json = form.dtype == object
    letters = {_LETTERS.get(type(item), "O") for item in form.flat} if of_json else {form.dtype.kind}
    shape = form.shape if field.shape is None else field.shape
    if len(shape) == len(form.shape):
        pairs = zip(shape, form.shape, strict=True)
        sizes |= {name: size for name, size in pairs if isinstance(name, str) and size and name not in sizes}
    wanted = [sizes.get(size, size) for size in shape]
    fits = len(wanted) == len(form.shape) and all(
        size in (None, there) for size, there in zip(wanted, form.shape, strict=True)
    )
    if not fits or not letters <= set(_KINDS[field.kind]):
        found = reprlib.repr(form.tolist()) if of_json else f"of shape {list(form.shape)} and type {form.dtype}"
        axes = f" of shape [{', '.join('any' if size is None else str(size) for size in wanted)}]" if wanted else ""
        raise ValueError(f"{place} is {found}; it must be a {field.kind}{axes}")


def _check_values(array: np.ndarray, field: Field, place: str) -> None:
    """Raises ValueError for numbers that are NaN, out of the range of a field, or not in its order."""
    numeric = field.kind in ("number", "whole number") or array.dtype.kind in "fiu"
    if field.least is None or not numeric or not array.size:
        return
    # Without a copy: arrays may be large. NaN is the smallest where there is one.
    extremes = array.flat if array.dtype == object else (array.min().item(), array.max().item())
    if not all(field.least <= value <= field.most for value in extremes):
        rule = "finite" if field.least == -LARGEST else f"from {field.least:g} to {field.most:g}"
        raise ValueError(f"{place} has numbers that are not all {rule}")
    if field.ascending and not (np.diff(array) >= 0).all():
        raise ValueError(f"{place} is not in ascending order")


def parsed(text: str, schema: Schema, where: str = "", sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The values that a schema names of a JSON object, see `checked`."""
    try:
        values = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{where}not JSON ({error})") from None
    return checked(values, schema, where, sizes)


def read_object(file: pathlib.Path, schema: Schema) -> dict[str, Any]:
    """The values that a schema names of a JSON file; ValueError with the file's name, see `checked`, or OSError."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text ({error})") from None
    return parsed(text, schema, f"{file}: ")
