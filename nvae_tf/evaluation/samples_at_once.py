"""How many importance samples of a batch go through the network together."""

import psutil
import tensorflow as tf

from nvae_tf.layers.cpu_kernels import has_gpus
from nvae_tf.memory import memory_timeline
from nvae_tf.models import NVAE
from nvae_tf.objective import ImportanceWeighting

# More rows in one pass do not make a row cheaper.
_ROWS = 256
_LARGEST_SHARE_OF_MEMORY = 0.25
# Of a GPU nobody tells how much is free; beside the weights this fits those of 8 GiB.
_BYTES_ON_GPU = 2 * 2**30


def samples_at_once(model: NVAE, batch_size: int, importance_samples: int, replicas: int = 1) -> int:
    """As many as make a pass wide enough to be fast, and as fit into a quarter of the free memory; at least 1.

    What a pass needs is read off its graph, see `nvae_tf.memory`; no step of it is run.

    Args:
      model: the model.
      batch_size: images of a batch, of one replica.
      importance_samples: how many samples an image gets in all.
      replicas: how many of them this process has; on a CPU they share the memory.
    """
    wanted = min(importance_samples, _ROWS // batch_size)
    if wanted < 2:
        return 1
    free = _BYTES_ON_GPU if has_gpus() else psutil.virtual_memory().available / replicas
    fitting = int(_LARGEST_SHARE_OF_MEMORY * free / _bytes_of_one(model, batch_size))
    return max(1, min(wanted, fitting))


def _bytes_of_one(model: NVAE, batch_size: int) -> int:
    """The peak of both passes with one sample an image."""
    config = model.config
    images = tf.TensorSpec([batch_size, config.image_height, config.image_width, config.image_channels])
    seeds = tf.TensorSpec([batch_size, 2], tf.int32)

    @tf.function(input_signature=[images, seeds], autograph=False)
    def one(images: tf.Tensor, seeds: tf.Tensor) -> ImportanceWeighting:
        begun = ImportanceWeighting.begun(batch_size, num_numbers=1)
        return model.add_importance_samples(begun, images, model.features(images), seeds, 0, 1, (1,))

    return memory_timeline(one.get_concrete_function()).peak_bytes
