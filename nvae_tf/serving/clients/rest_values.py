"""Arrays as the JSON of TensorFlow Serving's REST interface, and back.

Numbers are JSON numbers in nested lists. Bytes are `{"b64": "..."}`: in inputs always, in outputs where the name
ends in `_bytes`; other strings of outputs are plain text.
"""

import base64
import binascii
from typing import Any

import numpy as np

from nvae_tf.serving.clients.tensor_messages import STRING

BASE64 = "b64"
BYTES_SUFFIX = "_bytes"


def json_of(array: np.ndarray, as_base64: bool = True) -> Any:
    """The nested lists of an array; its bytes in base64 or, for text outputs, as UTF-8."""
    if array.dtype != object:
        return array.tolist()
    encode = _base64 if as_base64 else _text
    encoded = np.empty(array.shape, object)
    for place, value in np.ndenumerate(array):
        encoded[place] = encode(value)
    return encoded.tolist()


def array_of_json(value: Any, dtype: str) -> np.ndarray:
    """The array that nested lists stand for.

    Raises:
      ValueError: lists of different lengths, or values of another type.
    """
    shape = _shape(value)
    flat = _flat(value, len(shape))
    if dtype == STRING:
        array = np.empty(len(flat), object)
        array[:] = [_bytes(item) for item in flat]
    else:
        array = _numbers(flat, np.dtype(dtype))
    if array.size != np.prod(shape, dtype=np.int64):
        raise ValueError("lists of different lengths")
    return array.reshape(shape)


def _shape(value: Any) -> tuple[int, ...]:
    """The shape that the first item of every list asks for."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _flat(value: Any, depth: int) -> list:
    """All items in one list; every list on the way must be as long as its neighbors."""
    level = [value]
    for _ in range(depth):
        if not all(isinstance(item, list) for item in level) or len({len(item) for item in level}) > 1:
            raise ValueError("lists of different lengths")
        level = [item for part in level for item in part]
    if any(isinstance(item, list) for item in level):
        raise ValueError("lists of different lengths")
    return level


def _numbers(flat: list, dtype: np.dtype) -> np.ndarray:
    wanted = {"f": (int, float), "b": (bool,)}.get(dtype.kind, (int,))
    kinds = {type(item) for item in flat}
    if not kinds <= set(wanted):
        wrong = next(kind for kind in kinds if kind not in wanted)
        raise ValueError(f"a {wrong.__name__} where {dtype.name} is wanted")
    try:
        return np.array(flat, dtype)
    except OverflowError:
        raise ValueError(f"a number that {dtype.name} can't hold") from None


def _base64(value: bytes) -> dict[str, str]:
    return {BASE64: base64.b64encode(value).decode("ascii")}


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")


def _bytes(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode("utf-8", errors="surrogatepass")
    if isinstance(item, dict) and list(item) == [BASE64] and isinstance(item[BASE64], str):
        try:
            return base64.b64decode(item[BASE64], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"no base64 ({error})") from None
    raise ValueError(f'a {type(item).__name__} where a string or {{"{BASE64}": "..."}} is wanted')
