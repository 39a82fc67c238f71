"""What the client and the server for trials share: descriptions of signatures, and arrays as JSON and as messages.

The forms are TensorFlow Serving's. Only the functions for messages import TensorFlow.
"""

import base64
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.config import did_you_mean
from nvae_tf.errors import wrap_read_errors

STRING, BASE64, SIGNATURE_DEF = "string", "b64", "signature_def"
_LARGEST_TENSOR_BYTES = 2**31 - 1  # the limit of a protocol buffer message
# The Python types of JSON numbers that become an array of each kind; the other kinds take whole numbers.
_NUMBERS = {"f": (int, float), "b": (bool,)}
_MOST_DIMENSIONS = 32  # of NumPy's iterators

Arrays = dict[str, np.ndarray]


class TensorSpec(NamedTuple):
    """One input or output: a NumPy dtype or `string`, and a shape whose unknown sizes are None (None: any shape)."""

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = "..." if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype}[{sizes}]"

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Returns whether an array may have this shape."""
        if self.shape is None or len(shape) != len(self.shape):
            return self.shape is None
        return all(size in (None, given) for size, given in zip(self.shape, shape, strict=True))


class SignatureSpec(NamedTuple):
    """The inputs and outputs of one signature, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


def signature_specs(definitions: Mapping[str, Any]) -> dict[str, SignatureSpec]:
    """Returns the signatures among SignatureDefs as JSON; names like `__saved_model_init_op` are left out."""

    def tensor_spec(info: Mapping[str, Any]) -> TensorSpec:
        shape, dtype = info.get("tensor_shape", {}), info.get("dtype", "DT_INVALID").removeprefix("DT_").lower()
        sizes = [int(dimension.get("size", 0)) for dimension in shape.get("dim", ())]
        sizes = None if shape.get("unknown_rank") else tuple(None if size < 0 else size for size in sizes)
        return TensorSpec({"float": "float32", "double": "float64"}.get(dtype, dtype), sizes)

    specs = {}
    for name, definition in sorted(definitions.items()):
        if not name.startswith("__"):
            sides = (sorted(definition.get(side, {}).items()) for side in ("inputs", "outputs"))
            specs[name] = SignatureSpec(*({key: tensor_spec(info) for key, info in side} for side in sides))
    return specs


def check_inputs(arrays: Mapping[str, np.ndarray], spec: SignatureSpec) -> None:
    """Raises ValueError for wrong names, dtypes or shapes, and for inputs of different numbers of rows."""
    for name in arrays:
        if name not in spec.inputs:
            raise ValueError(f"no input {name!r}{did_you_mean(name, spec.inputs)}")
    for name, wanted in spec.inputs.items():
        if name not in arrays:
            raise ValueError(f"input {name!r} is missing; give {wanted}")
        dtype = STRING if arrays[name].dtype == object else arrays[name].dtype.name
        given = TensorSpec(dtype, arrays[name].shape)
        if dtype != wanted.dtype:
            raise ValueError(f"input {name!r} is {given}; give {wanted}, e.g. array.astype({wanted.dtype!r})")
        if not wanted.takes(given.shape):
            raise ValueError(f"input {name!r} is {given}; give {wanted}")
    if all(wanted.shape and wanted.shape[0] is None for wanted in spec.inputs.values()):
        rows = {name: len(array) for name, array in arrays.items()}
        if len(set(rows.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in rows.items())
            raise ValueError(f"inputs of different numbers of rows: {counts}")


def json_value(array: np.ndarray, as_base64: bool = True) -> Any:
    """Returns an array as nested lists: bytes as `{"b64": ...}`, which inputs need, or as UTF-8 for text outputs.

    Floats get the fewest decimals that give the number back, as TensorFlow Serving writes them.
    """
    if array.dtype.kind == "f":
        return array.astype(str).astype(float).tolist()
    if array.dtype != object or not array.size:
        return array.tolist()

    def text(value: bytes) -> Any:
        return {BASE64: base64.b64encode(value).decode()} if as_base64 else value.decode("utf-8", "replace")

    return np.frompyfunc(text, 1, 1)(array).tolist()


def array_from_json(value: Any, dtype: str) -> np.ndarray:
    """Returns the array of nested lists of numbers, or of strings and `{"b64": ...}`; ValueError for anything else."""
    uneven = ValueError("lists of different lengths, or nested too deep")
    try:
        # Objects: a string type of NumPy would take the size of the longest string for every item.
        array = np.array(value, object)
    except ValueError:
        raise uneven from None
    items = array.ravel().tolist()
    types = set(map(type, items))
    if array.ndim > _MOST_DIMENSIONS or list in types:
        raise uneven
    if dtype == STRING:
        decoded = np.empty(len(items), object)
        decoded[:] = list(map(_bytes_from_json, items))
        return decoded.reshape(array.shape)
    wanted = np.dtype(dtype)
    if wrong := types.difference(_NUMBERS.get(wanted.kind, (int,))):
        raise ValueError(f"a {', '.join(sorted(kind.__name__ for kind in wrong))} where {dtype} is wanted")
    try:
        return np.array(items, wanted).reshape(array.shape)
    except OverflowError:
        raise ValueError(f"a number that {dtype} can't hold") from None


def _bytes_from_json(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode("utf-8", errors="surrogatepass")
    text = item.get(BASE64) if isinstance(item, Mapping) and list(item) == [BASE64] else None
    if not isinstance(text, str):
        raise ValueError(f'a {type(item).__name__} where a string or {{"{BASE64}": "..."}} is wanted')
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"no base64 ({error})") from None


def array_from_message(message: Any, largest_bytes: int = _LARGEST_TENSOR_BYTES) -> np.ndarray:
    """Returns the array of a TensorProto, strings as object arrays of bytes.

    ValueError for a damaged message, and for one over `largest_bytes`: a message of a few bytes may claim any shape.
    """
    import tensorflow as tf

    shape = [dimension.size for dimension in message.tensor_shape.dim]
    with wrap_read_errors(f"a tensor of shape {shape} can't be read (", ")"):
        dtype = np.dtype(tf.as_dtype(message.dtype).as_numpy_dtype)
        if message.tensor_shape.unknown_rank or not 0 <= math.prod(shape) * dtype.itemsize <= largest_bytes:
            raise ValueError(f"no shape, or over {largest_bytes:,} bytes")
        array = tf.make_ndarray(message)
    if dtype.kind == "O" and not message.string_val:
        array.fill(b"")  # where TensorFlow has text
    return array


def message_as_json(message: Any) -> dict[str, Any]:
    """Returns a message as TensorFlow Serving's REST interface writes it."""
    from google.protobuf import json_format

    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return json_format.MessageToDict(message, **options)
