"""Tells how much memory a training step needs, before anything is trained.

    python -m train.estimate --config=configs/cifar10.py
    python -m train.estimate --config=configs/cifar10.py --gpu_memory_gib=24 --config.train.recompute=groups

Takes the same --config flags as train.main. Builds the model and the graph of its training step, which takes some
twenty seconds and room for the weights; no step is run, no GPU used and no image read, if the settings say of which
size they are (--config.data.height). Prints

    the number of parameters, the memory of weights, of the optimizer's slots and of gradients,
    for several batch sizes the peak of the activations, by which is meant all that a step makes: activations,
        gradients, and what is in between; and with weights, slots and gaps between buffers the peak of the whole,
    the largest batch size for a GPU with --gpu_memory_gib, or for GPUs of usual sizes.

Batch sizes are per GPU, as train.batch_size is. Memory is in GiB (2^30 bytes).

The peak on a CPU is that of the process, and within 5% of what was measured on the presets for MNIST, CIFAR-10 and
digits; the data set, reading ahead, scoring and sampling come on top. That on a GPU has 1 GiB for CUDA and its
libraries and a tenth of the step for the scratch memory of convolutions: assumptions, for it has not been measured.
XLA (train.xla) makes another program of the graph, and its memory is not estimated.

Exit code: 0 done, 2 a mistake in the command, or a GPU that can't take a single image.
"""

import pathlib

from absl import flags

from nvae_tf import command_line
from nvae_tf.data.spec import complete_config
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.files import check_writable
from nvae_tf.latent_plan import latent_plan
from nvae_tf.training.sized_settings import sized_settings

CONFIG = command_line.define_config(flags)
GPU_MEMORY_GIB = flags.DEFINE_float(
    "gpu_memory_gib", None, "Memory of one GPU in GiB, for the largest batch size.", lower_bound=0.1
)
JSON = flags.DEFINE_string("json", None, "File to write the figures to as well, in bytes.")


def main() -> None:
    """Checks the settings, traces the training step and prints."""
    json_file = pathlib.Path(JSON.value) if JSON.value else None
    if json_file and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise ValueError(f"--json={json_file}: not a file in an existing folder")
    if json_file:
        check_writable(json_file.parent, f"--json={json_file}")
    config = complete_config(sized_settings(CONFIG.value))
    latent_plan(config.model)
    start_tensorflow_quietly()
    import tensorflow as tf

    from nvae_tf.training.memory_report import report_memory

    # Somebody may be training on it.
    tf.config.set_visible_devices([], "GPU")
    report_memory(config, GPU_MEMORY_GIB.value, json_file)


def run() -> None:
    """The command `nvae-estimate`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
