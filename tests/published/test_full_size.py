"""Files of the published architectures at full size, with random weights: they are imported, in time and in memory.

FFHQ's architecture is that of CelebA HQ. These are files of the published form, not the published files themselves.
"""

import argparse
import csv
import os
import pathlib
import resource
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf import presets
from nvae_tf.config import experiment_config
from nvae_tf.models.nvae import model_for_training
from nvae_tf.optimization import inner_optimizer
from nvae_tf.published.names import PublishedTensor, published_tensors
from nvae_tf.published.own_state import checkpoint_names
from nvae_tf.published.settings_to_publish import cell_tables, published_settings
from nvae_tf.published.weight_names import named_weights
from nvae_tf.published.weights import published_shape
from nvae_tf.training.checkpoints import VALUE

pytestmark = [pytest.mark.torch, pytest.mark.slow]

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARAMETERS = {
    "mnist": 33_363_134,
    "cifar10": 130_852_480,
    "celeba64": 153_281_364,
    "imagenet32": 268_509_444,
    "celebahq256": 330_798_664,
}
MEGABYTE = 1 << 20
# Imports, and tells the peak of the process's memory above that of one which has only started its libraries, in kB.
PROGRAM = """
import sys
from nvae_tf.errors import start_tensorflow_quietly
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
start_tensorflow_quietly()
import torch
before = peak()
from export import import_torch_checkpoint
import_torch_checkpoint.main(sys.argv[1:])
print(peak() - before)
"""


class Stored(NamedTuple):
    """A tensor of a file, and where it belongs."""

    value: np.ndarray
    place: PublishedTensor


class Published(NamedTuple):
    """A file, some of its tensors by their names in the report, and the checkpoint's names of the report's targets."""

    path: pathlib.Path
    some: dict[str, Stored]
    keys: dict[str, str]
    parameters: int


def published_file(name, path, with_moments=False):
    """Writes a file of a preset's architecture; its numbers are drawn once, and a tensor is a cut of them."""
    import torch

    config = experiment_config(presets.preset(name))
    with tf.Graph().as_default():
        made = model_for_training(config, steps_per_epoch=1, total_steps=config.objective.total_steps)
        made.model.optimizer.build(made.model.trainable_variables)
    drawn = 0.05 * torch.randn(30_000_000, generator=torch.Generator().manual_seed(0))
    state, optimizer, weights, momenta, parameters = {}, {}, {}, {}, 0
    for number, tensor in enumerate(published_tensors(made.model)):
        shape = published_shape(tensor)
        size = int(np.prod(shape))

        def cut(begin, shape=shape, size=size):
            # A tensor of its own: a view would bring all that were drawn into the file.
            return drawn[begin : begin + size].reshape(shape).clone()

        value = cut(7 * number)
        state[tensor.names[0]] = value.abs() + 0.5 if tensor.names[0].endswith("running_var") else value
        weights[tensor.names[0]] = Stored(state[tensor.names[0]], tensor)
        if tensor.companion is not None:
            state[tensor.companion] = value if tensor.companion.endswith("weight_normalized") else torch.tensor(9)
        if tensor.variable.trainable:
            parameters += size
            if with_moments:
                moments = {"exp_avg": cut(11 * number), "exp_inf": cut(13 * number).abs() + 1e-3}
                momenta[f"optimizer.{len(optimizer)}.exp_avg"] = Stored(moments["exp_avg"], tensor)
                optimizer[len(optimizer)] = {"step": 78_000, **moments}
    group = {"lr": 1e-2, "params": list(range(len(optimizer)))}
    content = {
        "epoch": 400,
        "global_step": 78_000,
        "state_dict": state,
        "optimizer": {"state": optimizer, "param_groups": [group]} if with_moments else {},
        "args": argparse.Namespace(**published_settings(config)),
        "arch_instance": cell_tables(config.model.cell_set),
        "scheduler": {},
        "grad_scalar": {},
    }
    torch.save(content, path)
    return Published(path, some_of(weights) | some_of(momenta), checkpoint_keys(made), parameters)


def some_of(tensors):
    """About forty and the last, as arrays of their own."""
    names = list(tensors)
    names = {*names[:: max(len(names) // 40, 1)], *names[-1:]}
    return {name: tensors[name]._replace(value=tensors[name].value.numpy().copy()) for name in names}


def checkpoint_keys(made):
    """The checkpoint's names of weights and momenta by the words that the report has for them."""
    inner, numbered = inner_optimizer(made.model.optimizer), {}
    for name, variable in checkpoint_names(made):
        numbered.setdefault(id(variable), name + VALUE)
    weights = named_weights(made.model)
    momenta = {name: inner.slots_of(weight).momentum for name, weight in weights.items() if weight.trainable}
    keys = {name: f"model/{name}{VALUE}" for name in weights}
    return keys | {f"momentum of {name}": numbered[id(momentum)] for name, momentum in momenta.items()}


class Cost(NamedTuple):
    """Of an import: seconds, those of the processor alone, and the peak of memory above that of the libraries."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


def imported(file, folder):
    """Runs the command, and returns what it took."""
    flags = [f"--checkpoint={file.path}", f"--output={folder / 'run'}", f"--report={folder / 'map.csv'}"]
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run([sys.executable, "-c", PROGRAM, *flags], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return Cost(time.monotonic() - began, busy, 1024 * int(process.stdout.split()[-1]))


def check_places(file, folder):
    """That the numbers of some tensors, and their momenta, are where the report says, each number at its own place."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(folder / "run" / "checkpoints"))
    with (folder / "map.csv").open(newline="") as report:
        rows = {row["source"]: row for row in csv.DictReader(report)}
    for name, (value, place) in file.some.items():
        row = rows[name]
        found = reader.get_tensor(file.keys[row["target"]])
        found = found[int(row["index"])] if row["index"] else found
        np.testing.assert_array_equal(place.to_published(found), value, err_msg=name)


def remove(folder):
    """Gigabytes are not left for the next test."""
    for file in folder.rglob("*"):
        if file.is_file():
            os.unlink(file)


@pytest.mark.parametrize(("name", "with_moments"), [(name, name == "cifar10") for name in PARAMETERS], ids=str)
def test_a_full_size_file_is_imported(name, with_moments, tmp_path):
    try:
        file = published_file(name, tmp_path / "published.pt", with_moments)
        assert file.parameters == PARAMETERS[name]
        cost = imported(file, tmp_path)
        print(f"{name}{' with moments' if with_moments else ''}: {cost}")
        # Not by the clock: gigabytes are written, and a shared disk may take its time.
        assert cost.processor_seconds < 60.0
        # The model's: its weights and the optimizer's slots.
        assert cost.peak_bytes <= file.path.stat().st_size + 3 * 4 * file.parameters + 100 * MEGABYTE
        check_places(file, tmp_path)
        if name == "cifar10":
            model = nvae_tf.load(tmp_path / "run")
            image = np.random.default_rng(0).uniform(size=[1, 32, 32, 3]).astype(np.float32)
            assert np.isfinite(model.score(image, seed=1)).all()
    finally:
        remove(tmp_path)
