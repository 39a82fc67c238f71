"""Data sets: their specs, their sources, preprocessing and the input pipeline.

Only the specs are exported here, because configs read them before TensorFlow is touched. The rest is
imported by module: `sources.load_split`, `pipeline.training_batches`, `pipeline.evaluation_batches`.
"""

from nvae_tf.data.specs import DATA_SPECS, DataSpec, data_spec

__all__ = ["DATA_SPECS", "DataSpec", "data_spec"]
