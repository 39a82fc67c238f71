"""From a data spec to the images of one split. A new kind of source is a module and a line in `LOADERS`."""

from nvae_tf.data import bundled, tfds_source
from nvae_tf.data.array_source import ImageSource
from nvae_tf.data.specs import DataSpec

LOADERS = {"bundled": bundled.load, "tfds": tfds_source.load}


def load_split(spec: DataSpec, split: str, path: str | None = None) -> ImageSource:
    """Loads one split of a data set.

    Args:
        spec: the data set.
        split: "train" or "test".
        path: the setting `data.path`, the folder where the source looks; empty for the source's default.

    Returns:
        The split's images and, where the set has them, its labels.

    Raises:
        ValueError: an unknown split or source, or images of another size than the spec's.
        ConnectionError: the data must be downloaded and can't be.
    """
    if spec.source not in LOADERS:
        raise ValueError(
            f"Data spec '{spec.name}' names a source '{spec.source}' that does not exist. Valid: {', '.join(LOADERS)}."
        )
    split_names = {"train": spec.train_split, "test": spec.test_split}
    if split not in split_names:
        raise ValueError(f"There is no split '{split}'. Valid: train, test.")
    source = LOADERS[spec.source](spec, split_names[split], path)
    check_image_shape(source, spec)
    return source


def check_image_shape(source: ImageSource, spec: DataSpec) -> None:
    """Raises ValueError unless the source's images have the size that the spec promises to the model."""
    if tuple(source.image_shape) != spec.image_shape:
        raise ValueError(
            f"The images of data set '{spec.name}' are {list(source.image_shape)} (height, width, channels), "
            f"but its spec says {list(spec.image_shape)}."
        )
