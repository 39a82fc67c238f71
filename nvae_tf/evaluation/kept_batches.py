"""The finished batches of an evaluation in files, so that the same command goes on after an interruption, and several
processes share the work.
"""

import pathlib
import shutil
import time
from collections.abc import Callable

import numpy as np

from nvae_tf.data.pipeline import Shard
from nvae_tf.files import read_arrays, write_arrays

_SECONDS_FOR_CHIEF = 300.0


class KeptBatches:
    """One file of arrays a batch.

    Processes need not talk to each other: each does its own part, and then helps the others from their ends, so that
    at worst the batches that are being done when they meet are done twice, with the same result. The chief makes the
    folder, and removes it when it has put all together.

    Args:
      folder: of this evaluation alone.
      count: how many batches there are.
    """

    def __init__(self, folder: pathlib.Path, count: int):
        self._folder, self.count = folder, count

    def is_begun(self, share: Shard) -> bool:
        """Makes the folder, as the chief; others wait for it. False where it does not come."""
        if share.index == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _SECONDS_FOR_CHIEF
        while self.is_over and time.monotonic() < deadline:
            time.sleep(0.2)
        return not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether the chief has put all together meanwhile."""
        return not self._folder.is_dir()

    def missing(self, share: Shard) -> list[int]:
        """The numbers of batches that are to be done, those of this process first."""
        first, last = (index * self.count // share.count for index in (share.index, share.index + 1))
        others = [*range(last, self.count), *range(first)]
        return [number for number in [*range(first, last), *reversed(others)] if not self._is_whole(number)]

    def has(self, number: int) -> bool:
        """Whether a batch is done."""
        return self._file(number).exists()

    def write(self, number: int, arrays: dict[str, np.ndarray]) -> bool:
        """Keeps a batch; False where that is not needed any more."""
        try:
            write_arrays(self._file(number), arrays)
        except FileNotFoundError:
            return False
        return True

    def for_each(self, use: Callable[[dict[str, np.ndarray]], None]) -> None:
        """Calls a function with the arrays of every batch in their order.

        Raises:
          FileNotFoundError: another process has put all together and removed them.
          ValueError: the file of one is damaged; it is removed, so that the same command does this batch again.
        """
        for number in range(self.count):
            file = self._file(number)
            try:
                arrays = read_arrays(file)
            except ValueError as error:
                file.unlink(missing_ok=True)
                raise ValueError(
                    f"{file}: was damaged and is removed ({error}); the same command does this batch again"
                ) from error
            use(arrays)

    def remove(self) -> None:
        """Deletes all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_whole(self, number: int) -> bool:
        """Whether a batch is done; a damaged file is removed."""
        try:
            read_arrays(self._file(number))
        except FileNotFoundError:
            return False
        except ValueError:
            self._file(number).unlink(missing_ok=True)
            return False
        return True

    def _file(self, number: int) -> pathlib.Path:
        return self._folder / f"batch-{number:06d}.npz"
