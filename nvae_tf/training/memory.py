"""The memory of a training step at any batch size, from its traced graph: no step is run and no image is read."""

import bisect
import dataclasses
import functools
import math
from typing import Any

import numpy as np
import psutil
import tensorflow as tf

from nvae_tf.config import ExperimentConfig, check
from nvae_tf.data.spec import check_model_fits
from nvae_tf.layers.cpu_kernels import known_sizes
from nvae_tf.models.training_step import batch_of, train
from nvae_tf.training.graph_memory import Timeline, memory_timeline, number_of_nodes, reserved_bytes
from nvae_tf.training.run import Images, RunLength, new_run
from nvae_tf.training.strategy import configure_runtime

GIB = 2**30
# Not measured: CUDA's context and libraries, and the scratch memory of convolutions as a fraction of the step's.
GPU_BASE_BYTES = GIB
_GPU_SCRATCH = 0.1
# What the runtime allocates per node at the first step, measured on CPUs: 21 to 27 kB in graphs of 12,000 to 19,000.
_NODE_BYTES = 22_000
# Traced at so many images, and at twice as many, times train.accumulate_steps; other sizes follow, because every tensor
# grows linearly. Not at multiples of 32, whether a slice of a tensor is a view depends on its alignment.
_TRACED = 32
_LARGEST_BATCH = 2**20
_USUAL_GPUS_GIB = (8, 12, 16, 24, 40, 48, 80)


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryEstimate:
    """What a training step needs, at any batch size."""

    parameters: int  # that are trained
    weights_bytes: int
    slots_bytes: int  # of the optimizer's variables
    other_bytes: int  # of running statistics, power vectors and the like
    process_bytes: int  # once the step is traced: Python, TensorFlow and its graph
    timelines: tuple[Timeline, Timeline]  # of the step at the two batch sizes
    multiple: int  # of which a batch size is one: train.accumulate_steps

    def timeline(self, batch_size: int) -> Timeline:
        """The step's memory over time; exact as far as every tensor's size is linear in the batch size."""
        first, second = self.timelines
        small, large, traced = np.abs(first.changes), np.abs(second.changes), _TRACED * self.multiple
        sizes = np.maximum(small + (large - small) * (batch_size - traced) // traced, 0)
        return first._replace(changes=np.sign(first.changes) * sizes)

    def activations_bytes(self, batch_size: int) -> int:
        """The peak of all that a step makes: activations, gradients and what is in between."""
        return self.timeline(batch_size).peak_bytes

    @functools.cache  # noqa: B019
    def reserved_bytes(self, batch_size: int) -> int:
        """What TensorFlow's allocator holds for that: the gaps between buffers count as well."""
        return reserved_bytes(self.timeline(batch_size))

    def cpu_bytes(self, batch_size: int) -> int:
        """The peak of a process that trains on a CPU, without its data."""
        state = self.weights_bytes + self.slots_bytes + self.other_bytes
        return self.process_bytes + state + self.reserved_bytes(batch_size)

    def gpu_bytes(self, batch_size: int) -> int:
        """The peak on a GPU, with an allowance for what could not be measured."""
        state = self.weights_bytes + self.slots_bytes + self.other_bytes
        return GPU_BASE_BYTES + state + round((1.0 + _GPU_SCRATCH) * self.reserved_bytes(batch_size))

    def largest_batch_size(self, gpu_bytes: int) -> int:
        """The largest batch size that fits into a GPU's memory; 0 where none does."""
        sizes = range(self.multiple, _LARGEST_BATCH * self.multiple, self.multiple)
        return self.multiple * bisect.bisect_right(sizes, gpu_bytes, key=self.gpu_bytes)


def estimate_memory(config: ExperimentConfig) -> MemoryEstimate:
    """Builds the model of a run and traces its step at two batch sizes; ValueError where settings do not fit."""
    check_model_fits(config.model, config.data)
    configure_runtime()
    # The weights that it would start from need not be there.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, initialise_from=None))
    # Of any length: only the learning rate depends on it.
    length = RunLength(steps_per_epoch=1000, total_steps=1_000_000)
    model = new_run(config, length, Images(config.data, None, None)).model
    batch_size = _TRACED * config.train.accumulate_steps

    def traced(count: int) -> tf.types.experimental.ConcreteFunction:
        images, labels = tf.TensorSpec((count, *config.data.image_shape)), tf.TensorSpec([count], tf.int32)
        batch = (images, labels) if config.data.labels else images
        return tf.function(lambda data: train(model, *batch_of(model, data)), autograph=False).get_concrete_function(
            batch
        )

    nodes = number_of_nodes(traced(batch_size).graph)
    trained, others = model.trainable_variables, [*model.non_trainable_variables, *model.step_guard.variables]
    state = [
        sum(math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables)
        for variables in (trained, model.optimizer.variables, others)
    ]
    # Before more is traced: a process that trains traces once.
    process = max(psutil.Process().memory_info().rss - sum(state), 0) + _NODE_BYTES * nodes
    with known_sizes():
        first, second = (memory_timeline(traced(count)) for count in (batch_size, 2 * batch_size))
    if len(first.changes) != len(second.changes):
        raise RuntimeError(f"The training step's graph differs between batch sizes {batch_size} and {2 * batch_size}.")
    parameters = sum(math.prod(weight.shape) for weight in trained)
    return MemoryEstimate(parameters, *state, process, (first, second), config.train.accumulate_steps)


def memory_summary(estimate: MemoryEstimate, config: ExperimentConfig, gpu_memory_gib: float | None) -> dict[str, Any]:
    """All numbers that `nvae-estimate` prints and writes, in bytes where the name says so."""
    wanted, multiple = config.train.batch_size, estimate.multiple
    # Powers of two times what a batch size must be a multiple of, from 1 to 8 at least, and the one that is set.
    powers = (multiple * 2**power for power in range(wanted.bit_length() + 3))
    batch_sizes = sorted({size for size in powers if size <= max(wanted, 8 * multiple)} | {wanted})
    return {
        "parameters": estimate.parameters,
        "weights_bytes": estimate.weights_bytes,
        "optimizer_slots_bytes": estimate.slots_bytes,
        "other_state_bytes": estimate.other_bytes,
        # One number per weight, in the weight's own type.
        "gradients_bytes": estimate.weights_bytes,
        "process_bytes": estimate.process_bytes,
        "batch_size": wanted,
        "batch_sizes": [
            {
                "batch_size": size,
                "activations_bytes": estimate.activations_bytes(size),
                "cpu_peak_bytes": estimate.cpu_bytes(size),
                "gpu_peak_bytes": estimate.gpu_bytes(size),
            }
            for size in batch_sizes
        ],
        "largest_batch_sizes": [
            {"gpu_memory_gib": size, "batch_size": estimate.largest_batch_size(round(size * GIB))}
            for size in (_USUAL_GPUS_GIB if gpu_memory_gib is None else (gpu_memory_gib,))
        ],
        "uncounted_tensors": len(estimate.timelines[0].unknown),
    }


def memory_table(summary: dict[str, Any], config: ExperimentConfig) -> str:
    """The numbers of `memory_summary` as text."""
    spec = config.data
    lines = [f"{spec.name}: images of {spec.height} x {spec.width} x {spec.channels}"]
    for name, key, note in (
        ("weights", "weights_bytes", f"{summary['parameters']:,} parameters"),
        ("optimizer's slots", "optimizer_slots_bytes", ""),
        ("other state", "other_state_bytes", "running statistics, power vectors"),
        ("gradients", "gradients_bytes", "in the activations below, as far as they are there at the peak"),
        ("process", "process_bytes", "on a CPU: Python, TensorFlow, the graph"),
    ):
        lines.append(f"{name:20s}{_in_words(summary[key]):>10s}  {note}".rstrip())
    lines += ["", "batch size               activations   peak on a CPU   peak on a GPU"]
    for row in summary["batch_sizes"]:
        size, *peaks = row.values()
        own = "  (train.batch_size)" if size == summary["batch_size"] else ""
        lines.append(f"{size:<20,d}" + "".join(f"{_in_words(peak):>16s}" for peak in peaks) + own)
    lines += ["", "GPU's memory        largest batch size"]
    for row in summary["largest_batch_sizes"]:
        largest, wanted = row["batch_size"], summary["batch_size"]
        line = f"{row['gpu_memory_gib']:<4g} GiB{f'{largest:,}' if largest else 'none':>30s}"
        if 0 < largest < wanted:
            count = next(n for n in range(2, wanted + 1) if wanted % n == 0 and wanted // n <= largest)
            line += f"  {wanted:,} in {count} microbatches: --config.train.accumulate_steps={count}"
        lines.append(line)
    if summary["uncounted_tensors"]:
        lines.append(f"note: not counted: {summary['uncounted_tensors']:,} tensors of unknown size")
    return "\n".join(lines)


def check_one_image_fits(estimate: MemoryEstimate, config: ExperimentConfig, gpu_memory_gib: float) -> None:
    """Raises ValueError if a GPU with this memory can't take a single image."""
    smallest, needed = estimate.multiple, estimate.gpu_bytes(estimate.multiple)
    where, size = f"--gpu_memory_gib={gpu_memory_gib:g}", gpu_memory_gib * GIB
    check(size > GPU_BASE_BYTES, f"{where}: CUDA and its libraries alone take about {_in_words(GPU_BASE_BYTES)}")
    images = "1 image" if smallest == 1 else f"{smallest} images (train.accumulate_steps microbatches of 1 each)"
    keep_less = "" if config.train.recompute == "all" else "keep less with --config.train.recompute=all, "
    check(
        needed <= round(size),
        f"{where}: not even a step of {images} fits, it takes {_in_words(needed)}. Take a larger GPU, {keep_less}or "
        "make the model smaller with fewer channels (--config.model.num_channels_encoder and num_channels_decoder) or "
        "groups (--config.model.num_groups_per_scale)",
    )


def _in_words(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"
