"""Data sets: their specs, their sources, preprocessing and the input pipeline.

Only what needs no TensorFlow is exported here, because configs are read before it is started. The rest is
imported by module: `sources.load_split`, `pipeline.training_batches`, `pipeline.evaluation_batches`.
"""

from nvae_tf.data.specs import DATA_SPECS, data_spec
from nvae_tf.data_spec import DataSpec

__all__ = ["DATA_SPECS", "DataSpec", "data_spec"]
