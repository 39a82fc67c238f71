"""The finished batches of an evaluation in files, so that the same command goes on after an interruption, and several
processes share the work.
"""

import contextlib
import pathlib
import shutil
import time
import zipfile
from collections.abc import Iterator

import numpy as np

from nvae_tf.data.ordering import Share
from nvae_tf.evaluation import Likelihood
from nvae_tf.whole_files import whole_file

_NAMES = ("reconstruction", "kl", "importance_weighted", "effective_samples")
_SECONDS_FOR_CHIEF = 120.0


class KeptBatches:
    """One file a batch.

    Processes need not talk to each other: each begins at another place, takes what is not there yet, and helps the
    others when it is through with its own part. At worst the last batches are done twice, with the same result. The
    chief makes the folder, and removes it when it has put all together.

    Args:
      folder: of this evaluation alone.
      count: how many batches there are.
    """

    def __init__(self, folder: pathlib.Path, count: int):
        self._folder, self._count = folder, count

    def is_begun(self, share: Share) -> bool:
        """Makes the folder, as the chief; others wait for it. False where it does not come: the chief is through."""
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

    def missing(self, share: Share) -> list[int]:
        """The numbers of batches that are to be done, those of this process first."""
        first = share.index * self._count // share.count
        numbers = [*range(first, self._count), *range(first)]
        return [number for number in numbers if not self.has(number)]

    def has(self, number: int) -> bool:
        """Whether a batch is done."""
        return self._file(number).exists()

    def write(self, number: int, part: Likelihood) -> None:
        """Keeps a batch."""
        arrays = dict(zip(_NAMES, part.arrays(), strict=True))
        with whole_file(self._file(number)) as partial, partial.open("wb") as file:
            np.savez(file, numbers_of_samples=np.array(part.numbers_of_samples, np.int64), **arrays)

    def read(self) -> Likelihood:
        """All batches in their order.

        Raises:
          ValueError: the file of one is damaged; it is removed, so that the same command does this batch again.
        """
        return Likelihood.joined([self._read(number) for number in range(self._count)])

    def remove(self) -> None:
        """Deletes all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, number: int) -> Likelihood:
        file = self._file(number)
        with self._damage_told(file), np.load(file) as stored:
            reconstruction, kl, importance_weighted, effective_samples = (stored[name] for name in _NAMES)
            numbers = tuple(int(samples) for samples in stored["numbers_of_samples"])
            return Likelihood(reconstruction, kl, numbers, importance_weighted, effective_samples)

    @contextlib.contextmanager
    def _damage_told(self, file: pathlib.Path) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            file.unlink()
            raise ValueError(f"{file}: was damaged and is removed; the same command does this batch again") from error

    def _file(self, number: int) -> pathlib.Path:
        return self._folder / f"batch-{number:06d}.npz"
