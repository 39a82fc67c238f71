"""What is said about wrong settings: unknown ones, wrong types, impossible values."""

import pytest

from nvae_tf.config import ObjectiveConfig, TrainConfig, did_you_mean, experiment_config


@pytest.mark.parametrize(
    ("settings", "place", "nearest"),
    [
        ({"modle": {}}, "modle", "model"),
        ({"model": {"num_group_per_scale": 3}}, "model.num_group_per_scale", "num_groups_per_scale"),
        ({"train": {"batchsize": 3}}, "train.batchsize", "batch_size"),
        ({"objective": {"regularization": 1.0}}, "objective.regularization", "regularisation"),
        ({"optimizer": {"weight_dekay": 1.0}}, "optimizer.weight_dekay", "weight_decay"),
        ({"data": {"pth": "x"}}, "data.pth", "path"),
        ({"data": {"train_spilt": "x"}}, "data.train_spilt", "train_split"),
        ({"data": {"binarize": True}}, "data.binarize", "binarise"),
    ],
)
def test_an_unknown_setting_names_the_nearest(settings, place, nearest):
    with pytest.raises(ValueError, match=f"setting {place} .*no such setting.*did you mean '{nearest}'"):
        experiment_config(settings)


def test_a_name_like_nothing_gets_no_suggestion():
    assert did_you_mean("zzzzzz", ["model", "data"]) == ""
    with pytest.raises(ValueError, match=r"setting train\.qqqq") as caught:
        experiment_config({"train": {"qqqq": 1}})
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"num_flows": "two"}}, r"model\.num_flows = 'two': must be of type int"),
        ({"model": {"num_flows": 2.5}}, r"model\.num_flows = 2\.5: must be of type int"),
        ({"model": {"num_flows": True}}, r"model\.num_flows = True: must be of type int"),
        ({"model": {"num_flows": None}}, r"model\.num_flows = None: must be of type int"),
        ({"model": {"padded_height": "a"}}, r"model\.padded_height = 'a': must be of type int or None"),
        ({"model": {"squeeze_excite": 1}}, r"model\.squeeze_excite = 1: must be of type bool"),
        ({"model": {"cell_set": 3}}, r"model\.cell_set = 3: must be of type str"),
        (
            {"optimizer": {"learning_rate": "1e-2"}},
            r"optimizer\.learning_rate = '1e-2': must be of type float",
        ),
        ({"optimizer": {"learning_rate": False}}, r"optimizer\.learning_rate = False: must be of type float"),
        ({"data": {"path": 3}}, r"data\.path = 3: must be of type str or None"),
        ({"data": {"height": "64"}}, r"data\.height = '64': must be of type int or None"),
        ({"data": {"height": 64.5}}, r"data\.height = 64\.5: must be of type int or None"),
        ({"data": {"crop_box": "all"}}, r"data\.crop_box = 'all': must be of type tuple or None"),
        ({"data": {"horizontal_flip": 1}}, r"data\.horizontal_flip = 1: must be of type bool"),
        ({"data": {"source": None}}, r"data\.source = None: must be of type str$"),
        ({"model": 3}, r"model is a group of settings \(.*num_flows.*\), not the single value 3"),
    ],
)
def test_a_wrong_type_is_told(settings, message):
    with pytest.raises(ValueError, match=message):
        experiment_config(settings)


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        ("model", "image_height", 0, "must be at least 1"),
        ("model", "padded_width", 0, "must be at least 1"),
        ("model", "num_groups_per_scale", -1, "must be at least 1"),
        ("model", "num_latent_per_group", 0, "must be at least 1"),
        ("model", "num_flows", -1, "must be at least 0"),
        ("model", "num_preprocess_blocks", -1, "must be at least 0"),
        ("model", "num_bits", 0, "must be from 1 to 8"),
        ("model", "num_bits", 9, "must be from 1 to 8"),
        ("model", "likelihood", "bernouli", "did you mean 'bernoulli'"),
        ("objective", "total_steps", 0, "must be at least 1"),
        ("objective", "kl_anneal_portion", 1.5, "must be from 0 to 1"),
        ("objective", "kl_constant_weight", -0.1, "must be from 0 to 1"),
        ("objective", "kl_constant_portion", float("nan"), "must be from 0 to 1"),
        ("objective", "regularisation", -1.0, "must be at least 0"),
        ("optimizer", "learning_rate", 0.0, "must be greater than 0"),
        ("optimizer", "learning_rate", float("nan"), "must be greater than 0"),
        ("optimizer", "learning_rate_min", -1e-4, "must be at least 0"),
        ("optimizer", "warmup_epochs", -1.0, "must be at least 0"),
        ("optimizer", "weight_decay", -1.0, "must be at least 0"),
        ("data", "num_bits", 9, "must be from 1 to 8"),
        ("data", "height", 0, "must be at least 1"),
        ("data", "test_fraction", float("nan"), "must lie between 0 and 1"),
        ("data", "resize", "streched", "did you mean 'stretch'"),
        ("data", "crop_box", [0, 0, 0, 8], "must be .left, top, right, bottom."),
        ("train", "batch_size", 0, "must be at least 1"),
        ("train", "steps", -1, "must be at least 0"),
        ("train", "seed", -1, "must be from 0 to 2147483647"),
        ("train", "log_every_steps", 0, "must be at least 1"),
    ],
)
def test_an_impossible_value_is_told_with_its_place(group, name, value, message):
    with pytest.raises(ValueError, match=rf"{group}\.{name} = .*{message}"):
        experiment_config({group: {name: value}})


@pytest.mark.parametrize("name", ["regularisation", "regularisation_initial"])
def test_what_is_annealed_on_a_log_scale_must_be_positive(name):
    with pytest.raises(ValueError, match=rf"objective\.{name} = 0\.0: must be positive"):
        ObjectiveConfig(**{"anneal_regularisation": True, name: 0.0})
    assert getattr(ObjectiveConfig(**{name: 0.0}), name) == 0.0


def test_a_seed_that_no_command_could_give_is_refused():
    with pytest.raises(ValueError, match=r"train\.seed = 5000000000: must be from 0 to 2147483647"):
        TrainConfig(seed=5_000_000_000)
