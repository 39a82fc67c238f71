"""Runs that are shared: to and from the Hugging Face Hub, and the trained model that comes with this package."""

import contextlib
import dataclasses
import fnmatch
import json
import math
import os
import pathlib
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from nvae_tf.config import check, did_you_mean
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_write

HUB = "hf://"
# Run folders as `write_shared_run` makes them; the name of each can be given in place of a folder.
_BUNDLED = pathlib.Path(__file__).parents[1] / "pretrained"
# The files of a shared run: nothing else of a repository is deleted when it is published again.
_FILES = tuple(
    """
    README.md config.json images.json environment.json origin.json evaluation.json evaluation-train.json metrics.csv
    outliers.npz prior.npz checkpoints/config.json checkpoints/step-*.index checkpoints/step-*.data-*
    samples/step-*.png
    """.split()
)
# Fetched too: a run folder that was uploaded as it is may have a best checkpoint beside the latest.
_BEST = "checkpoints/best/step-*"
_LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"


class Published(NamedTuple):
    """A run on the Hub."""

    url: str
    step: int
    num_files: int
    num_bytes: int
    has_scores: bool  # whether nvae-evaluate had measured this very checkpoint


def find_run_folder(place: str | os.PathLike) -> pathlib.Path:
    """The run folder that is meant: a folder, "hf://user/repo" or "hf://user/repo@revision", or a bundled model's name.

    A repository is fetched into the cache of huggingface_hub, which has it without a connection from then on. A
    bundled model is meant where there is no file or folder of its name.

    ValueError: the name of a repository is malformed. OSError: it can't be fetched; one line says why.
    """
    text = os.fspath(place)
    if text.startswith(HUB):
        return _fetch(text)
    if _is_bundled(text):
        return _BUNDLED / text
    if not os.path.exists(text) and (hint := did_you_mean(text, os.listdir(_BUNDLED))):
        raise FileNotFoundError(f"{text}: no such folder{hint}")
    return pathlib.Path(place)


def copy_command(place: str) -> str | None:
    """What to type for a run folder of one's own of a shared run; None where `place` is no shared run."""
    name, _, revision = place.removeprefix(HUB).partition("@")
    copy = f"runs/{name.rpartition('/')[2]}"
    if place.startswith(HUB):
        options = [f"--local-dir={copy}", *([f"--revision={revision}"] if revision else [])]
        return shlex.join(["hf", "download", name, *options])
    if pathlib.Path(place).resolve().parent == _BUNDLED.resolve():
        return shlex.join(["cp", "-r", place, f"runs/{pathlib.Path(place).name}"])
    return shlex.join(["cp", "-r", str(_BUNDLED / place), copy]) if _is_bundled(place) else None


def _is_bundled(name: str) -> bool:
    return not os.path.exists(name) and name in os.listdir(_BUNDLED)


def _fetch(place: str) -> pathlib.Path:
    repo, _, revision = place.removeprefix(HUB).partition("@")
    check_repo_name(repo, place)
    with _in_one_line(place):
        return pathlib.Path(
            huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=[*_FILES, _BEST])
        )


def check_repo_name(repo: str, given: str) -> None:
    """ValueError, which begins with what was `given`, where a repository's name is not of the form user/name."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{given}: {first_line(error)}") from None
    check(repo.count("/") == 1, f"{given}: {repo!r} is not the name of a repository; its form is user/name")


def publish_run(workdir: str | os.PathLike, repo: str, checkpoint: str = "latest") -> Published:
    """Publishes a run on the Hub as the model `repo` ("user/name"), which is made if there is none, in one commit.

    What is published is the run as `write_shared_run` writes it. The token is that of `hf auth login`, or HF_TOKEN.
    Files of a shared run that were there before are replaced; others, such as a LICENSE, stay.

    Raises what `nvae_tf.load` raises, ValueError for a malformed name, and OSError where the Hub does not take the run.
    """
    check_repo_name(repo, f"repo {repo!r}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / repo.partition("/")[2]
        step, has_scores = write_shared_run(workdir, folder, f"{HUB}{repo}", checkpoint)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        num_bytes = sum(path.stat().st_size for path in files.values())
        hub = huggingface_hub.HfApi()
        with _in_one_line(f"{HUB}{repo}"):
            url = hub.create_repo(repo, exist_ok=True)
            # By themselves: `upload_folder` may make several commits, and a reader would find a part of the run.
            operations = [huggingface_hub.CommitOperationAdd(name, path) for name, path in files.items()]
            # What another commit changes meanwhile is not known, so the Hub then refuses this one.
            parent = hub.model_info(repo).sha
            for name in hub.list_repo_files(repo, revision=parent):
                if name not in files and _is_of_shared_run(name):
                    operations.append(huggingface_hub.CommitOperationDelete(name))
            hub.create_commit(repo, operations, commit_message=f"Step {step:,}", parent_commit=parent)
    return Published(str(url), step, len(files), num_bytes, has_scores)


def _is_of_shared_run(name: str) -> bool:
    # To `fnmatch` a slash is a letter like others.
    return any(fnmatch.fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in _FILES)


def write_shared_run(
    workdir: str | os.PathLike, output: pathlib.Path, place: str, checkpoint: str = "latest"
) -> tuple[int, bool]:
    """Writes a copy of a run to share: the folder `output`, from which everything works but going on with the training.

    It has the weights that `nvae_tf.load` gives, without the optimizer's state; the settings without places of this
    machine; the scores of this checkpoint, its reweighted prior, the curves, the newest samples, and a model card that
    gives `place` to load the run from.

    Returns the checkpoint's step, and whether there are scores of it. Raises what `nvae_tf.load` raises, and OSError.
    """
    # Not at the top: `loading` imports this module, and commands use it before they start TensorFlow.
    from nvae_tf.reports.model_card import write_model_card
    from nvae_tf.reports.run_facts import Origin, origin_of_run, write_origin
    from nvae_tf.training.checkpoints import checkpoint_sha256, write_weights
    from nvae_tf.training.loading import load_run
    from nvae_tf.training.run_folder import RunFolder, write_run_config

    source, shared = RunFolder(find_run_folder(workdir)), RunFolder(output)
    _check_is_own(source.path, is_cached=os.fspath(workdir).startswith(HUB))
    run = load_run(source.path, checkpoint)
    output.mkdir(parents=True)
    prefix = write_weights(shared.checkpoints, run.step, run.model, run.has_ema)
    write_run_config(shared, run.config.without_places())
    names = ["images_file", "environment_file", "metrics_file", "card_file"]
    # A text is of files that do not fit these weights.
    for name, found in (("outliers_file", run.model.outlier_calibration), ("prior_file", run.model.reweighted_prior)):
        names += [] if isinstance(found, str) else [name]
    for name in names:
        if getattr(source, name).is_file():
            shutil.copyfile(getattr(source, name), getattr(shared, name))
    for file in sorted(source.samples.glob("step-*.png"))[-1:]:
        shared.samples.mkdir()
        shutil.copyfile(file, shared.samples / file.name)
    first = run.config.train.initialise_from
    origin = origin_of_run(source, first) or (Origin(first) if first else None)
    if origin is not None:
        name = origin.source_file
        if name is not None and not name.startswith(HUB):
            origin = dataclasses.replace(origin, source_file=pathlib.PurePath(name).name)
        write_origin(shared, origin)
    old, new = checkpoint_sha256(run.checkpoint), checkpoint_sha256(prefix)
    scored = {split: source.scores(old, split) for split in ("test", "train")}
    for split, scores in scored.items():
        if scores is not None:
            scores |= {"checkpoint": "latest", "checkpoint_sha256": new}
            atomic_write(shared.evaluation_file(split), json.dumps(scores, indent=2) + "\n")
    parameters = sum(math.prod(weight.shape) for weight in run.model.trainable_variables)
    write_model_card(shared, parameters, place)
    return run.step, any(scored.values())


def _check_is_own(folder: pathlib.Path, is_cached: bool) -> None:
    """ValueError for a file to be shared that is a link out of the run folder, or a device: it may be a secret."""
    root = folder.resolve().parents[1] if is_cached else folder.resolve()  # the cache has links to blobs
    for file in (file for pattern in (*_FILES, _BEST) for file in folder.glob(pattern)):
        if not file.is_file() or not file.resolve().is_relative_to(root):
            raise ValueError(f"{file}: a link out of the run folder, or no file; put a copy in its place, or delete it")


@contextlib.contextmanager
def _in_one_line(place: str) -> Iterator[None]:
    """Raises an OSError of one line, without the token, for whatever goes wrong in its block."""
    try:
        yield
    # Those of huggingface_hub, of its HTTP library and of its storage have no class in common.
    except Exception as error:
        raise OSError(f"{place}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    # A failed upload, and a fetch that finds nothing in the cache either.
    if isinstance(error, RuntimeError | LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return f"this repository is open to people whom its owner lets in: ask on its page, then {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision of this repository"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository, or it is private; check the name, or {_LOG_IN}"
    if status == 401:
        return f"the Hub asks who you are, or does not know your token; {_LOG_IN}"
    if status == 403:
        return f"your token does not allow this; {_LOG_IN}, with one that does"
    if status == 412:
        return "somebody has changed this repository meanwhile; publish the run again"
    words = " ".join(str(error).split()) or type(error).__name__
    # What the HTTP library says of a token with letters that it can't send may have the token in it.
    if isinstance(error, UnicodeError) or "Bearer " in words:
        return f"the token can't be sent, it is damaged; {_LOG_IN}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
        # Of a full disk there may be no name.
        file = error.filename or constants.HF_HUB_CACHE
        return f"{file}: {error.strerror}; HF_HOME names another folder for what is fetched"
    if status is not None or isinstance(error, ValueError):
        return f"the Hub answers with an error ({words})"
    return f"the Hub can't be reached ({words}); check the connection, and HF_ENDPOINT if it is set"
