"""A file of a published architecture at full size, with random weights: it is imported, in little memory."""

import argparse
import shutil

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import presets
from nvae_tf.presets import experiment_config
from nvae_tf.published.names import published_tensors
from nvae_tf.published.settings import cell_tables, published_settings
from nvae_tf.published.weights import published_shape
from tests.command_fixtures import output_of

pytestmark = [pytest.mark.torch, pytest.mark.slow]

PARAMETERS = 130_852_480
MEGABYTE = 1 << 20
# Imports, and prints the peak of the process's memory above that of one which has only started its libraries, in kB.
PROGRAM = """
import pathlib, sys
from nvae_tf.errors import start_tensorflow_quietly
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
start_tensorflow_quietly()
import torch
before = peak()
from nvae_tf.published.conversion import import_run
import_run(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
print(peak() - before)
"""


def write_published_file(path, published):
    """Writes a file of CIFAR-10's architecture, of numbers drawn once; returns its parameters and its last weight."""
    import torch

    config = experiment_config(presets.preset("cifar10"))
    drawn = 0.05 * torch.randn(30_000_000, generator=torch.Generator().manual_seed(0))
    state, parameters = {}, 0
    for number, tensor in enumerate(published_tensors(published.without_arrays(config.model))):
        shape = published_shape(tensor)
        size = int(np.prod(shape))
        # A tensor of its own: a view would bring all that were drawn into the file.
        value = drawn[7 * number : 7 * number + size].reshape(shape).clone()
        state[tensor.names[0]] = value.abs() + 0.5 if tensor.names[0].endswith("running_var") else value
        if tensor.companion is not None:
            state[tensor.companion] = value if tensor.companion.endswith("weight_normalized") else torch.tensor(9)
        parameters += size * tensor.variable.trainable
    settings, tables = argparse.Namespace(**published_settings(config)), cell_tables(config.model.cell_set)
    content = {"epoch": 400, "global_step": 78_000, "state_dict": state, "args": settings, "arch_instance": tables}
    torch.save(content, path)
    return parameters, state["image_conditional.1.weight"].numpy()


def test_a_full_size_file_is_imported(published, tmp_path):
    file, run = tmp_path / "published.pt", tmp_path / "run"
    try:
        parameters, last = write_published_file(file, published)
        assert parameters == PARAMETERS
        peak = 1024 * int(output_of(["-c", PROGRAM, file, run]).split()[-1])
        # The model's: its weights and the optimizer's slots.
        assert peak <= file.stat().st_size + 3 * 4 * parameters + 100 * MEGABYTE
        reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(run / "checkpoints"))
        kernel = reader.get_tensor("model/top_down/image/kernel/.ATTRIBUTES/VARIABLE_VALUE")
        np.testing.assert_array_equal(kernel[0], last.transpose(2, 3, 1, 0))
    finally:
        # Gigabytes are not left for the next test.
        shutil.rmtree(tmp_path)
