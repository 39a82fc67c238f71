"""Downloading a set of TensorFlow Datasets (TFDS), or saying within seconds why not, and what to do."""

import pathlib

import requests
import tensorflow_datasets as tfds

from nvae_tf.data.reachability import unreachable_hosts

# TFDS looks there for sets that are prepared already.
_TFDS_HOST = "https://storage.googleapis.com"
# A file that can't be fetched; a page of text in its place; one that must be put into the manual folder (that is an
# AssertionError); a package that preparing it needs.
_PREPARATION_ERRORS = (
    tfds.download.DownloadError,
    tfds.download.download_manager.NonMatchingChecksumError,
    requests.RequestException,
    AssertionError,
    ImportError,
)


def download_and_prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Downloads and prepares a set, after a check that the hosts answer: TFDS waits for minutes when they don't.

    Raises:
        ConnectionError: that can't be done; the message has the manual way.
    """
    missing = _files_to_download(builder)
    causes = unreachable_hosts(missing if builder.url_infos else [_TFDS_HOST])
    if causes:
        raise ConnectionError(_cannot_download(builder, missing, causes))
    try:
        builder.download_and_prepare()
    except _PREPARATION_ERRORS as error:
        raise ConnectionError(_cannot_download(builder, missing, {"TFDS": str(error)})) from error


def _files_to_download(builder):
    """What TFDS would download, as `{address: file name}`: all that it names, less what lies in its manual folder."""
    registered = builder.url_infos or {}
    config = builder.builder_config.name if builder.builder_config else ""
    # A set with several configurations names the files of all; those of one mostly have its name.
    of_config = {url: info for url, info in registered.items() if config and config in url} or registered
    return {
        url: info.filename or url.rpartition("/")[2]
        for url, info in of_config.items()
        if not (info.filename and (_manual_folder(builder) / info.filename).exists())
    }


def _manual_folder(builder):
    return pathlib.Path(builder.data_dir_root) / "downloads" / "manual"


def _cannot_download(builder, missing, causes):
    files = "\n".join(f"    {name} from {url}" for url, name in missing.items())
    name = builder.info.full_name.rpartition("/")[0]
    reasons = "; ".join(f"{host}: {cause}" for host, cause in causes.items())
    return (
        f"Data set '{builder.info.full_name}' is not prepared in {builder.data_path} and can't be downloaded "
        f"({reasons}).\n"
        "Either put these files, under these names, into\n"
        f"    {_manual_folder(builder)}\n{files}\n"
        "or prepare the set on a machine with network, with the same version of TFDS "
        f"({tfds.__version__}):\n"
        f'    python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='tfds_data').download_and_prepare()\"\n"
        f"and copy the folder tfds_data/{builder.info.full_name} to {builder.data_path},\n"
        "or copy all of tfds_data to any place and name that in --config.data.path."
    )
