"""Images from the prior: a function of seed and number, whatever else is drawn."""

import numpy as np
import pytest

import nvae_tf
from nvae_tf.config import ModelConfig
from nvae_tf.generation.sampling import generate_images

CONFIG = ModelConfig(
    image_height=4,
    image_width=4,
    image_channels=3,
    num_latent_scales=2,
    num_groups_per_scale=1,
    num_latent_per_group=2,
    num_channels_encoder=2,
    num_channels_decoder=2,
    num_preprocess_blocks=0,
    num_postprocess_blocks=0,
    num_mixtures=2,
)


@pytest.fixture(scope="module")
def model():
    return nvae_tf.NVAE(CONFIG)


def test_an_image_does_not_depend_on_how_many_there_are(model):
    many = generate_images(model, 35, temperature=0.8, seed=3)
    few = generate_images(model, 5, temperature=0.8, seed=3)
    assert many.shape == (35, 4, 4, 3)
    np.testing.assert_array_equal(many[:5], few)


def test_images_are_those_of_the_model(model):
    np.testing.assert_allclose(
        generate_images(model, 20, 0.7, seed=2), model.generate(20, 0.7, seed=2).numpy(), atol=1e-5
    )


def test_seed_and_temperature_matter(model):
    first = generate_images(model, 4, 1.0, seed=0)
    assert np.abs(first - generate_images(model, 4, 1.0, seed=1)).max() > 1e-4
    assert np.abs(first - generate_images(model, 4, 0.1, seed=0)).max() > 1e-4


def test_progress_counts_images(model):
    seen = []
    generate_images(model, 40, progress=seen.append)
    assert seen == [16, 32, 40]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_temperature_is_told(model, temperature):
    with pytest.raises(ValueError, match="temperature"):
        generate_images(model, 1, temperature)


def test_an_impossible_count_is_told(model):
    with pytest.raises(ValueError, match="count = 0"):
        generate_images(model, 0)
