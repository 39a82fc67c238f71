"""Probability distributions of NVAE: latent Normals and image likelihoods, on TensorFlow Probability."""
