"""A clear word about NaN and infinity in a file, when its arrays are used: no run can go on with them."""

from collections.abc import Callable

import numpy as np


def only_finite(
    convert: Callable[[np.ndarray], np.ndarray], what: str, mend: str
) -> Callable[[np.ndarray], np.ndarray]:
    """The same conversion, but an array that holds NaN or infinity raises ValueError.

    Args:
      convert: takes an array.
      what: what the array is, for the message.
      mend: what to do then.
    """

    def checked(array: np.ndarray) -> np.ndarray:
        check_finite(array, what, mend)
        return convert(array)

    return checked


def check_finite(array: np.ndarray, what: str, mend: str) -> None:
    """Raises ValueError if an array holds NaN or infinity; see `only_finite`."""
    if not np.isfinite(array).all():
        raise ValueError(f"{what} holds NaN or infinity; {mend}")
