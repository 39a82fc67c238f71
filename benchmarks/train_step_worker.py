"""Our own process in `benchmarks.train_step`: the whole training step of a preset's model, step by step."""

import sys
import time

from benchmarks import interleaved

# The batch sizes that the figures of the published code were taken with.
BATCH_SIZES = {"mnist": 16, "cifar10": 4}


class TrainStep:
    """A compiled model, one batch of random images, and the training step that `fit` runs on it.

    Args:
      preset: the name of a file in configs/.
      batch_size: images a step; that of `BATCH_SIZES` if not given.
      recompute: what the backward pass computes again, see `train.recompute`.
    """

    def __init__(self, preset: str, batch_size: int | None = None, recompute: str = "none"):
        start = time.perf_counter()
        # Imported here and not above: how long that takes is one of the figures.
        import tensorflow as tf

        from nvae_tf.config import experiment_config
        from nvae_tf.models.nvae import NVAE
        from nvae_tf.optimization.adamax import NVAEAdamax
        from nvae_tf.training.strategy import configure_runtime

        configure_runtime()
        tf.config.threading.set_intra_op_parallelism_threads(interleaved.THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(interleaved.THREADS)
        from nvae_tf import presets

        settings = presets.preset(preset)
        self.import_seconds = time.perf_counter() - start

        start = time.perf_counter()
        config = experiment_config(settings)
        self.model = NVAE(config.model, config.objective, recompute=recompute)
        self.model.compile(optimizer=NVAEAdamax(learning_rate=config.optimizer.learning_rate))
        self.model.optimizer.build(self.model.trainable_variables)
        self.images = random_images(config.model, batch_size or BATCH_SIZES[preset])
        self._step = tf.function(self.model.train_step, autograph=False)
        self.run()
        self.first_step_seconds = time.perf_counter() - start

    def run(self) -> float:
        """Runs one step and returns its seconds."""
        start = time.perf_counter()
        for value in self._step(self.images).values():
            value.numpy()
        return time.perf_counter() - start

    def summary(self) -> dict:
        """Returns the figures that are not seconds a step."""
        import keras
        import tensorflow as tf

        graph = self._step.get_concrete_function(self.images).graph.as_graph_def()
        in_functions = sum(len(function.node_def) for function in graph.library.function)
        return {
            "import_seconds": self.import_seconds,
            "first_step_seconds": self.first_step_seconds,
            "graph_nodes": len(graph.node) + in_functions,
            "graph_nodes_at_top": len(graph.node),
            "variables": len(self.model.variables),
            "optimizer_variables": len(self.model.optimizer.variables),
            "parameters": sum(int(tf.size(weight)) for weight in self.model.trainable_variables),
            "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        }


def random_images(model_config, batch_size: int):
    """Returns random images `[batch, height, width, channels]` in [0, 1], on the levels that the data has."""
    import tensorflow as tf

    shape = [batch_size, model_config.image_height, model_config.image_width, model_config.image_channels]
    levels = 2 if model_config.likelihood == "bernoulli" else 2**model_config.num_bits
    drawn = tf.random.stateless_uniform(shape, seed=[0, 0], maxval=levels, dtype=tf.int32)
    return tf.cast(drawn, tf.float32) / (levels - 1)


def main(preset: str) -> None:
    train_step = TrainStep(preset)
    interleaved.serve(train_step.run, train_step.summary)


if __name__ == "__main__":
    main(sys.argv[1])
