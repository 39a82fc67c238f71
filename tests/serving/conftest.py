"""One small export for all tests of this folder: writing and checking it takes some seconds."""

import keras
import numpy as np
import pytest

from export import run_saved_model
from nvae_tf.config import ModelConfig
from nvae_tf.models import NVAE
from nvae_tf.serving.saved_models.run_source import Origin
from nvae_tf.serving.saved_models.saved_model import export_saved_model

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
