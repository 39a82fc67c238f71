"""The memory of a traced function, from its graph alone."""

from nvae_tf.memory.best_fit import reserved_bytes
from nvae_tf.memory.graph_walk import Timeline, memory_timeline

__all__ = ["Timeline", "memory_timeline", "reserved_bytes"]
