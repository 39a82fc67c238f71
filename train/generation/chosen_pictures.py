"""The pictures that a mode of `train.generate` works on: from outside, or of the run's data set."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nvae_tf.data.picture_folder import find_pictures, pictures_for_model
from nvae_tf.generation.status import counted
from nvae_tf.setting_checks import check
from train.shared_flags import PictureFlags, numbers_of

_BATCH_SIZE = 64


class ChosenPictures(NamedTuple):
    """Pictures as the model sees them.

    Attributes:
      images: float32 `[count, height, width, channels]` in [0, 1].
      names: one a picture, for files.
      words: which they are, for people.
    """

    images: np.ndarray
    names: list[str]
    words: str


def check_choice_of_pictures(chosen: PictureFlags) -> None:
    """Looks at the flags, and whether the files of --input are there; needs no TensorFlow.

    Raises:
      FileNotFoundError, ValueError: they are not, or flags contradict each other.
    """
    numbers_of(chosen.indices)
    given = [flag.name for flag in (chosen.input, chosen.indices, chosen.count) if flag is not None and flag.value]
    check(len(given) < 2, f"--{' and --'.join(given)}: give one of them, each says which pictures to take")
    if chosen.input.value:
        check(chosen.data_path.value is None, "--input and --data_path: give one of them")
        find_pictures(_places(chosen.input.value))
    else:
        for flag in (chosen.resize, chosen.convert):
            check(
                flag.value is None, f"--{flag.name} is for pictures of --input; those of the data set come as trained"
            )


def chosen_pictures(chosen: PictureFlags, config, seed: int, at_most: int | None) -> ChosenPictures:
    """Reads the pictures.

    Args:
      chosen: the flags, checked.
      config: settings of the run.
      seed: of the binarization.
      at_most: of the data set, where no flag says how many; None for all.

    Raises:
      FileNotFoundError, ValueError, ConnectionError: pictures or data are missing or can't be used.
    """
    if chosen.input.value:
        places = _places(chosen.input.value)
        images, names = pictures_for_model(places, config.data, seed, chosen.resize.value, chosen.convert.value)
        return ChosenPictures(images, names, f"{counted(len(images), 'picture')} of {', '.join(places)}")
    return _of_data_set(chosen, config, seed, at_most)


def _of_data_set(chosen, config, seed, at_most) -> ChosenPictures:
    from nvae_tf.data.pipeline import evaluation_batches, iterate
    from nvae_tf.data.sources import load_split
    from nvae_tf.progress import StatusLine
    from nvae_tf.training.run_data import spec_to_read

    spec, split = spec_to_read(config, chosen.data_path.value), chosen.split.value
    source = load_split(spec, split, StatusLine().report())
    indices = numbers_of(chosen.indices)
    if indices is None:
        asked = chosen.count.value if chosen.count is not None else None
        count = asked or min(at_most or source.count, source.count)
        check(count <= source.count, f"--count={count}: the {split} part of {spec.name} has only {source.count} images")
        batches = evaluation_batches(source, spec, _BATCH_SIZE, seed, range(-(-count // _BATCH_SIZE)))
        indices = list(range(count))
    else:
        beyond = [index for index in indices if index >= source.count]
        check(
            not beyond,
            f"--indices={beyond[0] if beyond else ''}: the {split} part of {spec.name} has {source.count} images, "
            f"numbers 0 to {source.count - 1}",
        )
        batches = evaluation_batches(source, spec, 1, seed, indices)
    images = np.concatenate([batch.numpy() for batch in iterate(batches, source)])[: len(indices)]
    names = [f"{split}_{index:05d}" for index in indices]
    return ChosenPictures(images, names, f"{counted(len(images), 'image')} of the {split} part")


def _places(values: Sequence[str]) -> list[str]:
    """Files and folders of --input; a value with commas is a list, unless a file is called so."""
    return [place for value in values for place in ([value] if os.path.exists(value) else value.split(","))]
