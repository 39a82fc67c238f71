"""Data sets: their specs, sources and input pipeline. Exported is only what needs no TensorFlow."""

from nvae_tf.config import DataSpec
from nvae_tf.data_sets import DATA_SPECS, data_spec

__all__ = ["DATA_SPECS", "DataSpec", "data_spec"]
