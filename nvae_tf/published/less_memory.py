"""Giving memory back to the system as soon as it is no longer needed, where the system's C library can do that."""

import ctypes
import mmap

import numpy as np

_LIBRARY = ctypes.CDLL(None)
_NOT_NEEDED = 4  # MADV_DONTNEED


def forget_pages(array: np.ndarray) -> None:
    """Lets go of the memory of an array that lies in a mapped file; who looks at it again reads it from the file.

    NumPy's own memory is left as it is: it would be zero afterwards.
    """
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if owner.flags.owndata:
        return
    begin = array.ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (begin + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and array.flags.c_contiguous and hasattr(_LIBRARY, "madvise"):
        _LIBRARY.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _NOT_NEEDED)


def give_back_freed() -> None:
    """Gives freed memory back, which glibc keeps for later: making a model leaves hundreds of megabytes of it."""
    if hasattr(_LIBRARY, "malloc_trim"):
        _LIBRARY.malloc_trim(ctypes.c_size_t(0))
