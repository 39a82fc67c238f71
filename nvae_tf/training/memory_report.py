"""What a training step needs of memory, as a table for people and as JSON."""

import json
import pathlib
from typing import Any

from nvae_tf.config import ExperimentConfig
from nvae_tf.files import atomic_write
from nvae_tf.training.memory_estimate import GIB, GPU_BASE_BYTES, MemoryEstimate, estimate_memory

MIB = 2**20
# Of GPUs that there are, in GiB.
_GPU_SIZES = (8, 12, 16, 24, 40, 48, 80)
_FEWEST_ROWS_UP_TO = 8


def report_memory(config: ExperimentConfig, gpu_memory_gib: float | None, json_file: pathlib.Path | None) -> None:
    """Prints the figures and writes them to a file, if there is to be one.

    Raises:
      ValueError: the settings do not fit each other, or a GPU with this memory can't take a single image.
    """
    estimate = estimate_memory(config)
    figures = figures_of(estimate, config, gpu_memory_gib)
    print(table(figures, config), flush=True)
    if json_file is not None:
        atomic_write(json_file, json.dumps(figures, indent=2) + "\n")
    if gpu_memory_gib is not None and not figures["largest_batch_sizes"][0]["batch_size"]:
        raise ValueError(_too_small(estimate, config, gpu_memory_gib))


def figures_of(estimate: MemoryEstimate, config: ExperimentConfig, gpu_memory_gib: float | None) -> dict[str, Any]:
    """All figures, in bytes where the name says so, as `--json` writes them."""
    state = estimate.state
    sizes = _GPU_SIZES if gpu_memory_gib is None else (gpu_memory_gib,)
    return {
        "parameters": state.parameters,
        "weights_bytes": state.weights,
        "optimizer_slots_bytes": state.slots,
        "other_state_bytes": state.other,
        # A number a weight, in the weight's own type.
        "gradients_bytes": state.weights,
        "process_bytes": estimate.process_bytes,
        "batch_size": config.train.batch_size,
        "batch_sizes": [
            {
                "batch_size": size,
                "activations_bytes": estimate.activations_bytes(size),
                "cpu_peak_bytes": estimate.cpu_bytes(size),
                "gpu_peak_bytes": estimate.gpu_bytes(size),
            }
            for size in _batch_sizes(config.train.batch_size, estimate.multiple)
        ],
        "largest_batch_sizes": [
            {"gpu_memory_gib": size, "batch_size": estimate.largest_batch_size(round(size * GIB))} for size in sizes
        ],
        "uncounted_tensors": len(estimate.timelines[0].unknown),
    }


def table(figures: dict[str, Any], config: ExperimentConfig) -> str:
    """The figures for people."""
    spec = config.data
    state = [
        ("weights", figures["weights_bytes"], f"{figures['parameters']:,} parameters"),
        ("optimizer's slots", figures["optimizer_slots_bytes"], ""),
        ("other state", figures["other_state_bytes"], "running statistics, power vectors"),
        ("gradients", figures["gradients_bytes"], "in the activations below, as far as they are there at the peak"),
        ("process", figures["process_bytes"], "on a CPU: Python, TensorFlow, the graph"),
    ]
    lines = [f"{spec.name}: images of {spec.height} x {spec.width} x {spec.channels}"]
    lines += [f"{name:20s}{_words(size):>10s}  {words}".rstrip() for name, size, words in state]
    lines += ["", f"{'batch size':20s}{'activations':>16s}{'peak on a CPU':>16s}{'peak on a GPU':>16s}"]
    for row in figures["batch_sizes"]:
        peaks = (_words(row[name]) for name in ("activations_bytes", "cpu_peak_bytes", "gpu_peak_bytes"))
        own = "  (train.batch_size)" if row["batch_size"] == figures["batch_size"] else ""
        lines.append(f"{row['batch_size']:<20,d}" + "".join(f"{peak:>16s}" for peak in peaks) + own)
    lines += ["", "GPU's memory        largest batch size"]
    lines += [_largest_line(row, figures["batch_size"]) for row in figures["largest_batch_sizes"]]
    if figures["uncounted_tensors"]:
        lines.append(
            f"note: {figures['uncounted_tensors']:,} tensors have no size before they are computed: not counted"
        )
    return "\n".join(lines)


def _largest_line(row: dict[str, Any], wanted: int) -> str:
    largest = row["batch_size"]
    line = f"{row['gpu_memory_gib']:<4g} GiB{largest or 'none':>30{',d' if largest else 's'}}"
    if 0 < largest < wanted:
        parts = next(parts for parts in range(2, wanted + 1) if wanted % parts == 0 and wanted // parts <= largest)
        line += f"  {wanted:,} in {parts} parts: --config.train.accumulate_steps={parts}"
    return line


def _batch_sizes(wanted: int, multiple: int) -> list[int]:
    """Powers of two times what a batch size must be a multiple of, and the one that is wanted."""
    last = max(wanted, _FEWEST_ROWS_UP_TO * multiple)
    powers = (multiple * 2**power for power in range(last.bit_length()))
    return sorted({size for size in powers if size <= last} | {wanted})


def _too_small(estimate: MemoryEstimate, config: ExperimentConfig, gpu_memory_gib: float) -> str:
    if gpu_memory_gib * GIB <= GPU_BASE_BYTES:
        return f"--gpu_memory_gib={gpu_memory_gib:g}: CUDA and its libraries alone take about {_words(GPU_BASE_BYTES)}"
    smallest = estimate.multiple
    images = "1 image" if smallest == 1 else f"{smallest} images ({smallest} parts, train.accumulate_steps, of 1 each)"
    keep_less = "" if config.train.recompute == "all" else "keep less with --config.train.recompute=all, "
    return (
        f"--gpu_memory_gib={gpu_memory_gib:g}: not even a step of {images} fits, it takes "
        f"{_words(estimate.gpu_bytes(smallest))}. Take a larger GPU, {keep_less}or make the model smaller with fewer "
        "channels (--config.model.num_channels_encoder and num_channels_decoder) or groups "
        "(--config.model.num_groups_per_scale)"
    )


def _words(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / MIB:.1f} MiB"
