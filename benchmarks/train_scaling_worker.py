"""The process of one variant in `benchmarks.train_scaling`: a run's training step, as a run takes it."""

import json
import os
import sys
import time

from benchmarks import interleaved
from benchmarks.train_step_worker import random_images

# Quick steps are timed several at a time: training waits for an accelerator at every tenth step, not after each.
MOST_STEPS_AT_A_TIME = 10
SECONDS_AT_A_TIME = 0.25
# In the place of settings: prints the names of the GPUs that there are, and ends.
LIST_GPUS = "list_gpus"


class ScaledStep:
    """A run before its first step, a batch of random images for all its replicas, and the step on them.

    Args:
      preset: the name of a file in configs/.
      training: settings of the group `train` that differ from the preset's.

    Raises:
      ValueError: the settings do not fit each other or the devices.
    """

    def __init__(self, preset: str, training: dict):
        import tensorflow as tf

        from nvae_tf.data.spec import complete_config
        from nvae_tf.training.run import Images, RunLength, new_run
        from nvae_tf.training.strategy import chosen_replicas, compiles_whole_step, configure_runtime, step_function

        start = time.perf_counter()
        from nvae_tf import presets

        settings = presets.preset(preset)
        settings.train.update(training)
        config = complete_config(settings)
        self.replicas = chosen_replicas(config.train)
        configure_runtime()
        compiled = compiles_whole_step(config.train.xla, self.replicas.count)
        # The learning rate alone knows how long a run is; so far from its end it is still small.
        length = RunLength(steps_per_epoch=1000, total_steps=1_000_000)
        run = new_run(config, length, Images(config.data, None, None), replicas=self.replicas)
        with tf.device("CPU:0"):  # where a run's batches come from
            self.images = random_images(config.model, run.images_a_step)
        self._step = step_function(self.replicas.strategy, run.model, compiled)
        self._graph = self._step.get_concrete_function(self.replicas.divided(self.images)).graph
        self.trace_seconds = time.perf_counter() - start
        self.memory_before_first_step = present_bytes()
        self.steps_at_a_time = 1
        self.run()
        self.first_step_seconds = time.perf_counter() - start
        self.run()
        self.steps_at_a_time = round(min(max(SECONDS_AT_A_TIME / self.run(), 1), MOST_STEPS_AT_A_TIME))

    def run(self) -> float:
        """Takes some steps, waits for the last, and returns the seconds of one."""
        start = time.perf_counter()
        for _ in range(self.steps_at_a_time):
            results = self._step(self.replicas.divided(self.images))
        for name, value in results.items():
            for part in self.replicas.strategy.experimental_local_results(value):
                number = float(part.numpy())
            if name == "skipped_steps":
                self.refused_steps = number
        return (time.perf_counter() - start) / self.steps_at_a_time

    def summary(self) -> dict:
        """Returns the figures that are not seconds a step."""
        import keras
        import tensorflow as tf

        graph = self._graph.as_graph_def()
        return {
            "gpu_peak_bytes": [memory["peak"] for memory in memory_of_gpus()],
            "memory_before_first_step_bytes": self.memory_before_first_step,
            "trace_seconds": self.trace_seconds,
            "first_step_seconds": self.first_step_seconds,
            "graph_nodes": len(graph.node) + sum(len(function.node_def) for function in graph.library.function),
            "steps_at_a_time": self.steps_at_a_time,
            "refused_steps": self.refused_steps,
            "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        }


def memory_of_gpus() -> list[dict[str, int]]:
    """Returns bytes in use, `current` and `peak`, of each GPU that trains; an empty list without any."""
    import tensorflow as tf

    count = len(tf.config.list_logical_devices("GPU"))
    return [tf.config.experimental.get_memory_info(f"GPU:{index}") for index in range(count)]


def present_bytes() -> int:
    """Returns what is in use now: of the GPU with the most in use, or without GPUs by this process."""
    import psutil

    in_use = [memory["current"] for memory in memory_of_gpus()]
    return max(in_use, default=psutil.Process().memory_info().rss)


def list_gpus() -> list[str]:
    """Returns the names of the GPUs that TensorFlow finds."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]


def main(argument: str) -> None:
    if argument == LIST_GPUS:
        print(json.dumps(list_gpus()))
        return
    # Several processes share a GPU: none may take all of its memory at once.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    try:
        step = ScaledStep(**json.loads(argument))
    except ValueError as error:
        sys.exit(str(error))
    interleaved.serve(step.run, step.summary)


if __name__ == "__main__":
    main(sys.argv[1])
