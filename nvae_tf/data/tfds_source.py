"""Image sets through TensorFlow Datasets (TFDS)."""

import difflib
import pathlib

import numpy as np
import requests
import tensorflow_datasets as tfds

from nvae_tf.data.array_source import ArraySource
from nvae_tf.data.reachability import unreachable_hosts
from nvae_tf.data.specs import DataSpec

_READ_BATCH = 512


def load(spec: DataSpec, split: str, path: str | None = None) -> ArraySource:
    """Loads one split into memory, in TFDS' stored order.

    A set that is prepared on disk is used without any network. Otherwise TFDS downloads and prepares it,
    after a check that the hosts answer: on its own, TFDS waits for minutes when they don't.

    Args:
        spec: a spec with source "tfds"; `source_name` is the TFDS name, `name` or `name/config`.
        split: TFDS' name of the split.
        path: TFDS' data folder; empty for TFDS' default.

    Raises:
        ValueError: TFDS knows no such set, or its examples have no "image".
        ConnectionError: the set is not on disk and can't be downloaded; the message has the manual way.
    """
    builder = _builder(spec.source_name, path)
    if not builder.is_prepared():
        _download_and_prepare(builder)
    if "image" not in builder.info.features:
        raise ValueError(f"TFDS set '{builder.name}' has no feature 'image', only {', '.join(builder.info.features)}.")
    # File order, so that an example keeps its number from one run to the next.
    dataset = builder.as_dataset(split=split, shuffle_files=False)
    kept = [key for key in ("image", "label") if key in builder.info.features]
    batches = dataset.map(lambda example: {key: example[key] for key in kept}).batch(_READ_BATCH)
    collected = list(batches.as_numpy_iterator())
    columns = {key: np.concatenate([batch[key] for batch in collected]) for key in kept}
    return ArraySource(columns["image"], labels=columns.get("label"))


def _builder(name, path):
    try:
        return tfds.builder(name, data_dir=pathlib.Path(path).expanduser() if path else None)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        # TFDS' own message lists several hundred names: not chained, so that this one is seen.
        raise ValueError(
            f"TensorFlow Datasets {tfds.__version__} has no set '{name}'. Did you mean '{nearest}'?"
        ) from None


def _download_and_prepare(builder):
    missing = _files_to_download(builder)
    causes = unreachable_hosts(missing)
    if causes:
        raise ConnectionError(_cannot_download(builder, missing, causes))
    try:
        builder.download_and_prepare()
    except (tfds.download.DownloadError, requests.RequestException) as error:
        raise ConnectionError(_cannot_download(builder, missing, {"TFDS": str(error)})) from error


def _files_to_download(builder):
    """Addresses of what TFDS would download: all that it names, less what lies in its manual folder."""
    registered = builder.url_infos or {}
    return [
        url
        for url, info in registered.items()
        if not (info.filename and (_manual_folder(builder) / info.filename).exists())
    ]


def _manual_folder(builder):
    return pathlib.Path(builder.data_dir_root) / "downloads" / "manual"


def _cannot_download(builder, missing, causes):
    files = "\n".join(f"    {url}" for url in missing)
    name = builder.info.full_name.rpartition("/")[0]
    reasons = "; ".join(f"{host}: {cause}" for host, cause in causes.items())
    return (
        f"Data set '{builder.info.full_name}' is not prepared in {builder.data_path} and can't be downloaded "
        f"({reasons}).\n"
        "Either put these files, under their own names, into\n"
        f"    {_manual_folder(builder)}\n{files}\n"
        "or prepare the set on a machine with network, with the same version of TFDS "
        f"({tfds.__version__}):\n"
        f'    python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='tfds_data').download_and_prepare()\"\n"
        f"and copy the folder tfds_data/{builder.info.full_name} to {builder.data_path},\n"
        "or copy all of tfds_data to any place and name that in --config.data.path."
    )
