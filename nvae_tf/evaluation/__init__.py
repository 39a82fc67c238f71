"""How good a trained model is."""

from nvae_tf.evaluation.latent_usage import active_units
from nvae_tf.evaluation.likelihood import Likelihood
from nvae_tf.evaluation.likelihood_evaluator import LikelihoodEvaluator

__all__ = ["Likelihood", "LikelihoodEvaluator", "active_units"]
