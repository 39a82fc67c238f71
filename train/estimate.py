"""Estimates the memory of a training step, and the time of 10,000 images, before anything is trained.

    nvae-estimate --config=cifar10
    nvae-estimate --config=cifar10 --gpu_memory_gib=24 --config.train.recompute=groups

Takes the same --config flags as nvae-train (--config.size=tiny for a smaller model). Runs some training steps of images
of zeros at two small batch sizes, each in a process of its own, on the device that would train: a GPU where there is
one, else the CPU. No image is read, if the settings name their size (--config.data.height). Prints the number of
parameters, the memory of weights and of the optimizer's slots, the time of training with 10,000 images, the peak for
several batch sizes, and the largest batch size for a GPU with --gpu_memory_gib, or for GPUs of usual sizes. Batch sizes
are per GPU, as train.batch_size is. Memory is in GiB (2^30 bytes).

The peak on a CPU is the process's; data, scoring and sampling come on top. The peak on a GPU has 1 GiB for CUDA
and its libraries; without a GPU it takes the memory of an image from the CPU. Neither was compared with a real GPU.

Exit code: 0 done, 2 a mistake in the command, or a GPU that can't take a single image.
"""

import pathlib
from collections.abc import Mapping
from json import dumps
from typing import Annotated, Any

from absl import flags

from nvae_tf import command_line, errors, files

CONFIG = command_line.define_config()


def main(
    gpu_memory_gib: Annotated[float | None, "Memory of one GPU in GiB, for the largest batch size.", 0.1] = None,
    json: Annotated[str | None, "File to write the numbers to as well, in bytes and seconds."] = None,
) -> None:
    """Checks the settings, measures training steps and prints."""
    if json:
        command_line.output_place(json, (".json",), overwrite=True, flag="json")
    from nvae_tf.data.spec import complete_config  # what reads images is not needed for --help

    config = complete_config(sized_settings(CONFIG.value), flags.FLAGS["config"].override_values)
    errors.start_tensorflow_quietly()
    from nvae_tf.training.memory import estimate_memory, memory_table

    summary = estimate_memory(config, gpu_memory_gib)
    print(memory_table(summary, config), flush=True)
    if json:
        files.atomic_write(pathlib.Path(json), dumps(summary, indent=2) + "\n")
    if gpu_memory_gib is not None and not summary["largest_batch_sizes"][0]["batch_size"]:
        fault = f"not even a step of {config.train.accumulate_steps} images fits"
        fix = "take a larger GPU, --config.train.recompute=all, or fewer channels or groups"
        raise ValueError(f"--gpu_memory_gib={gpu_memory_gib:g}: {fault}; {fix}")


def sized_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings, completed so that no image is read if they name a size: square, RGB and of 8 bits where open."""
    data = dict(settings["data"].items())
    if not (data.get("height") or data.get("width")):
        return settings
    known = {"height": data.get("width"), "width": data.get("height"), "channels": 3, "file_bits": 8}
    data |= {name: value for name, value in known.items() if data.get(name) is None}
    return {**settings, "data": data | ({"source": "folder"} if data.get("source") == "auto" else {})}


run = command_line.command(main)
