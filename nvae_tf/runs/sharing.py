"""Where a run folder is: on this machine, on the Hugging Face Hub, or among the models that come with this package."""

import contextlib
import os
import pathlib
import re
import shlex
from collections.abc import Iterator

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import validate_repo_id

from nvae_tf.errors import wrap_read_errors

HUB = "hf://"
# Run folders as nvae-publish makes them; their names can be given in place of folders.
_BUNDLED = pathlib.Path(__file__).parents[1] / "pretrained"
# The files of a shared run: nothing else of a repository is deleted when it is published again.
SHARED_FILES = """
    README.md config.json images.json environment.json origin.json evaluation.json evaluation-train.json metrics.csv
    outliers.npz prior.npz checkpoints/config.json checkpoints/step-*.index checkpoints/step-*.data-*
    samples/step-*.png
    """.split()
# Fetched too: a run folder that was uploaded as it is may have a best checkpoint beside the latest.
BEST_FILES = "checkpoints/best/step-*"
_LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"


def find_run_folder(place: str | os.PathLike) -> pathlib.Path:
    """The run folder of a folder, of "hf://user/repo" or "hf://user/repo@revision", or of a bundled model's name.

    A folder comes before a bundled model. ValueError: a repository's name is malformed. OSError: it can't be fetched.
    """
    text = os.fspath(place)
    if text.startswith(HUB):
        repo, _, revision = text.removeprefix(HUB).partition("@")
        check_repo_name(repo, text)
        wanted = {"revision": revision or None, "allow_patterns": [*SHARED_FILES, BEST_FILES]}
        with hub_errors_in_one_line(text):
            return pathlib.Path(huggingface_hub.snapshot_download(repo, **wanted))
    is_bundled = not os.path.exists(text) and text in os.listdir(_BUNDLED)
    return _BUNDLED / text if is_bundled else pathlib.Path(place)


def copy_command(place: str) -> str | None:
    """The command that copies a shared run into a folder of one's own; None where `place` is no shared run."""
    if place.startswith(HUB):
        name, _, revision = place.removeprefix(HUB).partition("@")
        options = [f"--local-dir=runs/{name.rpartition('/')[2]}", *([f"--revision={revision}"] if revision else [])]
        return shlex.join(["hf", "download", name, *options])
    folder = find_run_folder(place)
    is_bundled = folder.resolve().parent == _BUNDLED.resolve()
    return shlex.join(["cp", "-r", str(folder), f"runs/{folder.name}"]) if is_bundled else None


def check_repo_name(repo: str, given: str) -> None:
    """ValueError, which begins with what was `given`, where a repository's name is not of the form user/name."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"{given}: {repo!r} is not the name of a repository; its form is user/name")
    with wrap_read_errors(f"{given}: ", ""):
        validate_repo_id(repo)


@contextlib.contextmanager
def hub_errors_in_one_line(place: str) -> Iterator[None]:
    """Raises an OSError of one line, without the token, for whatever goes wrong in its block."""
    try:
        yield
    # The errors of huggingface_hub, of its HTTP library and of its storage have no class in common.
    except Exception as error:
        # A failed upload, and a fetch that finds nothing in the cache either.
        if isinstance(error, RuntimeError | errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        words = " ".join(str(error).split()) or type(error).__name__
        reason = f"the Hub can't be reached ({words}); check the connection, and HF_ENDPOINT if it is set"
        # The HTTP library's message about a token that it can't send may have the token in it.
        if isinstance(error, UnicodeError) or "Bearer " in words:
            reason = f"the token can't be sent, it is damaged; {_LOG_IN}"
        elif getattr(error, "response", None) is not None or isinstance(error, ValueError):
            reason = f"the Hub answers with an error ({words[:300]}); for what only some may read or write, {_LOG_IN}"
        elif isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            # The error of a full disk may name no file.
            reason = f"{error.filename or constants.HF_HUB_CACHE}: {error.strerror}; HF_HOME names another folder"
        raise OSError(f"{place}: {reason}") from None
