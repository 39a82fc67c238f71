"""How unlike its training images an image looks to a model: scores of one pass, and what they are compared with.

The likelihood does not show it (Nalisnick et al. 2019, arXiv 1810.09136). The KL of a group is what the image says
against the prior, given the groups above: each group checks what is usual at its resolution. A conditional model scores
each image with the class that fits it best, unless labels are given. `model` is the `NVAE` (nvae.py).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf import objective as objectives
from nvae_tf.config import check
from nvae_tf.layers import FoldedPass
from nvae_tf.models.images import real_pixels
from nvae_tf.models.latents import LatentSample
from nvae_tf.models.passes import inference_pass, nelbo_of_classes


class OutlierParts(NamedTuple):
    """What a pass at the posterior's means says of images, in nats."""

    reconstruction: tf.Tensor  # -log p(x | z), `[batch]`
    kl: tf.Tensor  # of each group, `[batch, groups]`, top group first
    kl_map: tf.Tensor  # of the groups of the largest scale, where in the image, nats per pixel `[batch, height, width]`


class OutlierScores(NamedTuple):
    """Scores of images `[batch]`, higher for images that are less like the training images; None if not calibrated."""

    # A p-value is the share of held-out images whose score is at least as high, the image itself counted as one.

    kl: tf.Tensor  # the sum over the groups, in nats
    # KL and reconstruction at the posterior's means, in nats: it does not show outliers, and is no bound on -log p(x).
    nelbo_at_mean: tf.Tensor
    mahalanobis: tf.Tensor | None  # of the KLs of all groups and the reconstruction, in standard deviations
    kl_p_value: tf.Tensor | None
    mahalanobis_p_value: tf.Tensor | None
    parts: OutlierParts


@dataclasses.dataclass(frozen=True, eq=False)
class OutlierCalibration:
    """What images are compared with, see `nvae_tf.evaluation.outliers.calibrate`."""

    mean: np.ndarray  # of the KL of each group and the reconstruction of training images, `[groups + 1]`, in nats
    covariance: np.ndarray  # of the same
    kl: np.ndarray  # the scores of images that the model has not seen, ascending, `[images]`, as are those below
    mahalanobis: np.ndarray


def outlier_parts(model, images: tf.Tensor, labels: tf.Tensor | None = None) -> OutlierParts:
    """The KLs and reconstructions of images `[batch, height, width, channels]`, by default of the likeliest class."""
    means = [0.0] * model.plan.num_groups
    if labels is None and model.config.num_classes:
        labels = tf.argmin(nelbo_of_classes(model, images, lambda _: means), axis=0, output_type=tf.int32)
    decoded = inference_pass(model, images, means, FoldedPass(labels=labels))
    return OutlierParts(*decoded.elbo(images), kl_map(model, decoded.latents))


def kl_map(model, latents: Sequence[LatentSample]) -> tf.Tensor:
    """The KL of the groups of the largest scale, where in the image: nats per pixel `[batch, height, width]`."""
    largest = [latent for latent in latents if latent.z.shape[1] == model.plan.scales[-1].height]
    maps = []
    for latent in largest:
        kl_of_groups = tf.reduce_sum(objectives.kl_per_element(latent), axis=3)
        maps.append(tf.reduce_sum(tf.reshape(kl_of_groups, (latent.groups, -1, *kl_of_groups.shape[1:])), axis=0))
    nats, config = tf.add_n(maps), model.config
    # The pixels of a position share its nats evenly.
    height, width = config.network_height // nats.shape[1], config.network_width // nats.shape[2]
    spread = tf.repeat(tf.repeat(nats / (height * width), height, axis=1), width, axis=2)
    return real_pixels(spread, config.image_height, config.image_width)


def outlier_scores(parts: OutlierParts, calibration: OutlierCalibration | None) -> OutlierScores:
    """The scores of images; ValueError where the calibration is of a model with another number of groups."""
    kl = tf.reduce_sum(parts.kl, axis=1)
    scores = OutlierScores(kl, parts.reconstruction + kl, None, None, None, parts)
    if calibration is None:
        return scores
    groups, own = len(calibration.mean) - 1, parts.kl.shape[1]
    check(groups == own, f"the calibration is of a model with {groups} latent groups, this one has {own}")
    distance = mahalanobis_distance(parts, calibration.mean, calibration.covariance)
    p_values = _p_values(kl, calibration.kl), _p_values(distance, calibration.mahalanobis)
    return scores._replace(mahalanobis=distance, kl_p_value=p_values[0], mahalanobis_p_value=p_values[1])


def mahalanobis_distance(parts: OutlierParts, mean: np.ndarray, covariance: np.ndarray) -> tf.Tensor:
    """`sqrt((f - mean)^T covariance^-1 (f - mean))` `[batch]` of f, the KL of each group and the reconstruction."""
    values = tf.concat([parts.kl, parts.reconstruction[:, tf.newaxis]], axis=1)
    # In double precision: accelerators round products of floats, and this one has a few numbers an image.
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    whitened = tf.matmul(tf.cast(values, tf.float64) - mean, whitening)
    return tf.cast(tf.norm(whitened, axis=1), tf.float32)


def _p_values(scores: tf.Tensor, calibrated: np.ndarray) -> tf.Tensor:
    at_least_as_high = len(calibrated) - tf.searchsorted(tf.constant(calibrated), scores)
    return tf.cast(1 + at_least_as_high, tf.float32) / (1 + len(calibrated))
