"""NumPy arrays to and from `TensorProto`, without TensorFlow.

Strings are object arrays of `bytes`: NumPy's own fixed-width strings lose zero bytes at the end.
"""

import math
from typing import NamedTuple

import numpy as np

from nvae_tf.serving.clients.serving_messages import tensor_pb2, types_pb2

STRING = "string"
LARGEST_BYTES = 2**31 - 1  # of a protocol buffer message


class _Type(NamedTuple):
    dtype: str
    field: str


# How a message holds the values of each type, if not as raw bytes.
_TYPES = {
    types_pb2.DT_FLOAT: _Type("float32", "float_val"),
    types_pb2.DT_DOUBLE: _Type("float64", "double_val"),
    types_pb2.DT_INT8: _Type("int8", "int_val"),
    types_pb2.DT_INT16: _Type("int16", "int_val"),
    types_pb2.DT_INT32: _Type("int32", "int_val"),
    types_pb2.DT_INT64: _Type("int64", "int64_val"),
    types_pb2.DT_UINT8: _Type("uint8", "int_val"),
    types_pb2.DT_UINT16: _Type("uint16", "int_val"),
    types_pb2.DT_UINT32: _Type("uint32", "uint32_val"),
    types_pb2.DT_UINT64: _Type("uint64", "uint64_val"),
    types_pb2.DT_BOOL: _Type("bool", "bool_val"),
    types_pb2.DT_STRING: _Type(STRING, "string_val"),
}
_NUMBERS = {known.dtype: number for number, known in _TYPES.items()}


def dtype_of(number: int) -> str:
    """The NumPy name of TensorFlow's type `number`, `string` for bytes; types that models here don't use keep
    TensorFlow's name.
    """
    return _TYPES[number].dtype if number in _TYPES else types_pb2.DataType.Name(number)


def tensor_message(array: np.ndarray) -> tensor_pb2.TensorProto:
    """The array as raw bytes, strings one by one, as clients send it.

    Raises:
      ValueError: its dtype is none of a tensor.
    """
    message = _empty_message(array)
    if array.dtype == object:
        message.string_val.extend(array.ravel().tolist())
    else:
        # Little-endian, whatever the array's own order of bytes.
        message.tensor_content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return message


def tensor_message_in_fields(array: np.ndarray) -> tensor_pb2.TensorProto:
    """The array value by value, as TensorFlow Serving answers if nothing else is set."""
    message = _empty_message(array)
    getattr(message, _TYPES[message.dtype].field).extend(array.ravel().tolist())
    return message


def array_of(message: tensor_pb2.TensorProto, largest_bytes: int = LARGEST_BYTES) -> np.ndarray:
    """The array of a message, which may hold raw bytes, one value each, or a last value that stands for the rest.

    Args:
      message: the message.
      largest_bytes: a message of a few bytes may claim any shape; this is the largest array that is made of one.

    Raises:
      ValueError: a type that is none of numbers or strings, another number of values than the shape asks for,
        or too large an array.
    """
    if message.dtype not in _TYPES:
        raise ValueError(f"a tensor of type {message.dtype} can't be read")
    dtype, field = _TYPES[message.dtype]
    shape = [dimension.size for dimension in message.tensor_shape.dim]
    if message.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise ValueError("a tensor without a shape")
    wanted = math.prod(shape)
    width = np.dtype(object if dtype == STRING else dtype).itemsize
    if wanted * width > largest_bytes:
        raise ValueError(f"a tensor of shape {shape} is over {largest_bytes:,} bytes")
    if dtype == STRING:
        values = np.array([*message.string_val, None], object)[:-1]
    elif message.tensor_content:
        if len(message.tensor_content) != wanted * width:
            raise ValueError(f"{len(message.tensor_content)} bytes are no {dtype} tensor of shape {shape}")
        values = np.frombuffer(message.tensor_content, dtype)
    else:
        values = np.array(getattr(message, field), dtype)
    if len(values) > wanted:
        raise ValueError(f"a tensor of shape {shape} has {wanted} values, the message has {len(values)}")
    if len(values) < wanted:
        # The last value stands for the rest; without any it is zero or the empty string.
        last = values[-1] if len(values) else (b"" if dtype == STRING else 0)
        values = np.concatenate([values, np.full(wanted - len(values), last, values.dtype)])
    return values.reshape(shape)


def _empty_message(array: np.ndarray) -> tensor_pb2.TensorProto:
    name = STRING if array.dtype == object else array.dtype.name
    if name not in _NUMBERS:
        raise ValueError(f"an array of dtype {array.dtype} can't be sent; give one of {', '.join(sorted(_NUMBERS))}")
    message = tensor_pb2.TensorProto(dtype=_NUMBERS[name])
    for size in array.shape:
        message.tensor_shape.dim.add(size=size)
    return message
