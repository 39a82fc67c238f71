"""The stack of bits that images are coded on, and numbers that every machine rounds alike."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nvae_tf.errors import require

stream = require("constriction", "compress").stream
# The bits that the first images of a chunk draw their latents with. Both sides know them.
_SUPPLY = np.frombuffer(hashlib.shake_256(b"nvae_tf").digest(4 * (2**16 - 1)), "<u4").astype(np.uint32)


class Stack:
    """Asymmetric numeral systems (Duda 2009): what is pushed last is popped first, at `-log2 p` bits a symbol.

    Popping from a model draws from it: the bits below are the source of randomness. Pushing gives the same bits back.
    At first the stack has a fixed supply of random words, then a checksum. `data` has the words above those of the
    supply that nothing has drawn.
    """

    def __init__(self, checksum: int = 0, data: bytes | None = None):
        if data is None:
            words = _start(checksum)
        else:
            stored = np.frombuffer(data[2:] + bytes(-len(data[2:]) % 4), "<u4")
            words = np.concatenate([_SUPPLY[: int.from_bytes(data[:2], "little")], stored.astype(np.uint32)])
        self.mark_bits = 0.0  # what all marks took
        self._coder = stream.stack.AnsCoder(words)

    def push(self, symbols: np.ndarray, model: Any, *parameters: np.ndarray) -> None:
        """Encodes whole numbers; parameters of the model have the same shape."""
        self._coder.encode_reverse(np.ravel(symbols).astype(np.int32), model, *map(np.ravel, parameters))

    def pop(self, shape: tuple[int, ...], model: Any, *parameters: np.ndarray) -> np.ndarray:
        """Decodes whole numbers, int32 of this shape."""
        arguments = map(np.ravel, parameters) if parameters else [math.prod(shape)]
        return np.reshape(self._coder.decode(model, *arguments), shape)

    def push_marks(self, marks: np.ndarray, rate: float) -> None:
        """Encodes marks, see `rounded`, of which about this fraction is not 0."""
        masses = _masses_of_marks(rate)
        self.mark_bits -= float(np.bincount(np.ravel(marks), minlength=3) @ np.log2(masses))
        self.push(marks, stream.model.Categorical(masses, perfect=False))

    def pop_marks(self, shape: tuple[int, ...], rate: float) -> np.ndarray:
        """Decodes marks."""
        return self.pop(shape, stream.model.Categorical(_masses_of_marks(rate), perfect=False))

    def data(self) -> tuple[bytes, int]:
        """The stack for a file, and the number of bits that the first images' draws took of the supply."""
        words = self._coder.get_compressed()
        is_other = words[: len(_SUPPLY)] != _SUPPLY[: len(words)]
        untouched = int(np.append(is_other, True).argmax())
        # The last word is not zero: its zero bytes need not be stored.
        data = untouched.to_bytes(2, "little") + words[untouched:].astype("<u4").tobytes().rstrip(b"\0")
        return data, 32 * (len(_SUPPLY) - untouched)

    def is_at_start(self, checksum: int) -> bool:
        """Whether all that was pushed has been popped, and the checksum is the same."""
        return np.array_equal(self._coder.get_compressed(), _start(checksum))


def _masses_of_marks(rate: float) -> np.ndarray:
    rate = min(rate, 0.5)
    return np.array([1.0 - rate, rate / 2.0, rate / 2.0])


def _start(checksum: int) -> np.ndarray:
    # The coder's last word must not be zero.
    return np.append(_SUPPLY, np.array([checksum, 1], np.uint32))


def rounded(
    values: np.ndarray, slack: np.ndarray, position: Callable[[np.ndarray], np.ndarray], marks: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers nearest to the `position` of values, int32, and marks (after Tian et al., arXiv 2309.11276).

    Other machines compute values up to `slack` away. The encoder marks a number that they may round to the other side:
    1 if it is even, 2 if it is odd, 0 where none may. The decoder gives its `marks`, and gets the same numbers.
    """
    values = np.nan_to_num(np.asarray(values, np.float64))
    exact = position(values)
    numbers = np.rint(exact).astype(np.int32)
    if marks is None:
        may_differ = np.rint(position(values - slack)) != np.rint(position(values + slack))
        return numbers, np.where(may_differ, 1 + numbers % 2, 0)
    is_other = (marks > 0) & (numbers % 2 != marks - 1)
    return numbers + np.where(is_other, np.where(exact > numbers, 1, -1), 0).astype(np.int32), marks
