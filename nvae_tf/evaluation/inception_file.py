"""The file of the published Inception graph of 2015: where it comes from, and what is in it."""

import os
import pathlib
import queue
import shutil
import tarfile
import threading
import urllib.request
import zlib
from typing import Any

from nvae_tf.files import atomic_file
from nvae_tf.setting_checks import check

# What is also http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz, over a secure connection.
URL = "https://storage.googleapis.com/download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz"
GRAPH_NAME = "classify_image_graph_def.pb"
# As every program that downloads it has told for years.
_ARCHIVE_SIZE = 88_931_400
_HELP = f"download {URL} where there is a network, and name that file, or the {GRAPH_NAME} in it, with --inception=PATH"


def downloaded_inception(
    cache_dir: str | pathlib.Path | None = None, url: str = URL, size: int = _ARCHIVE_SIZE, timeout_seconds: float = 8.0
) -> pathlib.Path:
    """The archive, downloaded if it is not in the folder yet.

    `keras.utils.get_file` waits without end for a host that is silent; this gives up.

    Args:
      cache_dir: the folder; `nvae_tf` in the user's cache folder if not given.
      url: the archive's address.
      size: its size in bytes, to which it is checked.
      timeout_seconds: how long to wait for the host's answer, and later for more of the file.

    Raises:
      ConnectionError: it can't be downloaded, or what comes is not of this size; the message has the way by hand.
    """
    folder = pathlib.Path(cache_dir).expanduser() if cache_dir is not None else cache_folder()
    file = folder / url.rpartition("/")[2]
    if file.exists() and file.stat().st_size == size:
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial:
        try:
            with _opened(url, timeout_seconds) as response, partial.open("wb") as target:
                shutil.copyfileobj(response, target)
        except OSError as error:
            raise ConnectionError(f"Inception can't be downloaded ({error}): {_HELP}") from None
        found = partial.stat().st_size
        if found != size:
            raise ConnectionError(f"{url} gave {found:,} bytes, not the {size:,} of the archive: try again, or {_HELP}")
    return file


def graph_content(file: pathlib.Path) -> bytes:
    """The graph's file as bytes, from itself or from the archive that it is in.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is a damaged archive or one of something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file; {_HELP}")
    # Any file of zeros is a tar archive, so its name decides.
    if not file.name.endswith((".tgz", ".tar.gz", ".tar")):
        return file.read_bytes()
    try:
        with tarfile.open(file) as archive:
            members = [member for member in archive if pathlib.PurePosixPath(member.name).name == GRAPH_NAME]
            check(len(members) == 1 and members[0].isfile(), f"{file}: has no {GRAPH_NAME} in it; {_HELP}")
            return archive.extractfile(members[0]).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file}: a damaged archive ({error}); remove it, and get it anew: {_HELP}") from None


def cache_folder() -> pathlib.Path:
    """Where this package keeps what it has downloaded or computed for a user."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nvae_tf"


def _opened(url: str, timeout_seconds: float) -> Any:
    """The response of a host; an OSError where none comes in time."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def open_url() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=timeout_seconds))
        except Exception as error:  # all of them are to be told by the thread that waits
            answers.put(error)

    # A daemon, because resolving a name ignores every time-out and must not hold up the process' end.
    threading.Thread(target=open_url, daemon=True).start()
    try:
        # A little longer, so that the more exact cause comes first.
        answer = answers.get(timeout=timeout_seconds + 1.0)
    except queue.Empty:
        raise OSError(f"no answer within {timeout_seconds:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer if isinstance(answer, OSError) else OSError(str(answer))
    return answer
