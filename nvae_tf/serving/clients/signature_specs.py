"""What a served model says of its signatures, and whether arrays fit one: told before anything is sent."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.serving.clients.serving_messages import meta_graph_pb2
from nvae_tf.serving.clients.tensor_messages import STRING, dtype_of


class TensorSpec(NamedTuple):
    """One input or output: a NumPy dtype or `string`, and a shape whose unknown sizes are None (None: any shape)."""

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = "..." if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype}[{sizes}]"


class SignatureSpec(NamedTuple):
    """The inputs and outputs of one signature, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


class ModelMetadata(NamedTuple):
    """A served model: its name, the version that answered, and its signatures."""

    name: str
    version: int
    signatures: dict[str, SignatureSpec]


def signature_specs(definitions: Mapping[str, meta_graph_pb2.SignatureDef]) -> dict[str, SignatureSpec]:
    """The signatures of a server's metadata, less `__saved_model_init_op` and others without a batch of inputs."""
    return {
        name: SignatureSpec(_specs(definition.inputs), _specs(definition.outputs))
        for name, definition in sorted(definitions.items())
        if not name.startswith("__")
    }


def _specs(infos: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, TensorSpec]:
    return {name: _spec(info) for name, info in sorted(infos.items())}


def _spec(info: meta_graph_pb2.TensorInfo) -> TensorSpec:
    shape = info.tensor_shape
    sizes = None if shape.unknown_rank else tuple(None if d.size < 0 else d.size for d in shape.dim)
    return TensorSpec(dtype_of(info.dtype), sizes)


def nearest(name: str, known: Iterable[str]) -> str:
    """The name that was probably meant; any, if none is near."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def as_arrays(inputs: Mapping[str, Any], spec: SignatureSpec | None) -> dict[str, np.ndarray]:
    """The inputs as arrays; plain Python numbers and lists, which have no dtype, get the one of the signature.

    Raises:
      ValueError: an input that is no array.
    """
    arrays = {}
    for name, value in inputs.items():
        wanted = spec.inputs.get(name) if spec else None
        if isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            arrays[name] = array.astype(object) if array.dtype.kind in "SU" else array
        elif _holds_text(value):
            arrays[name] = np.array(value, object)
        else:
            try:
                array = np.asarray(value)
                if wanted and wanted.dtype != STRING and np.can_cast(array.dtype, wanted.dtype, "same_kind"):
                    array = array.astype(wanted.dtype)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"input {name!r} is no array ({error})") from None
            arrays[name] = array
        if arrays[name].dtype == object:
            arrays[name] = _as_bytes(name, arrays[name])
    return arrays


def check_inputs(arrays: Mapping[str, np.ndarray], spec: SignatureSpec) -> None:
    """Checks names, dtypes, shapes, and that all inputs have the same number of rows.

    Raises:
      ValueError: they don't fit; the message says what is wanted.
    """
    for name in arrays:
        if name not in spec.inputs:
            raise ValueError(f"no input {name!r}, did you mean {nearest(name, spec.inputs)!r}?")
    for name, wanted in spec.inputs.items():
        if name not in arrays:
            raise ValueError(f"input {name!r} is missing; give {wanted}")
        array = arrays[name]
        dtype = STRING if array.dtype == object else array.dtype.name
        given = TensorSpec(dtype, array.shape)
        if dtype != wanted.dtype:
            raise ValueError(f"input {name!r} is {given}; give {wanted}, e.g. array.astype({wanted.dtype!r})")
        if not fits(array.shape, wanted.shape):
            raise ValueError(f"input {name!r} is {given}; give {wanted}")
    if all(wanted.shape and wanted.shape[0] is None for wanted in spec.inputs.values()):
        rows = {name: len(array) for name, array in arrays.items()}
        if len(set(rows.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in rows.items())
            raise ValueError(f"inputs of different numbers of rows: {told}")


def fits(shape: tuple[int, ...], wanted: tuple[int | None, ...] | None) -> bool:
    """Whether an array's shape is one of those that a signature takes."""
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(b in (None, a) for a, b in zip(shape, wanted, strict=True))


def _holds_text(value: Any) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, str | bytes)


def _as_bytes(name: str, array: np.ndarray) -> np.ndarray:
    texts = np.empty(array.shape, object)
    for place, value in np.ndenumerate(array):
        if not isinstance(value, str | bytes):
            raise ValueError(f"input {name!r} holds a {type(value).__name__}; strings are bytes or str")
        texts[place] = value.encode() if isinstance(value, str) else value
    return texts
