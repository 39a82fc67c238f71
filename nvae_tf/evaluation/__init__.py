"""How good a trained model is."""

from nvae_tf.evaluation.batch_norm_statistics import ReadjustedModel, StatisticsShift, readjusted
from nvae_tf.evaluation.feature_statistics import (
    FeatureStatistics,
    RunningFeatureStatistics,
    load_statistics,
    save_statistics,
)
from nvae_tf.evaluation.fid import frechet_inception_distance, image_statistics
from nvae_tf.evaluation.frechet_distance import frechet_distance
from nvae_tf.evaluation.inception import FeatureExtractor, Inception, load_inception
from nvae_tf.evaluation.kl_heat_map import kl_heat_map
from nvae_tf.evaluation.latent_usage import ACTIVE_FROM, active_units
from nvae_tf.evaluation.likelihood import Likelihood
from nvae_tf.evaluation.likelihood_evaluator import LikelihoodEvaluator

__all__ = [
    "ACTIVE_FROM",
    "FeatureExtractor",
    "FeatureStatistics",
    "Inception",
    "Likelihood",
    "LikelihoodEvaluator",
    "ReadjustedModel",
    "RunningFeatureStatistics",
    "StatisticsShift",
    "active_units",
    "frechet_distance",
    "frechet_inception_distance",
    "image_statistics",
    "kl_heat_map",
    "load_inception",
    "load_statistics",
    "readjusted",
    "save_statistics",
]
