"""Learns the reweighted prior of a trained model (`nvae_tf.models.reweighted_prior`), and keeps it in the run folder.

A classifier of each top group tells draws of the posteriors of training images from draws of the prior, given the same
latents above (Aneja et al. 2021, arXiv 2010.02917). The networks of the model run once over the images.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import psutil
import tensorflow as tf
from sklearn.mixture import GaussianMixture

from nvae_tf import objective as objectives
from nvae_tf.config import DataSpec
from nvae_tf.data.pipeline import evaluation_batches, iterate, training_batches
from nvae_tf.data.sources import ImageSource, load_split
from nvae_tf.data_sets import check_model_fits
from nvae_tf.distributions.soft_clamped_normal import SoftClampedNormal
from nvae_tf.layers import FoldedPass, ForwardPass
from nvae_tf.models import NVAE
from nvae_tf.models.latents import (
    InferredGroup,
    LatentSample,
    LatentSource,
    PosteriorSource,
    PriorSource,
    batch_noise,
    image_seeds,
    inferred_group,
    noise_per_image,
)
from nvae_tf.models.passes import top_down_pass
from nvae_tf.models.reweighted_prior import ReweightedPrior, check_settings, made_ratios
from nvae_tf.models.training_step import kept_labels
from nvae_tf.progress import StatusLine
from nvae_tf.reports.model_card import update_model_card
from nvae_tf.runs.companions import write_prior
from nvae_tf.runs.loading import load_run
from nvae_tf.runs.run_folder import RunFolder, read_run_config

_LEARNING_RATE, _BATCH_SIZE = 1e-3, 512
_COMPONENTS = 20  # Gaussians of a mixture
# The latents above a group are drawn once for all steps, so few images get several draws each.
_DRAWS = 30_000
_IMAGES_AT_ONCE, _ROWS_AT_ONCE, _MOST_HELD_OUT = 100, 400, 2000
_PRIOR_DRAWS, _PRIOR_DRAWS_AT_ONCE = 10_000, 500
_BOUND_IMAGES, _BOUND_ROWS_AT_ONCE = 500, 2500
# The draws' seeds are (seed, one of these), so that no generated image has the same.
_INFERRING, _LEARNING, _CHOOSING, _HELD_OUT, _MEASURING = range(-2, -7, -1)

Batches = Iterable[tf.Tensor] | Iterable[tuple[tf.Tensor, tf.Tensor]]


class Posteriors(NamedTuple):
    """Posteriors and priors of the top groups, each row `[rows, ...]` given its own draws of the groups above."""

    groups: list[InferredGroup]
    labels: tf.Tensor | None  # `[rows]`, for a conditional model
    flows: list[list[Callable]]  # the flows of each group, from a draw of the posterior to z


def learn_prior(
    workdir: str | os.PathLike,
    groups: int = 1,
    kind: str = "classifier",
    steps: int = 3000,
    proposals: int = 100,
    importance_samples: int = 0,
    checkpoint: str = "latest",
    seed: int = 0,
    data_path: str | None = None,
) -> dict[str, Any]:
    """Learns the reweighted prior of a checkpoint, and writes it into the run folder in place of an earlier one.

    The arguments are the flags of `nvae-prior`. Returns what the prior's file says, see `companions.prior_text`. Raises
    the errors of `nvae_tf.load` and `load_split`, and ValueError for settings that the model does not allow.
    """
    folder, status = RunFolder(workdir), StatusLine()
    read_run_config(folder)  # a shared run, which `load_run` finds too, has no folder to write into
    run = load_run(workdir, checkpoint)
    model, spec = run.model, run.config.data_at(data_path)
    check_settings(model, groups, kind, steps, proposals)
    check_model_fits(run.config.model, spec)
    train, test = (load_split(spec, split, status.report()) for split in ("train", "test"))
    rows, images = _training_posteriors(model, train, spec, groups, seed, status)
    keras.utils.set_random_seed(seed)
    ratios = made_ratios(kind, groups, model.plan, model.config.num_classes, _COMPONENTS)
    about = {"kind": kind, "groups": groups, "proposals": proposals, "steps": steps, "seed": seed, "images": images}
    reweighted = ReweightedPrior(ratios, proposals, model.config.num_classes, about)  # whose dictionary grows below
    if kind == "mixture":
        about |= _fit_mixture(reweighted, rows, seed)
    else:
        _train(reweighted, rows, steps, seed, status)
        batches = _test_batches(test, spec, _IMAGES_AT_ONCE, _MOST_HELD_OUT, seed)
        about["cross_entropy"] = _cross_entropy(reweighted, _posteriors(model, batches, groups, 1, seed), seed)
        about["effective_proposals"] = _effective_proposals(model, reweighted, seed)
        about |= _log_normalizers(model, reweighted, seed)
    write_prior(folder.prior_file, model, run.step, reweighted)  # bounds take long
    if importance_samples:
        batches = _test_batches(test, spec, max(1, _BOUND_ROWS_AT_ONCE // importance_samples), _BOUND_IMAGES, seed)
        about["bounds"] = _bounds(model, reweighted, batches, importance_samples, seed)
        write_prior(folder.prior_file, model, run.step, reweighted)
    update_model_card(folder, model, status.print)
    return about


def _test_batches(source: ImageSource, spec: DataSpec, size: int, most: int, seed: int) -> Batches:
    numbers = range(math.ceil(min(source.count, most) / size))
    return iterate(evaluation_batches(source, spec, size, seed, numbers), source)


def _numbered(model: NVAE, batches: Batches) -> Iterator[tuple[tf.Tensor, tf.Tensor | None, tf.Tensor]]:
    """Yields the images and labels of each batch, which only conditional models have, and its first image's number."""
    first = 0
    for batch in batches:
        images, labels = batch if isinstance(batch, tuple) else (batch, None)
        yield images, labels if model.config.num_classes else None, tf.constant(first, tf.int64)
        first += len(images)


def _training_posteriors(
    model: NVAE, source: ImageSource, spec: DataSpec, groups: int, seed: int, status: StatusLine
) -> tuple[Posteriors, int]:
    """The posteriors of all images, or of the number that fits into a quarter of the free memory, and their number."""
    draws = math.ceil(_DRAWS / source.count) if groups > 1 else 1
    values = sum(map(math.prod, model.plan.latent_shapes()[:groups]))
    image_bytes = draws * values * 4 * len(InferredGroup._fields[:5])
    # Twice: in batches, and joined.
    fitting = max(1, psutil.virtual_memory().available // (8 * image_bytes))
    if fitting < source.count:
        status.print(f"learning from {fitting:,} of the {source.count:,} training images, which fit into the memory")
    size = min(_IMAGES_AT_ONCE, max(1, _ROWS_AT_ONCE // draws), source.count, fitting)
    number = min(source.count, fitting) // size
    # As in training: in a random order, mirrored where images are, binarized.
    batches = iterate(training_batches(source, spec, size, seed).take(number), source)
    return _posteriors(model, batches, groups, draws, seed), number * size


def _posteriors(model: NVAE, batches: Batches, groups: int, draws: int, seed: int) -> Posteriors:
    """The posteriors of images, `draws` rows each; the networks run as far as these groups."""
    shapes = model.plan.latent_shapes()[:groups]

    @tf.function(autograph=False, reduce_retracing=True)
    def posterior_rows(images: tf.Tensor, labels: tf.Tensor | None, first: tf.Tensor) -> tuple:
        features = [tf.repeat(feature, draws, axis=0) for feature in model.bottom_up.features(images)[:groups]]
        labels = None if labels is None else tf.repeat(kept_labels(model, labels, first), draws)
        noise = batch_noise(shapes, draws * tf.shape(images)[0], (seed, _INFERRING), draws * first)
        sources = list(map(PosteriorSource, features, noise))
        latents = _top_latents(model, sources, draws * tf.shape(images)[0], labels)
        return [inferred_group(latent)._replace(kl=None) for latent in latents], labels

    rows = [posterior_rows(*batch) for batch in _numbered(model, batches)]
    joined = tf.nest.map_structure(lambda *parts: None if parts[0] is None else tf.concat(parts, axis=0), *rows)
    flows: list[list[Callable]] = []
    for scale in model.top_down.scales:
        stack = scale.flows.layers(ForwardPass()) if scale.flows else []
        flows += [stack[group * scale.num_flows :][: scale.num_flows] for group in range(scale.num_groups)]
    return Posteriors(*joined, flows[:groups])


def _top_latents(
    model: NVAE, sources: Sequence[LatentSource], count: int | tf.Tensor, labels: tf.Tensor | None
) -> list[LatentSample]:
    """The latents of the top groups; a graph leaves out the other groups and the image, which nothing uses."""
    rest = [PriorSource(0.0)] * (model.plan.num_groups - len(sources))
    return model.top_down.run([*sources, *rest], count, FoldedPass(labels=labels))[1][: len(sources)]


def _train(reweighted: ReweightedPrior, rows: Posteriors, steps: int, seed: int, status: StatusLine) -> None:
    """Trains the classifiers of all groups together, each on its own loss."""
    variables = [variable for ratio in reweighted.ratios for variable in ratio.trainable_variables]
    optimizer = keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps))
    optimizer.build(variables)
    count = len(rows.groups[0].z)

    @tf.function(autograph=False)
    def step(number: tf.Tensor) -> tf.Tensor:
        step_seed = tf.random.experimental.stateless_fold_in((seed, _CHOOSING), number, alg="philox")
        chosen = tf.random.stateless_uniform([_BATCH_SIZE], step_seed, 0, count, tf.int32, alg="philox")
        with tf.GradientTape() as tape:
            losses = _losses(reweighted, rows, chosen, (seed, _LEARNING), number * _BATCH_SIZE)
            total = tf.reduce_sum(losses)
        optimizer.apply_gradients(zip(tape.gradient(total, variables), variables, strict=True))
        return losses

    for number in range(steps):
        losses = step(tf.constant(number, tf.int64))
        if status.is_due:
            shown = ", ".join(f"{loss:.3f}" for loss in losses)
            status.show(f"step {number + 1:,} of {steps:,}, cross-entropy {shown}", (number + 1) / steps)


def _losses(
    reweighted: ReweightedPrior, rows: Posteriors, chosen: tf.Tensor, seed: tuple[int, int], first: tf.Tensor
) -> tf.Tensor:
    """Each group's mean binary cross-entropy in nats for a draw of the posterior and one of the prior: `[groups]`."""
    shapes = [tuple(group.z.shape[1:]) for group in rows.groups]
    noise = batch_noise(2 * shapes, tf.shape(chosen)[0], seed, first)
    above, losses = [tf.gather(group.z, chosen) for group in rows.groups], []
    labels = None if rows.labels is None else tf.gather(rows.labels, chosen)
    for group, posterior in enumerate(rows.groups):
        mean, scale, *prior = (tf.gather(values, chosen) for values in posterior[1:5])
        prior = SoftClampedNormal(*prior, validate_args=False)
        z = mean + scale * noise[group]
        for flow in rows.flows[group]:
            z = flow(z)
        pairs = tf.stack([z, prior.loc + prior.scale * noise[len(shapes) + group]], axis=1)
        whitened = (pairs - prior.loc[:, tf.newaxis]) / prior.scale[:, tf.newaxis]
        logits = reweighted.log_ratio(group, whitened, prior, above[:group], labels)
        losses.append(tf.reduce_mean(tf.nn.softplus(-logits[:, 0]) + tf.nn.softplus(logits[:, 1])))
    return tf.stack(losses)


def _cross_entropy(reweighted: ReweightedPrior, rows: Posteriors, seed: int) -> list[float]:
    """The mean of `_losses` over all rows, repeated until there are 10,000 draws."""
    count = len(rows.groups[0].z)

    @tf.function(autograph=False)
    def losses(number: tf.Tensor) -> tf.Tensor:
        return _losses(reweighted, rows, tf.range(count), (seed, _HELD_OUT), number * count)

    numbers = range(math.ceil(_PRIOR_DRAWS / count))
    return np.mean([losses(tf.constant(number, tf.int64)) for number in numbers], axis=0, dtype=np.float64).tolist()


def _fit_mixture(reweighted: ReweightedPrior, rows: Posteriors, seed: int) -> dict[str, Any]:
    """Fits Gaussians to the means of the top group's posteriors, and adds the posteriors' variances to each.

    Fitted to draws, the many latents that are independent of the image would hide the clusters of the others.
    """
    count = len(rows.groups[0].z)
    if count < _COMPONENTS:
        raise ValueError(f"{count} training images: a mixture of {_COMPONENTS} Gaussians needs more")
    mean, scale, prior_mean, prior_scale = (np.reshape(values, [count, -1]) for values in rows.groups[0][1:5])
    means, variances = (mean - prior_mean) / prior_scale, (scale / prior_scale) ** 2
    fitted = GaussianMixture(_COMPONENTS, reg_covar=1e-4, random_state=seed).fit(means)
    parts = fitted.predict_proba(means)
    noise = parts.T @ variances / parts.sum(axis=0)[:, np.newaxis]
    factors = np.linalg.cholesky(fitted.covariances_ + noise[:, :, np.newaxis] * np.eye(means.shape[1]))
    weights = np.log(fitted.weights_), fitted.means_, factors
    reweighted.ratios[0].set_weights([array.astype(np.float32) for array in weights])
    # A mixture is normalized.
    return {"components": _COMPONENTS, "log_normalizers": [0.0], "log_normalizer_errors": [0.0]}


def _joint_log_ratio(
    reweighted: ReweightedPrior, latents: Sequence[LatentSample], labels: tf.Tensor | None
) -> tf.Tensor:
    """The sum of the groups' log r of latents, whose priors are at temperature 1: `[batch]`, in nats."""
    above = [latent.z for latent in latents[: len(reweighted.ratios)]]
    log_ratios = []
    for group, z in enumerate(above):
        prior = latents[group].prior
        whitened = ((z - prior.loc) / prior.scale)[:, tf.newaxis]
        log_ratios.append(reweighted.log_ratio(group, whitened, prior, above[:group], labels)[:, 0])
    return tf.add_n(log_ratios)


def _effective_proposals(model: NVAE, reweighted: ReweightedPrior, seed: int) -> list[float]:
    """Each group's mean number of effective proposals over images, whose classes come in turn."""
    numbers = tf.range(_IMAGES_AT_ONCE)
    labels = numbers % model.config.num_classes if model.config.num_classes else None

    @tf.function(autograph=False)
    def effective() -> list[tf.Tensor]:
        # The numbers of generated images are not below 0.
        seeds = tf.stack([tf.fill([_IMAGES_AT_ONCE], seed), -1 - numbers], axis=1)
        sources = reweighted.sources(seeds, [1.0] * len(reweighted.ratios), model.plan, labels)
        _top_latents(model, sources, _IMAGES_AT_ONCE, labels)
        return [tf.reduce_mean(effective) for _, effective in sources[0].drawn]

    return [float(mean) for mean in effective()]


def _log_normalizers(model: NVAE, reweighted: ReweightedPrior, seed: int) -> dict[str, list[float]]:
    """Log Z in nats and its standard error, for each class; Z is the prior's mean of the product of all groups' r."""
    shapes, classes = model.plan.latent_shapes()[: len(reweighted.ratios)], max(1, model.config.num_classes)
    rows = classes * math.ceil(_PRIOR_DRAWS_AT_ONCE / classes)
    labels = tf.range(rows) % classes if model.config.num_classes else None

    @tf.function(autograph=False)
    def log_ratio_from(first: tf.Tensor) -> tf.Tensor:
        noise = batch_noise(shapes, rows, (seed, _MEASURING), first)
        latents = _top_latents(model, [PriorSource(eps) for eps in noise], rows, labels)
        return _joint_log_ratio(reweighted, latents, labels)

    firsts = range(0, _PRIOR_DRAWS, rows)
    log_ratio = np.concatenate([log_ratio_from(tf.constant(first, tf.int64)) for first in firsts], dtype=np.float64)
    log_ratio = log_ratio.reshape(-1, classes)
    largest = log_ratio.max(axis=0)
    ratio = np.exp(log_ratio - largest)
    errors = ratio.std(axis=0, ddof=1) / ratio.mean(axis=0) / math.sqrt(len(ratio))
    log_normalizers = largest + np.log(ratio.mean(axis=0))
    return {"log_normalizers": log_normalizers.tolist(), "log_normalizer_errors": errors.tolist()}


def _bounds(model: NVAE, reweighted: ReweightedPrior, batches: Batches, samples: int, seed: int) -> dict[str, Any]:
    """The importance-weighted bounds in nats, means over images, with the model's prior and with the reweighted one."""

    @tf.function(autograph=False, reduce_retracing=True)
    def both(images: tf.Tensor, labels: tf.Tensor | None, first: tf.Tensor) -> tf.Tensor:
        seeds = image_seeds(seed, tf.shape(images)[0], tf.cast(first, tf.int32))
        noise = noise_per_image(model.plan.latent_shapes(), seeds, 0, samples)
        images, *features = (tf.repeat(rows, samples, axis=0) for rows in (images, *model.bottom_up.features(images)))
        labels = None if labels is None else tf.repeat(labels, samples)
        sources = list(map(PosteriorSource, features, noise))
        decoded = top_down_pass(model, sources, tf.shape(images)[0], FoldedPass(labels=labels))
        log_q, log_p = objectives.log_posterior_and_prior(decoded.latents)
        log_weights = decoded.likelihood.log_prob(images) + log_p - log_q
        log_normalizer = tf.gather(reweighted.about["log_normalizers"], 0 if labels is None else labels)
        log_ratio = _joint_log_ratio(reweighted, decoded.latents, labels) - log_normalizer
        log_weights = tf.reshape([log_weights, log_weights + log_ratio], [2, -1, samples])
        return math.log(samples) - tf.reduce_logsumexp(log_weights, axis=2)

    values = np.concatenate([both(*batch) for batch in _numbered(model, batches)], axis=1)
    means = values.mean(axis=1, dtype=np.float64).tolist()
    return {"samples": samples, "images": values.shape[1], "model": means[0], "reweighted": means[1]}
