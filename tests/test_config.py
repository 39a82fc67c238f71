"""Settings: there and back as dictionaries and JSON, and what follows from them."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict, config_dict

from nvae_tf.config import (
    DataSpec,
    ExperimentConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    config_to_dict,
    config_to_json,
    experiment_config,
    read_config,
)

# No setting is at its default.
CHANGED = ExperimentConfig(
    model=ModelConfig(
        image_height=28,
        image_width=20,
        image_channels=1,
        padded_height=32,
        padded_width=24,
        num_bits=1,
        likelihood="bernoulli",
        num_mixtures=3,
        exact_edges=True,
        num_latent_scales=2,
        num_groups_per_scale=4,
        adaptive_groups=True,
        min_groups_per_scale=2,
        num_latent_per_group=5,
        num_channels_encoder=16,
        num_channels_decoder=24,
        num_preprocess_blocks=2,
        num_preprocess_cells=3,
        num_postprocess_blocks=2,
        num_postprocess_cells=3,
        num_cells_per_group_encoder=1,
        num_cells_per_group_decoder=3,
        num_flows=2,
        cell_set="res_elu",
        squeeze_excite=False,
        residual_distributions=False,
    ),
    objective=ObjectiveConfig(7, 0.5, 0.25, 0.125, 0.5, True, 2.0),
    optimizer=OptimizerConfig(0.25, 0.125, 1.5, 0.0, 0.5),
    data=DataSpec(
        name="my_faces",
        source="folder",
        source_name="left",
        path="somewhere",
        train_split="training",
        test_split="testing",
        test_fraction=0.25,
        split_seed=3,
        height=28,
        width=20,
        channels=2,
        file_bits=16,
        convert=True,
        crop_box=(1, 2, 30, 40),
        resize="crop",
        stacked_images=2,
        num_bits=1,
        binarise=True,
        horizontal_flip=False,
        likelihood="bernoulli",
        padded_height=32,
        padded_width=24,
        on_bad_file="skip",
        cache="decoded",
        max_pixels=1_000_000,
    ),
    train=TrainConfig(
        *(3, 5, 7, 11, 13, 17.0, 19, 23.0, 29, 31, 37),
        *("other_run", 41.0, 43, 47),
        *("mirrored", 53, "mixed_bfloat16", "off", "groups", 3, True, (59, 61), False),
    ),
)


def test_the_round_trip_covers_every_setting():
    default, changed = config_to_dict(ExperimentConfig()), config_to_dict(CHANGED)
    for group, settings in changed.items():
        for name, value in settings.items():
            assert value != default[group][name], f"{group}.{name} is at its default: change it here"


@pytest.mark.parametrize("config", [ExperimentConfig(), CHANGED], ids=["defaults", "changed"])
def test_there_and_back(config, tmp_path):
    assert experiment_config(config_to_dict(config)) == config
    assert experiment_config(json.loads(config_to_json(config))) == config
    path = tmp_path / "config.json"
    path.write_text(config_to_json(config))
    assert read_config(path) == config


def test_what_is_to_be_looked_up_in_the_data_can_be_left_open():
    unknown = dict.fromkeys(("height", "width", "channels", "file_bits", "likelihood", "source_name"))
    config = experiment_config({"data": unknown})
    assert config.data == DataSpec(**unknown)
    assert experiment_config(json.loads(config_to_json(config))) == config


def test_what_is_left_out_keeps_its_default():
    config = experiment_config({"model": {"num_flows": 3}})
    assert config == ExperimentConfig(model=ModelConfig(num_flows=3))


def test_settings_can_not_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().num_flows = 3


def test_an_ml_collections_dictionary_with_placeholders():
    settings = ConfigDict({"model": {"num_flows": 2}, "data": {"name": "mnist"}})
    settings.model.padded_height = config_dict.placeholder(int)
    settings.data.path = config_dict.placeholder(str)
    settings.data.crop_box = config_dict.placeholder(tuple)
    settings.lock()
    config = experiment_config(settings)
    assert config == ExperimentConfig(model=ModelConfig(num_flows=2), data=DataSpec(name="mnist"))
    settings.model.padded_height = 40
    settings.data.path = "somewhere"
    settings.data.crop_box = (0, 0, 8, 8)
    config = experiment_config(settings)
    assert config.model.padded_height == 40
    assert (config.data.path, config.data.crop_box) == ("somewhere", (0, 0, 8, 8))


def test_numbers_as_flags_give_them():
    config = experiment_config({"model": {"num_flows": 2.0}, "optimizer": {"learning_rate": 1}})
    assert type(config.model.num_flows) is int
    assert type(config.optimizer.learning_rate) is float


def test_the_smallest_possible_values_are_accepted():
    config = experiment_config(
        {
            "model": {"num_flows": 0, "num_preprocess_blocks": 0, "num_postprocess_blocks": 0, "num_bits": 1},
            "objective": {"kl_anneal_portion": 0.0, "kl_constant_weight": 1.0, "regularisation": 0.0},
            "train": {"steps": 0, "seed": 0, "batch_size": 1},
        }
    )
    assert config.model.num_preprocess_blocks == 0


def test_images_are_halved_a_few_times_only():
    """The size of the frame is a power of two, which would fill the memory."""
    with pytest.raises(
        ValueError, match=r"num_preprocess_blocks = 1 and num_latent_scales = 1000000000000: more than 16"
    ):
        ModelConfig(num_latent_scales=10**12)


def test_the_size_that_the_network_sees():
    plain, padded = ModelConfig(image_height=6, image_width=4), CHANGED.model
    assert (plain.network_height, plain.network_width) == (6, 4)
    assert (padded.network_height, padded.network_width) == (32, 24)


@pytest.mark.parametrize(
    ("size", "blocks", "scales", "divisor", "network_size"),
    [
        (28, 2, 2, 8, 32),
        (28, 1, 2, 4, 28),
        (33, 1, 1, 2, 34),
        (1, 1, 3, 8, 8),
        (17, 0, 1, 1, 17),
        (256, 1, 5, 32, 256),
        (250, 1, 5, 32, 256),
    ],
)
def test_the_smallest_frame_that_can_be_halved(size, blocks, scales, divisor, network_size):
    config = ModelConfig(image_height=size, image_width=64, num_preprocess_blocks=blocks, num_latent_scales=scales)
    assert config.size_divisor == divisor
    assert (config.network_height, config.network_width) == (network_size, 64)
    # What is asked for is not changed, whether it fits or not.
    assert dataclasses.replace(config, padded_height=size + 40).network_height == size + 40


def test_a_config_file_that_can_not_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_config(tmp_path / "config.json")
    broken = tmp_path / "broken.json"
    broken.write_text(config_to_json(CHANGED)[:-20])
    with pytest.raises(ValueError, match=r"broken\.json is not valid JSON"):
        read_config(broken)
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"trian": {}}')
    with pytest.raises(ValueError, match="did you mean 'train'"):
        read_config(foreign)
