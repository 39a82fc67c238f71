"""A clear word about NaN and infinity in a file, when its arrays are used: no run can go on with them."""

from collections.abc import Callable

import numpy as np


def only_finite(
    convert: Callable[[np.ndarray], np.ndarray], what: str, mend: str
) -> Callable[[np.ndarray], np.ndarray]:
    """The same conversion, to float32, but an array that then holds NaN or infinity raises ValueError.

    Args:
      convert: takes an array.
      what: what the array is, for the message.
      mend: what to do then.
    """

    def checked(array: np.ndarray) -> np.ndarray:
        # What is too large for float32 is told as infinity, by the check that follows.
        with np.errstate(over="ignore"):
            converted = np.asarray(convert(array), np.float32)
        check_finite(converted, what, mend)
        return converted

    return checked


def check_finite(array: np.ndarray, what: str, mend: str) -> None:
    """Raises ValueError if an array holds NaN or infinity; see `only_finite`."""
    if not np.isfinite(array).all():
        raise ValueError(f"{what} holds NaN or infinity; {mend}")
