"""Which of a set's images are held out for testing where the set does not say."""

import hashlib
from collections.abc import Sequence

from nvae_tf.data_spec import DataSpec


def held_out(names: Sequence[str], spec: DataSpec) -> tuple[list[int], list[int]]:
    """Divides images by `test_fraction` and `split_seed`.

    An image's place in the order of choice is a hash of its name, so that few images change sides when some are added.

    Args:
        names: a name of each image, unique and the same at every call.
        spec: the data set.

    Returns:
        The numbers of the images for training, and of those for testing, in order.

    Raises:
        ValueError: there are not two images.
    """
    if len(names) < 2:
        raise ValueError(
            f"{spec.path}: {len(names)} image can't be divided into a training and a test part: add more images"
        )
    count = min(max(round(spec.test_fraction * len(names)), 1), len(names) - 1)
    order = sorted(range(len(names)), key=lambda number: _place(names[number], spec.split_seed))
    return sorted(order[count:]), sorted(order[:count])


def _place(name, seed):
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8, key=str(seed).encode()).digest()
