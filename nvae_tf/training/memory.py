"""The memory of a training step at any batch size: measured in child processes at two small ones, and extrapolated."""

import dataclasses
import json
import math
import resource
import subprocess
import sys
import tempfile
from typing import Any

import tensorflow as tf

from nvae_tf.config import ExperimentConfig, config_to_json, read_config
from nvae_tf.data_sets import check_model_fits
from nvae_tf.replicas import gpus
from nvae_tf.training.run import Images, RunLength, new_run
from nvae_tf.training.strategy import compiles_whole_step, configure_runtime, scans_steps, step_function

GIB = 2**30
# CUDA's context and libraries, which the allocator of TensorFlow does not count. Assumed, not measured.
CUDA_BYTES = GIB
_PIXELS = 8 * 32 * 32  # pixels of the smaller batch; the larger one has four times as many images
_USUAL_GPUS_GIB = (8, 12, 16, 24, 40, 48, 80)
_STEPS = 3  # the first one allocates more than later ones free


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """The memory of a training step: `fixed_bytes`, and `image_bytes` for each image of a batch."""

    device: str  # "CPU": the memory of the process; "GPU": that of the device, with an allowance for CUDA
    parameters: int  # trained numbers
    weights_bytes: int
    slots_bytes: int  # the optimizer's variables
    other_bytes: int  # running statistics, vectors of power iterations and the like
    fixed_bytes: float
    image_bytes: float
    multiple: int  # batch sizes are multiples of train.accumulate_steps

    def peak_bytes(self, batch_size: int) -> int:
        """The peak of a process that trains on the measured device, without its data."""
        return round(self.fixed_bytes + self.image_bytes * batch_size)

    def gpu_bytes(self, batch_size: int) -> int:
        """The peak on a GPU; where a CPU was measured, the process is replaced by weights, gradients and CUDA."""
        if self.device == "GPU":
            return self.peak_bytes(batch_size)
        state = 2 * self.weights_bytes + self.slots_bytes + self.other_bytes
        return round(CUDA_BYTES + state + self.image_bytes * batch_size)

    def largest_batch_size(self, gpu_bytes: int) -> int:
        """The largest batch size that fits into a GPU's memory; 0 where none does."""
        images = (gpu_bytes - self.gpu_bytes(0)) / self.image_bytes
        return max(int(images) // self.multiple, 0) * self.multiple


def estimate_memory(config: ExperimentConfig) -> MemoryEstimate:
    """Runs some steps at two small batch sizes, each in a process of its own, on the device that trains.

    ValueError: the settings do not fit each other, or a step at the larger size does not fit into the memory.
    """
    check_model_fits(config.model, config.data)
    small = max(1, _PIXELS // math.prod(config.data.image_shape[:2])) * config.train.accumulate_steps
    first, second = (_measured(config, batch_size) for batch_size in (small, 4 * small))
    image_bytes = max((second["peak_bytes"] - first["peak_bytes"]) / (3 * small), 1.0)
    allowance = CUDA_BYTES if first["device"] == "GPU" else 0
    fixed = first["peak_bytes"] - image_bytes * small + allowance
    numbers = {name: first[name] for name in ("device", "parameters", "weights_bytes", "slots_bytes", "other_bytes")}
    return MemoryEstimate(**numbers, fixed_bytes=fixed, image_bytes=image_bytes, multiple=config.train.accumulate_steps)


def _measured(config: ExperimentConfig, batch_size: int) -> dict[str, Any]:
    """The numbers that `main` prints in a child process."""
    # The images and the weights to start from need not be there.
    train = dataclasses.replace(config.train, batch_size=batch_size, initialize_from=None)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(config_to_json(dataclasses.replace(config, train=train)))
        file.flush()
        child = subprocess.run([sys.executable, "-m", __name__, file.name], capture_output=True, text=True, check=False)
    if child.returncode:
        lines = child.stderr.strip().splitlines() or ["no message: the system has ended the process, out of memory"]
        raise ValueError(f"a training step of {batch_size} images fails: {lines[-1][:300]}")
    return json.loads(child.stdout.splitlines()[-1])


def main(file: str) -> None:
    """Takes some training steps with the settings of a file, and prints what they needed as JSON."""
    configure_runtime()
    config = read_config(file)
    compiled = compiles_whole_step(config.train.xla, 1)
    # Only the learning rate depends on the length of the run.
    run = new_run(config, RunLength(steps_per_epoch=1000, total_steps=1_000_000), Images(config.data, None, None))
    model, count = run.model, config.train.batch_size
    model.scan = scans_steps(config.train.scan, compiled, 1)
    images = tf.zeros([count, *config.data.image_shape])
    step = step_function(tf.distribute.get_strategy(), model, compiled)
    for _ in range(_STEPS):
        step((images, tf.zeros([count], tf.int32)) if config.data.labels else images)
    trained, others = model.trainable_variables, [*model.non_trainable_variables, *model.step_guard.variables]
    names = ("weights_bytes", "slots_bytes", "other_bytes")
    state = {
        name: sum(math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables)
        for name, variables in zip(names, (trained, model.optimizer.variables, others), strict=True)
    }
    if gpus():
        device, peak = "GPU", tf.config.experimental.get_memory_info("GPU:0")["peak"]
    else:
        device, peak = "CPU", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parameters = sum(math.prod(weight.shape) for weight in trained)
    print(json.dumps({"device": device, "peak_bytes": peak, "parameters": parameters, **state}))


def memory_summary(estimate: MemoryEstimate, config: ExperimentConfig, gpu_memory_gib: float | None) -> dict[str, Any]:
    """All numbers that `nvae-estimate` prints and writes, in bytes where the name says so."""
    wanted, multiple = config.train.batch_size, estimate.multiple
    # Powers of two times the smallest batch size, from 1 to 8 at least, and the batch size that is set.
    powers = (multiple * 2**power for power in range(wanted.bit_length() + 3))
    batch_sizes = sorted({size for size in powers if size <= max(wanted, 8 * multiple)} | {wanted})
    return {
        "device": estimate.device,
        "parameters": estimate.parameters,
        "weights_bytes": estimate.weights_bytes,
        "optimizer_slots_bytes": estimate.slots_bytes,
        "other_state_bytes": estimate.other_bytes,
        "fixed_bytes": round(estimate.fixed_bytes),
        "image_bytes": round(estimate.image_bytes),
        "batch_size": wanted,
        "batch_sizes": [
            {"batch_size": size, "peak_bytes": estimate.peak_bytes(size), "gpu_peak_bytes": estimate.gpu_bytes(size)}
            for size in batch_sizes
        ],
        "largest_batch_sizes": [
            {"gpu_memory_gib": size, "batch_size": estimate.largest_batch_size(round(size * GIB))}
            for size in (_USUAL_GPUS_GIB if gpu_memory_gib is None else (gpu_memory_gib,))
        ],
    }


def memory_table(summary: dict[str, Any], config: ExperimentConfig) -> str:
    """The numbers of `memory_summary` as text."""
    spec, device = config.data, summary["device"]
    lines = [f"{spec.name}: images of {spec.height} x {spec.width} x {spec.channels}, measured on a {device}"]
    for name, key, note in (
        ("weights", "weights_bytes", f"{summary['parameters']:,} parameters"),
        ("optimizer's slots", "optimizer_slots_bytes", ""),
        ("other state", "other_state_bytes", "running statistics, power vectors"),
        ("an image of a batch", "image_bytes", "activations and their gradients"),
        ("everything else", "fixed_bytes", "weights and the rows above, the process and TensorFlow's graph"),
    ):
        lines.append(f"{name:20s}{_in_words(summary[key]):>10s}  {note}".rstrip())
    lines += ["", f"batch size             peak on this {device}   peak on a GPU"]
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
    return "\n".join(lines)


def check_one_image_fits(estimate: MemoryEstimate, config: ExperimentConfig, gpu_memory_gib: float) -> None:
    """Raises ValueError if a GPU with this memory can't take a single image."""
    smallest, needed = estimate.multiple, estimate.gpu_bytes(estimate.multiple)
    where, size = f"--gpu_memory_gib={gpu_memory_gib:g}", gpu_memory_gib * GIB
    if size <= CUDA_BYTES:
        raise ValueError(f"{where}: CUDA and its libraries alone take about {_in_words(CUDA_BYTES)}")
    if needed <= round(size):
        return
    images = "1 image" if smallest == 1 else f"{smallest} images (train.accumulate_steps microbatches of 1 each)"
    keep_less = "" if config.train.recompute == "all" else "keep less with --config.train.recompute=all, "
    raise ValueError(
        f"{where}: not even a step of {images} fits, it takes {_in_words(needed)}. Take a larger GPU, {keep_less}or "
        "make the model smaller with fewer channels (--config.model.num_channels_encoder and num_channels_decoder) or "
        "groups (--config.model.num_groups_per_scale)"
    )


def _in_words(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    main(sys.argv[1])
