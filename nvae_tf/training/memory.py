"""Memory and time of a training step at any batch size: measured in child processes at two small ones, extrapolated."""

import dataclasses
import importlib
import json
import math
import pathlib
import re
import resource
import subprocess
import sys
import time
from typing import Any

import tensorflow as tf

from nvae_tf.config import REGISTERED, ExperimentConfig, config_from_dict, config_to_json
from nvae_tf.data_sets import check_model_fits
from nvae_tf.replicas import gpus
from nvae_tf.runs.loading import model_for_training
from nvae_tf.training.strategy import configure_runtime, step_function

GIB = 2**30
# CUDA's context and libraries, which the allocator of TensorFlow does not count. Assumed, not measured.
CUDA_BYTES = GIB
_PIXELS = 8 * 32 * 32  # pixels of the smaller batch; the larger one has four times as many images
_USUAL_GPUS_GIB = (8, 12, 16, 24, 40, 48, 80)
_STEPS = 4  # the first one allocates more than later ones free, and builds the graph
_IMAGES = 10_000  # of the epoch whose time is told


def estimate_memory(config: ExperimentConfig, gpu_memory_gib: float | None = None) -> dict[str, Any]:
    """All numbers that `nvae-estimate` prints and writes, see `memory_summary`, measured on the device that trains.

    ValueError: the settings do not fit each other, or a step does not fit into the memory.
    """
    check_model_fits(config.model, config.data)
    small = max(1, _PIXELS // math.prod(config.data.image_shape[:2])) * config.train.accumulate_steps
    first, second = (_measured(config, batch_size) for batch_size in (small, 4 * small))
    seconds = [each.pop("step_seconds") for each in (first, second)]
    image_seconds, batch_size = max(seconds[1] - seconds[0], 0.0) / (3 * small), config.train.batch_size
    first["step_seconds"] = max(seconds[0] + image_seconds * (batch_size - small), image_seconds * batch_size)
    image_bytes = max((second.pop("peak_bytes") - first["peak_bytes"]) / (3 * small), 1.0)
    fixed_bytes = first.pop("peak_bytes") - image_bytes * small + (CUDA_BYTES if first["device"] == "GPU" else 0)
    return memory_summary(first, fixed_bytes, image_bytes, config, gpu_memory_gib)


def _measured(config: ExperimentConfig, batch_size: int) -> dict[str, Any]:
    """The numbers that `main` prints in a child process."""
    train = dataclasses.replace(config.train, batch_size=batch_size)
    settings = config_to_json(dataclasses.replace(config, train=train))
    # Where the settings' own likelihood and cells, `module:name`, are registered.
    modules = {getattr(config.model, setting).rpartition(":")[0] for setting in REGISTERED} - {""}
    command = [sys.executable, "-m", __name__, *modules]
    child = subprocess.run(command, input=settings, capture_output=True, text=True, check=False)
    if child.returncode:
        lines = child.stderr.strip().splitlines() or ["no message: the system has ended the process, out of memory"]
        raise ValueError(f"a training step of {batch_size} images fails: {lines[-1][:300]}")
    return json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    """Takes some training steps with the settings in standard input, and prints what they needed; both are JSON."""
    config = config_from_dict(ExperimentConfig, json.load(sys.stdin))
    compiled, scan = configure_runtime(config.train, replica_count=1)
    # Only the learning rate depends on the length of the run.
    model = model_for_training(config, steps_per_epoch=1000, total_steps=1_000_000).model
    model.optimizer.build(model.trainable_variables)
    model.scan = scan
    images = tf.zeros([config.train.batch_size, *config.data.image_shape])
    step = step_function(tf.distribute.get_strategy(), model, compiled)
    seconds = []
    for _ in range(_STEPS):
        started = time.monotonic()
        metrics = step((images, tf.zeros(len(images), tf.int32)) if config.data.labels else images)
        tf.nest.map_structure(float, metrics)  # a GPU works on after the call
        seconds.append(time.monotonic() - started)
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus() else peak_memory_bytes()
    parameters = sum(math.prod(weight.shape) for weight in model.trainable_variables)
    numbers = {"device": "GPU" if gpus() else "CPU", "peak_bytes": peak, "parameters": parameters}
    numbers["step_seconds"] = min(seconds[1:])
    for name, held in (
        ("weights_bytes", model.trainable_variables),
        ("optimizer_slots_bytes", model.optimizer.variables),
        ("other_state_bytes", [*model.non_trainable_variables, *model.step_guard.variables]),
    ):
        numbers[name] = sum(math.prod(each.shape) * tf.as_dtype(each.dtype).size for each in held)
    print(json.dumps(numbers))


def peak_memory_bytes() -> int:
    """The most memory that this process has had."""
    try:
        return int(re.search(r"VmHWM:\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
    except (OSError, TypeError):
        # Without such a line: on Linux this begins with the peak of the parent process. macOS counts bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def memory_summary(
    measured: dict[str, Any], fixed_bytes: float, image_bytes: float, config: ExperimentConfig, gpu_gib: float | None
) -> dict[str, Any]:
    """Returns what was `measured`, and extrapolates: peaks by batch sizes, and the largest batch sizes of GPUs.

    A step takes `fixed_bytes`, and `image_bytes` for each image of a batch. Where a CPU was measured, weights, their
    gradients, the optimizer and CUDA take the place of the process's `fixed_bytes` on a GPU.
    """
    multiple, wanted = config.train.accumulate_steps, config.train.batch_size
    state = 2 * measured["weights_bytes"] + measured["optimizer_slots_bytes"] + measured["other_state_bytes"]
    gpu_fixed_bytes = fixed_bytes if measured["device"] == "GPU" else CUDA_BYTES + state
    # Powers of two times the smallest batch size, from 1 to 8 at least, and the batch size that is set.
    powers = (multiple * 2**power for power in range(wanted.bit_length() + 3))
    peaks, largest = [], []
    for size in sorted({size for size in powers if size <= max(wanted, 8 * multiple)} | {wanted}):
        peak, gpu_peak = (round(fixed + image_bytes * size) for fixed in (fixed_bytes, gpu_fixed_bytes))
        peaks.append({"batch_size": size, "peak_bytes": peak, "gpu_peak_bytes": gpu_peak})
    for gib in _USUAL_GPUS_GIB if gpu_gib is None else (gpu_gib,):
        microbatches = int((round(gib * GIB) - round(gpu_fixed_bytes)) / image_bytes) // multiple
        largest.append({"gpu_memory_gib": gib, "batch_size": max(microbatches, 0) * multiple})
    rounded = {"fixed_bytes": round(fixed_bytes), "image_bytes": round(image_bytes), "batch_size": wanted}
    return measured | rounded | {"batch_sizes": peaks, "largest_batch_sizes": largest}


def memory_table(summary: dict[str, Any], config: ExperimentConfig) -> str:
    """The numbers of `memory_summary` as text."""
    spec, device, wanted = config.data, summary["device"], summary["batch_size"]
    lines = [f"{spec.name}: images of {spec.height} x {spec.width} x {spec.channels}, measured on a {device}"]
    for name, key, note in (
        ("weights", "weights_bytes", f"{summary['parameters']:,} parameters"),
        ("optimizer's slots", "optimizer_slots_bytes", ""),
        ("other state", "other_state_bytes", "running statistics, power vectors"),
        ("an image of a batch", "image_bytes", "activations and their gradients"),
        ("everything else", "fixed_bytes", "weights and the rows above, the process and TensorFlow's graph"),
    ):
        lines.append(f"{name:20s}{_in_words(summary[key]):>10s}  {note}".rstrip())
    minutes = _IMAGES / wanted * summary["step_seconds"] / 60.0
    epoch = f"{minutes:.1f} minutes" if minutes < 90.0 else f"{minutes / 60.0:.1f} hours"
    lines.append(f"{f'{_IMAGES:,} images':20s}{epoch:>14s}  in steps of {wanted} images on this {device}, steps alone")
    lines += ["", f"batch size             peak on this {device}   peak on a GPU"]
    for size, *peaks in map(dict.values, summary["batch_sizes"]):
        own = "  (train.batch_size)" if size == wanted else ""
        lines.append(f"{size:<20,d}" + "".join(f"{_in_words(peak):>16s}" for peak in peaks) + own)
    lines += ["", "GPU's memory        largest batch size"]
    for gib, largest in map(dict.values, summary["largest_batch_sizes"]):
        line = f"{gib:<4g} GiB{f'{largest:,}' if largest else 'none':>30s}"
        if 0 < largest < wanted:
            count = next(n for n in range(2, wanted + 1) if wanted % n == 0 and wanted // n <= largest)
            line += f"  {wanted:,} in {count} microbatches: --config.train.accumulate_steps={count}"
        lines.append(line)
    return "\n".join(lines)


def _in_words(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    main()
