"""One small export for all tests of this folder: writing and checking it takes some seconds."""

import contextlib
import runpy
import sys

import keras
import numpy as np
import pytest
from absl import flags

from export import run_saved_model
from nvae_tf.config import ModelConfig
from nvae_tf.models import NVAE
from nvae_tf.serving.saved_model import Origin, export_saved_model

CONFIG = ModelConfig(
    image_height=8,
    image_width=8,
    num_mixtures=2,
    num_latent_scales=2,
    num_groups_per_scale=1,
    num_latent_per_group=3,
    num_channels_encoder=4,
    num_channels_decoder=4,
    num_preprocess_cells=1,
    num_postprocess_cells=1,
    num_cells_per_group_encoder=1,
    num_cells_per_group_decoder=1,
    num_flows=1,
)
VANILLA_CONFIG = ModelConfig(
    image_height=6,
    image_width=6,
    image_channels=1,
    padded_height=8,
    padded_width=8,
    num_bits=1,
    likelihood="bernoulli",
    num_groups_per_scale=1,
    num_latent_per_group=2,
    num_channels_encoder=4,
    num_channels_decoder=4,
    num_preprocess_cells=1,
    num_postprocess_cells=1,
)


def model_of(config, seed=1):
    """A model none of whose weights, running statistics included, is as it was initialized."""
    keras.utils.set_random_seed(seed)
    model = NVAE(config)
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if weight.dtype == "float32" and len(weight.shape):
            weight.assign(weight + 0.1 * generator.uniform(size=weight.shape))
    return model


@pytest.fixture(scope="session")
def model():
    return model_of(CONFIG)


@pytest.fixture(scope="session")
def folder(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "tiny" / "all"
    return export_saved_model(model, place, 3, origin=Origin({"step": 1200}, {"nelbo_nats": 3.5})).folder


@pytest.fixture(scope="session")
def run(folder):
    """`run(signature, **inputs)` through the session loader, in this process."""
    with run_saved_model.session_of(str(folder)) as run:
        yield run


@pytest.fixture(scope="session")
def vanilla_model():
    return model_of(VANILLA_CONFIG)


@pytest.fixture
def script(monkeypatch, capsys):
    """`script(name, *arguments)` runs `python -m export.NAME` in this process; gives exit code, output and errors."""

    def run(name, *arguments):
        known, code = set(flags.FLAGS), 0
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        try:
            with contextlib.suppress(ImportWarning):
                runpy.run_module(f"export.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as stopped:
            code = stopped.code or 0
        finally:
            for flag in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, flag)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(script):
    """`refused(name, *arguments)` gives the one line on standard error of a command that ends with exit code 2."""

    def run(name, *arguments):
        code, _, errors = script(name, *arguments)
        assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
        return errors

    return run
