"""Data sets: their specs, their sources and the input pipeline.

Exported is only what needs no TensorFlow, because configs are read before it is started. The rest is imported by
module: `sources.load_split`, `pipeline.training_batches`, `pipeline.evaluation_batches`.
"""

from nvae_tf.config import DataSpec
from nvae_tf.data_sets import DATA_SPECS, data_spec

__all__ = ["DATA_SPECS", "DataSpec", "data_spec"]
