"""Probability distributions of NVAE: latent Normals and image likelihoods, on TensorFlow Probability."""

from nvae_tf.distributions.discretized_logistic_mixture import DiscretizedLogisticMixture
from nvae_tf.distributions.image_likelihood import (
    IMAGE_LIKELIHOODS,
    BernoulliLikelihood,
    ImageLikelihood,
    LogisticMixtureLikelihood,
    NormalLikelihood,
    image_likelihood,
)
from nvae_tf.distributions.pixel_normal import PixelNormal
from nvae_tf.distributions.soft_clamped_normal import SoftClampedNormal, soft_clamp, soft_clamped_normal

__all__ = [
    "IMAGE_LIKELIHOODS",
    "BernoulliLikelihood",
    "DiscretizedLogisticMixture",
    "ImageLikelihood",
    "LogisticMixtureLikelihood",
    "NormalLikelihood",
    "PixelNormal",
    "SoftClampedNormal",
    "image_likelihood",
    "soft_clamp",
    "soft_clamped_normal",
]
