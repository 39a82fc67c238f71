import dataclasses
import json

import numpy as np
import pytest

from nvae_tf.config import (
    DataSpec,
    ExperimentConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    config_to_dict,
    config_to_json,
    did_you_mean,
    read_config,
)
from nvae_tf.data.spec import complete_config
from nvae_tf.presets import experiment_config, load_settings, preset

# No setting is at its default.
CHANGED = ExperimentConfig(
    model=ModelConfig(
        *(28, 20, 1, 32, 24, 1, "bernoulli", 3, True),
        *(2, 4, True, 2, 5, 16, 24),
        *(2, 3, 2, 3, 1, 3, 2, "res_elu", False, False, 4),
    ),
    objective=ObjectiveConfig(7, 0.5, 0.25, 0.125, 0.5, True, 2.0, 0.7, (1, 0.5), 3.0),
    optimizer=OptimizerConfig(0.25, 0.125, 1.5, 0.0, 0.5),
    data=DataSpec(
        *("my_faces", "folder", "left", "somewhere", "training", "testing", 0.25, 3),
        *(28, 20, 2, 16, True, (1, 2, 30, 40), "crop", 2),
        *(1, True, False, "bernoulli", 32, 24, "skip", "decoded", 1_000_000, True, 4, "white"),
    ),
    train=TrainConfig(
        *(3, 5, 7, 11, 13, 17.0, 19, 23.0, 29, 31, 37, "wandb"),
        *("other_run", 41.0, 43, 47),
        *("mirrored", 53, "mixed_bfloat16", "off", "on", "groups", 3, 0.25, True, (59, 61), False),
    ),
)


def test_the_round_trip_covers_every_setting():
    default, changed = config_to_dict(ExperimentConfig()), config_to_dict(CHANGED)
    for group, settings in changed.items():
        for name, value in settings.items():
            assert value != default[group][name], f"{group}.{name} is at its default: change it here"


# What is to be looked up in the data can be left open.
UNKNOWN = dict.fromkeys(("height", "width", "channels", "file_bits", "likelihood", "source_name"))
OPEN = ExperimentConfig(data=DataSpec(**UNKNOWN))


@pytest.mark.parametrize("config", [ExperimentConfig(), CHANGED, OPEN], ids=["defaults", "changed", "left open"])
def test_there_and_back(config, tmp_path):
    assert experiment_config(config_to_dict(config)) == config
    assert experiment_config(json.loads(config_to_json(config))) == config
    path = tmp_path / "config.json"
    path.write_text(config_to_json(config))
    assert read_config(path) == config


def test_numbers_as_flags_give_them_and_defaults_where_none_are_given():
    config = experiment_config({"model": {"num_flows": 2.0}, "optimizer": {"learning_rate": 1}})
    assert type(config.model.num_flows) is int
    assert type(config.optimizer.learning_rate) is float
    assert config == ExperimentConfig(model=ModelConfig(num_flows=2), optimizer=OptimizerConfig(learning_rate=1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.num_flows = 3


@pytest.mark.parametrize(
    ("size", "blocks", "scales", "divisor", "network_size"),
    [(28, 2, 2, 8, 32), (33, 1, 1, 2, 34), (1, 1, 3, 8, 8), (17, 0, 1, 1, 17), (256, 1, 5, 32, 256)],
)
def test_the_smallest_frame_that_can_be_halved(size, blocks, scales, divisor, network_size):
    config = ModelConfig(image_height=size, image_width=64, num_preprocess_blocks=blocks, num_latent_scales=scales)
    assert config.size_divisor == divisor
    assert (config.network_height, config.network_width) == (network_size, 64)
    # What is asked for is not changed, whether it fits or not.
    assert dataclasses.replace(config, padded_height=size + 40).network_height == size + 40


def test_unknown_settings_and_wrong_types_are_reported():
    for settings, message in (
        ({"modle": {}}, "setting modle .*no such setting.*did you mean 'model'"),
        ({"model": {"num_group_per_scale": 3}}, "setting model.num_group_per_scale .*mean 'num_groups_per_scale'"),
        ({"data": {"binarise": True, "binarize": False, "num_bits": 1}}, "data.binarize and data.binarise .*differ"),
        ({"model": {"num_flows": "two"}}, r"model\.num_flows = 'two': must be of type int"),
        ({"model": {"num_flows": 2.5}}, r"model\.num_flows = 2\.5: must be of type int"),
        ({"model": {"num_flows": True}}, r"model\.num_flows = True: must be of type int"),
        ({"model": {"num_flows": None}}, r"model\.num_flows = None: must be of type int"),
        ({"model": {"padded_height": "a"}}, r"model\.padded_height = 'a': must be of type int or None"),
        ({"model": {"squeeze_excite": 1}}, r"model\.squeeze_excite = 1: must be of type bool"),
        ({"optimizer": {"learning_rate": "1e-2"}}, r"optimizer\.learning_rate = '1e-2': must be of type float"),
        ({"optimizer": {"learning_rate": False}}, r"optimizer\.learning_rate = False: must be of type float"),
        ({"data": {"path": 3}}, r"data\.path = 3: must be of type str or None"),
        ({"data": {"crop_box": "all"}}, r"data\.crop_box = 'all': must be of type tuple or None"),
        ({"data": {"source": None}}, r"data\.source = None: must be of type str$"),
        ({"model": 3}, r"model is a group of settings \(.*num_flows.*\), not the single value 3"),
    ):
        with pytest.raises(ValueError, match=message):
            experiment_config(settings)
    assert did_you_mean("zzzzzz", ["model", "data"]) == ""
    with pytest.raises(ValueError, match=r"setting train\.qqqq") as caught:
        experiment_config({"train": {"qqqq": 1}})
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ModelConfig(image_hieght=3), r"setting model.image_hieght .*did you mean 'image_height'\?$"),
        *((lambda bad=bad: ModelConfig(num_flows=bad), "num_flows = .*: must be of") for bad in (None, 1j, [1], True)),
        (lambda: ModelConfig(num_flows=[*range(4000)]), r"model.num_flows = \[0, 1.*\.\.\.: must be of type int$"),
        (
            lambda: OptimizerConfig(np.float64(np.inf)),
            "optimizer.learning_rate = .*inf.*: must be at least 0 and finite",
        ),
        (lambda: experiment_config("digit"), "preset = 'digit': no such preset .*did you mean 'digits'"),
        (lambda: experiment_config(None), "an experiment is a group of settings .*not the single value None"),
        (lambda: experiment_config({3: {}}), "setting 3 = '3': no such setting"),
        (lambda: experiment_config("digits", {"train.stepss": 1}), "setting train.stepss .*did you mean 'steps'"),
        (lambda: experiment_config("digits", {"steps": 1}), "override steps = 'steps': no group .*as train.steps"),
        (lambda: experiment_config("digits", {"train.steps": "x"}), "train.steps = 'x': must be of type int"),
        (lambda: experiment_config("digits", 3), "overrides = 3: must be as {'train.steps': 100}"),
        (lambda: experiment_config({}, {"train.steps": 1}), "beside a preset's name"),
    ],
)
def test_hostile_settings_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_preset_by_its_name_and_with_other_values():
    assert experiment_config("digits") == experiment_config(preset("digits"))
    # What follows the data follows an override too; NumPy's numbers are numbers.
    overrides = {"data.num_bits": np.int64(2), "data.binarize": False, "train.steps": 100, "data.path": None}
    config = experiment_config("digits", overrides)
    assert (config.model.num_bits, config.data.num_bits, config.train.steps) == (2, 2, 100)
    assert type(config.model.num_bits) is int and type(ModelConfig(num_bits=np.uint8(3)).num_bits) is int


def test_an_impossible_value_is_reported_with_its_place():
    for group, name, value, message in (
        ("model", "image_height", 0, "must be at least 1"),
        ("model", "padded_width", 0, "must be at least 1"),
        ("model", "num_groups_per_scale", -1, "must be at least 1"),
        ("model", "num_flows", -1, "must be at least 0"),
        ("model", "num_bits", 9, "must be from 1 to 8"),
        ("model", "num_classes", -1, "must be at least 0"),
        ("model", "num_classes", 1, "one class says nothing"),
        ("model", "likelihood", "bernouli", "did you mean 'bernoulli'"),
        ("objective", "total_steps", 0, "must be at least 1"),
        ("objective", "kl_constant_portion", float("nan"), "must be from 0 to 1"),
        ("objective", "regularization", -1.0, "must be at least 0"),
        ("objective", "kl_final_weight", -0.1, "must be at least 0"),
        ("objective", "free_nats", float("nan"), "must be at least 0"),
        *(("objective", "kl_scale_weights", value, "must be numbers of at least 0") for value in ([-1], ["a"], [True])),
        ("optimizer", "learning_rate", float("nan"), "must be greater than 0"),
        ("optimizer", "learning_rate_min", -1e-4, "must be at least 0"),
        ("optimizer", "warmup_epochs", -1.0, "must be at least 0"),
        ("data", "resize", "streched", "did you mean 'stretch'"),
        ("train", "batch_size", 0, "must be at least 1"),
        ("train", "seed", 5_000_000_000, "must be from 0 to 2147483647"),
        ("train", "profile_steps", [20, 10], "must be the first and the last step"),
        ("model", "num_preprocess_blocks", 10**12, "more than 16 together"),
        ("train", "log_every_steps", 0, "must be at least 1"),
        ("train", "xla", "on", r"not one of the choices \(auto, off, jit, cluster\)"),
        ("train", "scan", "yes", r"not one of the choices \(auto, on, off\)"),
        ("train", "recompute", "cells", r"not one of the choices \(none, groups, all\)"),
        ("train", "precision", "float16", r"not one of .*mixed_float16\)"),
        ("train", "accumulate_steps", 5, "must divide train.batch_size = 32"),
        *(("objective", name, 0.0, "must be positive") for name in ("regularization", "regularization_initial")),
    ):
        # What is annealed is so on a log scale.
        settings = {"anneal_regularization": True} if group == "objective" else {}
        with pytest.raises(ValueError, match=rf"{group}\.{name} = .*{message}"):
            experiment_config({group: settings | {name: value}})
    assert ObjectiveConfig(regularization=0.0, regularization_initial=0.0).regularization == 0.0


def test_old_names_of_settings(tmp_path):
    assert ObjectiveConfig(regularisation=0.5) == ObjectiveConfig(regularization=0.5)
    config = experiment_config("digits", {"data.binarise": True})
    assert config.data.binarize and not hasattr(config.data, "binarise")
    text = "from nvae_tf.presets import preset\ndef get_config():\n  config = preset('celebahq256')\n"
    (tmp_path / "preset.py").write_text(
        f"{text}  config.objective.regularisation *= 5\n  config.train.initialise_from = 'x'\n  return config"
    )
    groups = {"objective": {"regularisation": 0.05, "anneal_regularisation": True, "regularisation_initial": 1.0}}
    groups["train"] = {"initialise_from": "x"}
    (tmp_path / "dictionary.py").write_text(f"def get_config():\n  return {groups}")
    (tmp_path / "config.json").write_text(json.dumps(groups))
    for name in ("preset.py", "dictionary.py", "config.json"):
        config = complete_config(load_settings(str(tmp_path / name)))
        assert config.objective.regularization == 0.05 and config.objective.anneal_regularization
        assert (config.objective.regularization_initial, config.train.initialize_from) == (1.0, "x")
