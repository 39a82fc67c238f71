"""How much memory TensorFlow's allocator holds for buffers that are taken and freed: with the gaps between them."""

import bisect

from nvae_tf.memory.graph_walk import Timeline

_ROUNDING = 256
# A chunk is not cut where less than this is left over, unless it is twice as large as asked for.
_LARGEST_REST = 2**27
_END_OF_MEMORY = 2**60


def reserved_bytes(timeline: Timeline) -> int:
    """The end of the highest buffer when all have been placed by TensorFlow's allocator.

    GPUs have it, and CPUs with oneDNN: best fit with coalescing, which gives nothing back to the system. At least the
    timeline's peak; more where buffers of another size come when the freed ones lie apart.
    """
    allocator = _BestFit()
    starts: dict[int, int] = {}
    for change, buffer in zip(timeline.changes.tolist(), timeline.buffers.tolist(), strict=True):
        if change > 0:
            starts[buffer] = allocator.take(change)
        elif change < 0:
            allocator.free(starts.pop(buffer))
    return allocator.end


class _BestFit:
    """The chunks of one region of memory, which begins at 0 and has no end."""

    def __init__(self):
        self.end = 0
        self._taken: dict[int, int] = {}  # start -> size
        self._free: list[tuple[int, int]] = []  # size and start, the smallest first
        self._free_at: dict[int, int] = {}  # start -> size
        self._free_before: dict[int, int] = {}  # end -> start
        self._add(0, _END_OF_MEMORY)

    def take(self, size: int) -> int:
        """Takes the smallest free chunk that has room for `size` bytes, and returns where it begins."""
        size = -(-size // _ROUNDING) * _ROUNDING
        chunk, start = self._free[bisect.bisect_left(self._free, (size, -1))]
        self._remove(start)
        if chunk >= 2 * size or chunk - size >= _LARGEST_REST:
            self._add(start + size, chunk - size)
            chunk = size
        self._taken[start] = chunk
        self.end = max(self.end, start + chunk)
        return start

    def free(self, start: int) -> None:
        """Frees the chunk that begins there, and joins it with its free neighbors."""
        size = self._taken.pop(start)
        if start + size in self._free_at:
            size += self._remove(start + size)
        if start in self._free_before:
            start = self._free_before[start]
            size += self._remove(start)
        self._add(start, size)

    def _add(self, start: int, size: int) -> None:
        bisect.insort(self._free, (size, start))
        self._free_at[start] = size
        self._free_before[start + size] = start

    def _remove(self, start: int) -> int:
        size = self._free_at.pop(start)
        del self._free[bisect.bisect_left(self._free, (size, start))]
        del self._free_before[start + size]
        return size
