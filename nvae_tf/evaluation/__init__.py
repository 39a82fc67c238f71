"""How good a trained model is."""

from nvae_tf.evaluation.likelihood import Likelihood, LikelihoodEvaluator

__all__ = ["Likelihood", "LikelihoodEvaluator"]
