"""Weights of a published checkpoint into a model, one variable after the other: no second copy of them ever exists."""

import ctypes
import mmap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.config import ModelConfig, check
from nvae_tf.latent_plan import fewest_weights
from nvae_tf.models import NVAE
from nvae_tf.progress import byte_bar
from nvae_tf.published.names import COPY, COUNTER, PublishedTensor, published_tensors

_IGNORED_ENDINGS = (f".{COPY}", f".{COUNTER}")  # of entries that carry no information
_NAMED = 5
_ONE_FILE = "Settings and weights must be those of one file, and that file whole"
BROKEN_WEIGHTS = "nothing can go on from it. Take a file from before its training diverged"
_LIBRARY = ctypes.CDLL(None)


class Match(NamedTuple):
    """Which tensors of a file fit an architecture, by their names in the file."""

    found: dict[str, PublishedTensor]  # in the order of published files
    ignored: list[str]  # carry no information
    missing: list[str]
    misshapen: dict[str, tuple[int, ...]]  # the shape that the architecture needs
    unknown: list[str]

    def check(self, state: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError unless the state has all tensors, in the right shapes, and no other ones."""
        shapes = [
            f"{name} has shape {np.shape(state[name])}, this architecture needs {needed}"
            for name, needed in self.misshapen.items()
        ]
        faults = {"missing": self.missing, "of another shape": shapes, "unknown": self.unknown}
        problems = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:_NAMED])}{' ...' if len(names) > _NAMED else ''}"
            for what, names in faults.items()
            if names
        )
        check(not problems, f"the published weights do not fit this architecture; tensors: {problems}. {_ONE_FILE}")


def match(model: NVAE, state: Mapping[str, np.ndarray]) -> Match:
    """Compares names and shapes of a state with what the model needs; reads no number."""
    found, missing, misshapen = {}, [], {}
    for tensor in published_tensors(model):
        name = next((name for name in tensor.names if name in state), None)
        if name is None:
            missing.append(tensor.names[-1])
        elif np.shape(state[name]) != published_shape(tensor):
            misshapen[name] = published_shape(tensor)
        else:
            found[name] = tensor
    layers = {name.rpartition(".")[0] for name in (*found, *misshapen)}
    ignored = [name for name in state if name.endswith(_IGNORED_ENDINGS) and name.rpartition(".")[0] in layers]
    unknown = sorted(state.keys() - found.keys() - misshapen.keys() - set(ignored))
    return Match(found, ignored, missing, misshapen, unknown)


def load_published_weights(model: NVAE, state: Mapping[str, np.ndarray], are_mapped: bool = False) -> None:
    """Fills the model from a published `state_dict`, arrays in the published layout.

    ValueError, before anything is assigned, with tensors that are missing, left over or of another shape; and with one
    that is not finite, after which the model is of no use.
    """
    matched = match(model, state)
    matched.check(state)
    weights = [(tensor, name, state[name]) for name, tensor in matched.found.items()]
    fill(weights, "weights", BROKEN_WEIGHTS, are_mapped)
    model.data_initialised.assign(1.0)


def fill(
    arrays: Iterable[tuple[PublishedTensor, str, np.ndarray]],
    what: str,
    fix: str,
    are_mapped: bool,
    lowered_by: float = 0.0,
) -> None:
    """Assigns variables of float32 one after the other, each once and as a whole.

    `arrays` has of each tensor its place, its name for messages, and its numbers in the published layout, from which
    `lowered_by` is subtracted in double precision. The progress bar shows `what`; `fix` says what to do where one holds
    NaN or infinity, a ValueError. Pages of a mapped file are released after use.
    """
    groups = _by_variable(arrays)
    total = sum(4 * int(np.prod(variable.shape, dtype=np.int64)) for variable, _ in groups)
    with byte_bar(total, what) as bar:
        for variable, group in groups:
            value = np.empty(variable.shape, np.float32)
            for tensor, name, array in group:
                place = value if tensor.index is None else value[tensor.index]
                # What is too large for float32 becomes infinity, and is then refused.
                with np.errstate(over="ignore"):
                    numbers = array.astype(np.float64) - lowered_by if lowered_by else array
                    place[...] = tensor.from_published(numbers)
                check_finite(place, name, fix)
                if are_mapped:
                    release_pages(array)
            variable.assign(value)
            bar.update(value.nbytes)


def check_finite(array: np.ndarray, what: str, fix: str) -> None:
    """Raises ValueError if an array holds NaN or infinity."""
    check(np.isfinite(array).all(), f"{what} holds NaN or infinity; {fix}")


def published_values(tensors: Iterable[PublishedTensor], read: Callable[[Any], np.ndarray]) -> list[Any]:
    """Every tensor in the published layout, for torch, in order; `read` is called once for each variable."""
    found: dict[int, Any] = {}
    for variable, group in _by_variable((tensor, number) for number, tensor in enumerate(tensors)):
        value = read(variable)
        found |= {number: as_tensor(published_array(tensor, value)) for tensor, number in group}
    return [found[number] for number in range(len(found))]


def _by_variable(items: Iterable[tuple]) -> list[tuple[Any, list[tuple]]]:
    """Groups items, each of which begins with a PublishedTensor, by its variable."""
    groups: dict[int, list[tuple]] = {}
    for item in items:
        groups.setdefault(id(item[0].variable), []).append(item)
    return [(group[0][0].variable, group) for group in groups.values()]


def as_tensor(array: np.ndarray) -> Any:
    """A torch tensor with a copy of the array: a view would bring the whole stack into a file."""
    import torch

    return torch.from_numpy(np.array(array, order="C"))


def published_array(tensor: PublishedTensor, value: np.ndarray) -> np.ndarray:
    """The part of a variable-shaped `value` (weights or gradients) that is this tensor, in the published layout."""
    return tensor.to_published(value if tensor.index is None else value[tensor.index])


def published_shape(tensor: PublishedTensor) -> tuple[int, ...]:
    """The shape of a tensor in published files; takes no memory for its numbers."""
    return published_array(tensor, np.broadcast_to(np.float32(0.0), tuple(tensor.variable.shape))).shape


def release_pages(array: np.ndarray) -> None:
    """Gives back the memory of an array that lies in a mapped file; a later use reads it from the file again."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if owner.flags.owndata:  # would be zero afterwards
        return
    first = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and array.flags.c_contiguous and hasattr(_LIBRARY, "madvise"):
        _LIBRARY.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def release_freed_memory() -> None:
    """Gives freed memory back to the system, which glibc keeps for later: hundreds of megabytes after a model."""
    if hasattr(_LIBRARY, "malloc_trim"):
        _LIBRARY.malloc_trim(ctypes.c_size_t(0))


def check_implied_size(config: ModelConfig, state: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where an architecture has more numbers than a file, so that it is never built."""
    needed, numbers = fewest_weights(config), sum(value.size for value in state.values())
    fits = "the published weights do not fit this architecture"
    check(needed <= numbers, f"{fits}: it has at least {needed:,} numbers, and the file {numbers:,}. {_ONE_FILE}")
