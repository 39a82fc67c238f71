"""Publishes a run on the Hugging Face Hub: a copy to share, with its model card."""

import dataclasses
import fnmatch
import json
import math
import os
import pathlib
import shutil
import tempfile
import types

import huggingface_hub

from nvae_tf.files import atomic_write
from nvae_tf.reports.model_card import write_model_card
from nvae_tf.runs.checkpoints import checkpoint_sha256, write_weights
from nvae_tf.runs.loading import load_run
from nvae_tf.runs.run_folder import Origin, RunFolder, origin_of_run, write_run_config
from nvae_tf.runs.sharing import BEST_FILES, HUB, SHARED_FILES, check_repo_name, find_run_folder, hub_errors_in_one_line


def publish_run(workdir: str | os.PathLike, repo: str, checkpoint: str = "latest") -> types.SimpleNamespace:
    """Publishes a run on the Hub as the model `repo` ("user/name"), which is made if there is none, in one commit.

    The files are from `write_shared_run`. Files of an earlier shared run in the repository are replaced; others,
    such as a LICENSE, stay. Returns the `url`, the checkpoint's `step`, `num_files`, `num_bytes`, and `has_scores`,
    whether nvae-evaluate had measured this very checkpoint. Raises what `nvae_tf.load` raises, and OSError of the Hub.
    """
    check_repo_name(repo, f"repo {repo!r}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / repo.partition("/")[2]
        step, has_scores = write_shared_run(workdir, folder, f"{HUB}{repo}", checkpoint)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        num_bytes = sum(path.stat().st_size for path in files.values())
        hub = huggingface_hub.HfApi()
        with hub_errors_in_one_line(f"{HUB}{repo}"):
            url = hub.create_repo(repo, exist_ok=True)
            # One commit, where `upload_folder` may make several: a reader would see a part of the run.
            operations = [huggingface_hub.CommitOperationAdd(name, path) for name, path in files.items()]
            # The Hub refuses the commit if the repository has changed meanwhile.
            parent = hub.model_info(repo).sha
            for name in hub.list_repo_files(repo, revision=parent):
                # For `fnmatch` a slash is a letter like others.
                patterns = [pattern for pattern in SHARED_FILES if pattern.count("/") == name.count("/")]
                if name not in files and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                    operations.append(huggingface_hub.CommitOperationDelete(name))
            hub.create_commit(repo, operations, commit_message=f"Step {step:,}", parent_commit=parent)
    facts = {"step": step, "num_files": len(files), "num_bytes": num_bytes, "has_scores": has_scores}
    return types.SimpleNamespace(url=str(url), **facts)


def write_shared_run(
    workdir: str | os.PathLike, output: pathlib.Path, place: str, checkpoint: str = "latest"
) -> tuple[int, bool]:
    """Writes a copy of a run to share, a new folder; everything works with it except continuing the training.

    The copy has the weights that `nvae_tf.load` gives, without the optimizer's state; the settings without places of
    this machine; the scores of this checkpoint, its reweighted prior, the curves, the newest samples, and a model card
    that gives `place` to load the run from.

    Returns the checkpoint's step, and whether there are scores of it. Raises what `nvae_tf.load` raises, and OSError.
    """
    source, shared = RunFolder(find_run_folder(workdir)), RunFolder(output)
    _check_no_links_outside(source, is_of_hub=os.fspath(workdir).startswith(HUB))
    run = load_run(source.path, checkpoint)
    prefix = write_weights(shared.checkpoints, run.step, run.model, run.has_ema)
    write_run_config(shared, run.config.without_places())
    # A text instead of a companion says why its file does not fit these weights.
    companions = {"outliers.npz": run.model.outlier_calibration, "prior.npz": run.model.reweighted_prior}
    fitting = [name for name, made in companions.items() if not isinstance(made, str)]
    samples = [f"samples/{file.name}" for file in sorted(source.samples.glob("step-*.png"))[-1:]]
    for name in ("images.json", "environment.json", "metrics.csv", "README.md", *fitting, *samples):
        if (source.path / name).is_file():
            (output / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source.path / name, output / name)
    first = run.config.train.initialize_from  # what the run started from
    if origin := origin_of_run(source, first) or (Origin(first) if first else None):
        if origin.source_file is not None and not origin.source_file.startswith(HUB):
            origin = dataclasses.replace(origin, source_file=pathlib.PurePath(origin.source_file).name)
        atomic_write(shared.origin_file, origin.text())
    old, new = checkpoint_sha256(run.checkpoint), checkpoint_sha256(prefix)  # once: they are gigabytes
    scored = {split: source.scores(old, split) for split in ("test", "train")}
    for split, scores in scored.items():
        if scores is not None:
            scores |= {"checkpoint": "latest", "checkpoint_sha256": new}
            atomic_write(shared.evaluation_file(split), json.dumps(scores, indent=2) + "\n")
    write_model_card(shared, sum(math.prod(weight.shape) for weight in run.model.trainable_variables), place)
    return run.step, any(scored.values())


def _check_no_links_outside(source: RunFolder, is_of_hub: bool) -> None:
    """ValueError where a file to share is a link out of the run folder, which may lead to something secret."""
    # The cache of the Hub has links to blobs.
    root = source.path.resolve().parents[1] if is_of_hub else source.path.resolve()
    for file in (file for pattern in (*SHARED_FILES, BEST_FILES) for file in source.path.glob(pattern)):
        if not file.is_file() or not file.resolve().is_relative_to(root):
            raise ValueError(f"{file}: a link out of the run folder, or no file; put a copy in its place, or delete it")
