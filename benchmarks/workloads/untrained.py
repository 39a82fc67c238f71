"""Models of presets with their first weights: time and memory do not depend on the weights."""

import tensorflow as tf

from benchmarks import interleaved
from nvae_tf import presets
from nvae_tf.config import ExperimentConfig
from nvae_tf.data.spec import complete_config
from nvae_tf.models import NVAE
from nvae_tf.training.strategy import configure_runtime


def suit_process() -> None:
    """TensorFlow's settings as the commands have them, and threads as the yardstick has; before its first use."""
    configure_runtime()
    tf.config.threading.set_intra_op_parallelism_threads(interleaved.THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(interleaved.THREADS)


def config_of(preset: str) -> ExperimentConfig:
    """The settings of a file in configs/."""
    return complete_config(presets.preset(preset))


def untrained_model(preset: str) -> NVAE:
    """A model that nothing has been done with yet."""
    suit_process()
    return NVAE(config_of(preset).model)
