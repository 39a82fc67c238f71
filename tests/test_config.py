import dataclasses
import json

import numpy as np
import pytest

from configs import digits
from nvae_tf.config import (
    DataSpec,
    ExperimentConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    config_to_dict,
    config_to_json,
    read_config,
    resolve_lengths,
)
from nvae_tf.data.spec import complete_config
from nvae_tf.presets import completed_config, experiment_config, load_settings, preset

ANNEALED = {"anneal_regularization": True}
DIGITS = resolve_lengths(experiment_config(digits.get_config()), 11, 1000)
NO_INTEGERS = ("2", 2.5, True, 1j, None, [*range(999)])


def test_there_and_back(tmp_path):
    # Tuples, which JSON has not, numbers, and what is to be looked up in the data.
    objective = ObjectiveConfig(7, 0.5, anneal_regularization=True, kl_scale_weights=(1, 0.5))
    opened = dict.fromkeys(("height", "width", "channels", "file_bits", "likelihood", "source_name", "crop_box"))
    train = TrainConfig(keep_best=False, profile_steps=(59, 61), initialize_from="other", checkpoint_every_steps=3)
    changed = ExperimentConfig(objective=objective, data=DataSpec(**opened), train=train)
    cropped = ExperimentConfig(data=DataSpec(crop_box=(1, 2, 30, 40)), model=ModelConfig(likelihood="bernoulli"))
    for config in (ExperimentConfig(), changed, cropped):
        assert experiment_config(config_to_dict(config)) == config
        (tmp_path / "config.json").write_text(config_to_json(config))
        assert read_config(tmp_path / "config.json") == config


def test_numbers_as_flags_give_them_and_defaults_where_none_are_given():
    config = experiment_config({"model": {"num_flows": 2.0}, "optimizer": {"learning_rate": 1}})
    assert type(config.model.num_flows) is int
    assert type(config.optimizer.learning_rate) is float
    assert config == ExperimentConfig(model=ModelConfig(num_flows=2), optimizer=OptimizerConfig(learning_rate=1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.num_flows = 3


@pytest.mark.parametrize(
    ("size", "blocks", "scales", "divisor", "network_size"),
    [(28, 2, 2, 8, 32), (33, 1, 1, 2, 34), (17, 0, 1, 1, 17)],
)
def test_the_smallest_frame_that_can_be_halved(size, blocks, scales, divisor, network_size):
    config = ModelConfig(image_height=size, image_width=64, num_preprocess_blocks=blocks, num_latent_scales=scales)
    assert config.size_divisor == divisor
    assert (config.network_height, config.network_width) == (network_size, 64)
    # What is asked for is not changed, whether it fits or not.
    assert dataclasses.replace(config, padded_height=size + 40).network_height == size + 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modle": {}}, "setting modle .*no such setting.*did you mean 'model'"),
        ({"model": {"num_group_per_scale": 3}}, "setting model.num_group_per_scale .*mean 'num_groups_per_scale'"),
        (None, "an experiment is a group of settings .*not the single value None"),
        ({"model": 3}, r"model is a group of settings \(.*num_flows.*\), not the single value 3"),
        *(({"model": {"num_flows": bad}}, "model.num_flows = .*: must be of type int") for bad in NO_INTEGERS),
        ({"model": {"padded_height": "a"}}, r"model\.padded_height = 'a': must be of type int or None"),
        ({"model": {"squeeze_excite": 1}}, r"model\.squeeze_excite = 1: must be of type bool"),
        ({"data": {"crop_box": "all"}}, r"data\.crop_box = 'all': must be of type tuple or None"),
        ({"data": {"binarise": True, "binarize": False, "num_bits": 1}}, "data.binarize and its old name differ"),
        # Limits, and the choices of a text.
        ({"model": {"padded_width": 0}}, "model.padded_width = 0: must be of type int or None, at least 1"),
        ({"model": {"num_bits": 9}}, "model.num_bits = 9: must be of type int, from 1 to 8"),
        ({"model": {"likelihood": "bernouli"}}, "model.likelihood = .*did you mean 'bernoulli'"),
        ({"objective": {"kl_constant_portion": float("nan")}}, "must be of type float, from 0 to 1"),
        ({"optimizer": {"learning_rate": np.float64(np.inf)}}, "at least 0 and finite"),
        ({"train": {"seed": 5_000_000_000}}, "train.seed = 5000000000: .* from 0 to 2147483647"),
        # What goes together.
        ({"model": {"num_classes": 1}}, "model.num_classes = 1: one class says nothing"),
        ({"model": {"num_preprocess_blocks": 10**12}}, "more than 16 halvings"),
        *(({"objective": {"kl_scale_weights": bad}}, "must be numbers of at least 0") for bad in ([-1], ["a"], [True])),
        ({"objective": ANNEALED | {"regularization": 0.0}}, "objective.regularization = 0.0: must be positive"),
        ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate = 0.0: must be greater than 0"),
        ({"optimizer": {"ema_momentum": 1.0}}, "optimizer.ema_momentum = 1.0: must be less than 1"),
        ({"train": {"profile_steps": [20, 10]}}, "train.profile_steps = .* must be the first and the last step"),
        ({"train": {"accumulate_steps": 5}}, "train.accumulate_steps = 5: must divide train.batch_size = 32"),
        ("digit", "preset = 'digit': no such preset .*did you mean 'digits'"),
        (("digits", {"steps": 1}), "override steps = 'steps': no group .*as train.steps"),
        (("digits", {"train.steps": "x"}), "train.steps = 'x': must be of type int"),
        (("digits", 3), "overrides = 3: must be as {'train.steps': 100}"),
        (({}, {"train.steps": 1}), "beside a preset's name"),
    ],
)
def test_wrong_settings_are_refused_in_one_short_line(settings, message):
    with pytest.raises(ValueError, match=message) as raised:
        experiment_config(*(settings if isinstance(settings, tuple) else [settings]))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000
    assert ObjectiveConfig(regularization=0.0, regularization_initial=0.0).regularization == 0.0


def test_a_preset_by_its_name_and_with_other_values():
    assert experiment_config("digits") == experiment_config(preset("digits"))
    # What follows the data follows an override too; NumPy's numbers are numbers.
    overrides = {"data.num_bits": np.int64(2), "data.binarize": False, "train.steps": 100, "data.path": None}
    config = experiment_config("digits", overrides)
    assert (config.model.num_bits, config.data.num_bits, config.train.steps) == (2, 2, 100)
    assert type(config.model.num_bits) is int and type(ModelConfig(num_bits=np.uint8(3)).num_bits) is int


def test_old_names_of_settings(tmp_path):
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef get_config(:\n", "line 2: SyntaxError: invalid syntax"),
        ("x = 1\nimport no_such_module\n", "line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        # Raised in a library: the line that called it.
        (
            "from nvae_tf.presets import preset\n\ndef get_config():\n    config = preset('digits')\n"
            "    config.train.batch_size = 'many'\n",
            "line 5: TypeError: Could not override field 'batch_size'",
        ),
        ("\n\ndef get_config():\n    return 5\n", "get_config returns 5, not an ml_collections.ConfigDict"),
        ("def get_config():\n    return {'trian': {}}\n", "setting trian = 'trian': no such setting"),
        ("config = {}\n", "has no function get_config"),
        ("\0", "null bytes"),
        (config_to_json(DIGITS)[:-40], "config.json is not valid JSON ("),
        ('{"trian": {}}', "did you mean 'train'"),
        ("[" * 100_000, ""),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_wrong_with_a_file_is_one_line_with_its_number(tmp_path, text, message):
    file = tmp_path / ("config.json" if text[:1] in ("{", "[") else "mine.py")
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_settings(str(file))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_in_another_file_names_that_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_helper.py").write_text("\n)\n")
    (tmp_path / "mine.py").write_text("import my_helper\n")
    with pytest.raises(ValueError, match=r"my_helper\.py, line 2: SyntaxError: unmatched '\)'"):
        load_settings(str(tmp_path / "mine.py"))


def test_the_settings_of_another_run(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(config_to_json(DIGITS))
    settings = load_settings(str(file))
    assert resolve_lengths(complete_config(settings), 11, 1000) == DIGITS
    # As with a preset: the model follows the data, and what is None can be set.
    settings.lock()
    settings.data.num_bits, settings.data.height, settings.data.path = 5, 12, "somewhere"
    config = experiment_config(settings)
    assert (config.model.num_bits, config.model.image_height, config.data.path) == (5, 12, "somewhere")


def test_a_file_that_leaves_settings_out_has_the_defaults(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    return {'train': {'steps': 5}, 'data': {'path': None}}\n")
    settings = load_settings(str(file))
    expected = config_to_dict(ExperimentConfig())
    expected["train"]["steps"] = 5
    assert complete_config(settings) == experiment_config(expected)
    settings.data.path, settings.data.num_bits, settings.model.num_flows = "somewhere", 5, 3
    config = complete_config(settings)
    assert (config.data.path, config.model.num_bits, config.model.num_flows) == ("somewhere", 5, 3)
    assert completed_config(settings) == settings
