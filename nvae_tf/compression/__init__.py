"""Lossless compression of images by a model: bits-back coding, in files that other machines decode."""
