"""The evaluation of a run folder: a table for people and a file for scripts."""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

from nvae_tf.checkpoints import load_run
from nvae_tf.checkpoints.run_folder import RunFolder
from nvae_tf.config import ExperimentConfig
from nvae_tf.data.model_settings import check_model_fits
from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.data.sources import load_split, place_of
from nvae_tf.data_spec import DataSpec
from nvae_tf.evaluation import Likelihood, LikelihoodEvaluator
from nvae_tf.objective import bits_per_dimension
from nvae_tf.whole_files import write_whole
from train.progress import StatusLine


def evaluate_run(
    workdir: str | os.PathLike,
    split: str = "test",
    importance_samples: int = 100,
    batch_size: int | None = None,
    seed: int = 0,
    data_path: str | None = None,
    checkpoint: str = "latest",
) -> dict[str, Any]:
    """Evaluates the latest checkpoint of a run folder, or the best, prints the figures and writes them to its
    evaluation file. Images are read from `data_path`, where it is given, and not from where they were during training.

    Returns:
      What was written, see `figures_of`.

    Raises:
      FileNotFoundError, ValueError, ConnectionError: see `nvae_tf.load` and `load_split`.
    """
    folder = RunFolder(pathlib.Path(workdir))
    config, step, model = load_run(workdir, checkpoint)
    spec = spec_to_read(config, data_path)
    check_model_fits(config.model, spec)
    status = StatusLine()
    source = load_split(spec, split, status.report())
    batch_size = min(batch_size or config.train.batch_size, source.count)
    status.keep(
        f"{folder.path}, step {step:,}: {source.count:,} images of the {split} part of {spec.name} ({place_of(spec)})"
    )

    def show(done: int) -> None:
        if status.is_due:
            status.show(f"{done:,} of {source.count:,} images")

    evaluator = LikelihoodEvaluator(model, batch_size, importance_samples)
    batches = iterate(evaluation_batches(source, spec, batch_size, seed), source)
    likelihood = evaluator.evaluate(batches, seed, show)
    figures = figures_of(likelihood, spec, importance_samples)
    figures |= {"dataset": spec.name, "data": place_of(spec), "split": split, "seed": seed}
    figures |= {"checkpoint": checkpoint, "step": step}
    status.keep(table(figures))
    file = folder.evaluation_file(split)
    write_whole(file, json.dumps(figures, indent=2) + "\n")
    status.keep(f"written to {file}")
    return figures


def spec_to_read(config: ExperimentConfig, data_path: str | None) -> DataSpec:
    """The run's data spec, with another path if one is given, and without a cache that is not there."""
    cache = config.data.cache if config.data.cache and pathlib.Path(config.data.cache).expanduser().is_dir() else None
    return dataclasses.replace(config.data, path=data_path or config.data.path, cache=cache)


def figures_of(likelihood: Likelihood, spec: DataSpec, importance_samples: int) -> dict[str, Any]:
    """The measured bounds under the names of the evaluation file; means over images, in nats or bits per real
    value.
    """
    dimensions = math.prod(spec.image_shape)
    weighted = likelihood.importance_weighted_nats
    return {
        "nelbo_nats": likelihood.nelbo_nats,
        "bits_per_dim": bits_per_dimension(likelihood.nelbo_nats, dimensions),
        "importance_samples": importance_samples,
        "importance_weighted_nats": weighted,
        "importance_weighted_bits_per_dim": None if weighted is None else bits_per_dimension(weighted, dimensions),
        "reconstruction_nats": likelihood.reconstruction_nats,
        "kl_nats": likelihood.kl_nats,
        "kl_per_group_nats": [float(value) for value in likelihood.kl_per_group_nats],
        "num_images": likelihood.num_images,
    }


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    bits = figures["bits_per_dim"] / figures["nelbo_nats"] if figures["nelbo_nats"] else 0.0
    rows = [("NELBO", figures["nelbo_nats"])]
    if figures["importance_weighted_nats"] is not None:
        name = f"importance-weighted, {figures['importance_samples']} samples"
        rows.append((name, figures["importance_weighted_nats"]))
    rows += [("reconstruction", figures["reconstruction_nats"]), ("KL", figures["kl_nats"])]
    rows += [(f"KL of group {index}", value) for index, value in enumerate(figures["kl_per_group_nats"])]
    lines = [f"{'':36s}{'nats':>10s}{'bits/dim':>10s}"]
    lines += [f"{name:36s}{nats:10.3f}{nats * bits:10.4f}" for name, nats in rows]
    return "\n".join(lines)
