"""The memory of a training step at any batch size, from its traced graph: no step is run and no image is read."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import psutil
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.data.spec import check_model_fits
from nvae_tf.memory import Timeline, memory_timeline, reserved_bytes
from nvae_tf.training.devices import configure_runtime
from nvae_tf.training.run import Images, Run, RunLength, new_run

GIB = 2**30
# What the runtime makes of a node at the first step, measured on CPUs: 14 to 20 kB in graphs of 16,000 to 23,000.
NODE_BYTES = 16_000
# Not measured: CUDA's context and libraries, and a part of the step's memory for the scratch memory of convolutions.
GPU_BASE_BYTES = GIB
GPU_SCRATCH = 0.1
# Traced at so many images, times train.accumulate_steps; other sizes follow, because every tensor grows evenly. Whether
# a part of a tensor is a view depends on its alignment: not at multiples of 32.
_TRACED = (32, 64)
_LARGEST_BATCH = 2**20
# Only the learning rate knows it.
_ANY_LENGTH = RunLength(steps_per_epoch=1000, total_steps=1_000_000)


class StateBytes(NamedTuple):
    """What stays from step to step.

    Attributes:
      parameters: how many numbers are trained.
      weights: their bytes.
      slots: bytes of the optimizer's variables.
      other: bytes of running statistics, power vectors and the like.
    """

    parameters: int
    weights: int
    slots: int
    other: int

    @property
    def total(self) -> int:
        """All of them, in bytes."""
        return self.weights + self.slots + self.other


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """What a training step needs, at any batch size.

    Attributes:
      state: what stays from step to step.
      process_bytes: the process itself once the step is traced: Python, TensorFlow and its graph.
      timelines: the step's memory at the batch sizes `traced_at`.
      traced_at: two batch sizes.
      multiple: what a batch size must be a multiple of: `train.accumulate_steps`.
    """

    state: StateBytes
    process_bytes: int
    timelines: tuple[Timeline, Timeline]
    traced_at: tuple[int, int]
    multiple: int
    _reserved: dict[int, int] = dataclasses.field(default_factory=dict, repr=False)

    def timeline(self, batch_size: int) -> Timeline:
        """The step's memory over time; exact as far as every tensor's size is a straight line over the batch size."""
        first, second = self.timelines
        small, large = np.abs(first.changes), np.abs(second.changes)
        smaller, larger = self.traced_at
        sizes = np.maximum(small + (large - small) * (batch_size - smaller) // (larger - smaller), 0)
        return first._replace(changes=np.sign(first.changes) * sizes)

    def activations_bytes(self, batch_size: int) -> int:
        """The peak of all that a step makes: activations, gradients and what is in between."""
        return self.timeline(batch_size).peak_bytes

    def reserved_bytes(self, batch_size: int) -> int:
        """What TensorFlow's allocator holds for that: the gaps between buffers count as well."""
        if batch_size not in self._reserved:
            self._reserved[batch_size] = reserved_bytes(self.timeline(batch_size))
        return self._reserved[batch_size]

    def cpu_bytes(self, batch_size: int) -> int:
        """The peak of a process that trains on a CPU, without its data."""
        return self.process_bytes + self.state.total + self.reserved_bytes(batch_size)

    def gpu_bytes(self, batch_size: int) -> int:
        """The peak on a GPU, with an allowance for what could not be measured."""
        step = (1.0 + GPU_SCRATCH) * self.reserved_bytes(batch_size)
        return GPU_BASE_BYTES + self.state.total + round(step)

    def largest_batch_size(self, gpu_bytes: int) -> int:
        """The largest batch size that fits into a GPU's memory; 0 where none does."""

        def fits(count: int) -> bool:
            return self.gpu_bytes(count * self.multiple) <= gpu_bytes

        low, high = 0, 1
        while fits(high) and high < _LARGEST_BATCH:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low * self.multiple


def estimate_memory(config: ExperimentConfig) -> MemoryEstimate:
    """Builds the model of a run and traces its training step at two batch sizes.

    Raises:
      ValueError: the settings do not fit each other.
    """
    check_model_fits(config.model, config.data)
    configure_runtime()
    # What it would start from need not be there.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, initialise_from=None))
    run = new_run(config, _ANY_LENGTH, Images(config.data, None, None))
    multiple = config.train.accumulate_steps
    traced_at = tuple(count * multiple for count in _TRACED)
    first = _step_timeline(run, traced_at[0])
    state = _state_bytes(run)
    # A process that trains traces once.
    process = max(psutil.Process().memory_info().rss - state.total, 0) + NODE_BYTES * first.nodes
    second = _step_timeline(run, traced_at[1])
    if len(first.changes) != len(second.changes):
        raise RuntimeError(
            f"The training step's graph is another one at batch size {traced_at[1]} than {traced_at[0]}."
        )
    return MemoryEstimate(state, process, (first, second), traced_at, multiple)


def _step_timeline(run: Run, batch_size: int) -> Timeline:
    images = tf.TensorSpec((batch_size, *run.images.spec.image_shape))
    step = tf.function(run.model.train_step, input_signature=[images], autograph=False)
    return memory_timeline(step.get_concrete_function())


def _state_bytes(run: Run) -> StateBytes:
    trained = run.model.trainable_variables
    guard = getattr(run.model.step_guard, "variables", [])
    others = [*run.model.non_trainable_variables, *guard]
    return StateBytes(
        sum(math.prod(weight.shape) for weight in trained),
        *(_bytes_of(variables) for variables in (trained, run.model.optimizer.variables, others)),
    )


def _bytes_of(variables: list) -> int:
    return sum(math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables)
