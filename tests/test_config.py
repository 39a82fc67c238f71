import dataclasses
import importlib
import json
import re
import sys
import warnings

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from configs import digits
from nvae_tf import latent_plan as plans
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
from nvae_tf.data import data_spec
from nvae_tf.data.sources import SOURCES
from nvae_tf.data.spec import complete_config
from nvae_tf.data_sets import MODEL_SETTINGS, check_model_fits
from nvae_tf.latent_plan import latent_plan
from nvae_tf.presets import completed_config, experiment_config, load_settings, model_of_size, preset
from tests import ROOT, refuses

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


def test_wrong_settings_are_refused_in_one_short_line(monkeypatch):
    # Other tests register likelihoods.
    monkeypatch.setattr("nvae_tf.config.REGISTERED", {"likelihood": {}, "cell_set": {}})
    for settings, message in (
        ({"modle": {}}, "setting modle .*no such setting.*did you mean 'model'"),
        ({"model": {"num_group_per_scale": 3}}, "setting model.num_group_per_scale .*mean 'num_groups_per_scale'"),
        (None, "an experiment is a group of settings .*not the single value None"),
        *(({"model": {"num_flows": bad}}, "model.num_flows = .*: must be of type int") for bad in NO_INTEGERS),
        ({"model": {"padded_height": "a"}}, r"model\.padded_height = 'a': must be of type int or None"),
        ({"data": {"binarise": True, "binarize": False, "num_bits": 1}}, "data.binarize and its old name differ"),
        # Limits, and the choices of a text.
        ({"model": {"padded_width": 0}}, "model.padded_width = 0: must be of type int or None, at least 1$"),
        ({"model": {"likelihood": "bernouli"}}, "model.likelihood = .*did you mean 'bernoulli'"),
        ({"objective": {"kl_constant_portion": float("nan")}}, "must be of type float, from 0 to 1"),
        ({"train": {"seed": 5_000_000_000}}, "train.seed = 5000000000: .* from 0 to 2147483647"),
        # A class of one's own that is not registered is named with its module.
        ({"model": {"likelihood": "no_module:laplace"}}, r"import no_module first \(a command: --import=no_module\)"),
        ({"model": {"cell_set": "__main__:mine"}}, r"put the class into a module, and import that \(--import=MODULE"),
        ({"model": {"likelihood": "laplace"}}, "choices .bernoulli.*; a module registers others: --import=MODULE"),
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
        (("digits", 3), "overrides = 3: must be as {'train.steps': 100}"),
        (({}, {"train.steps": 1}), "beside a preset's name"),
    ):
        given = settings if isinstance(settings, tuple) else [settings]
        assert len(refuses(message, experiment_config, *given)) < 1000
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
        ("def get_config():\n    return {'size': 'tiny'}\n", "give it as the flag --config.size"),
        ("def get_config():\n    return {'recipe': 'efficient'}\n", "give it as the flag --config.recipe"),
        ("def get_config():\n    return {'trian': {}}\n", "setting trian = 'trian': no such setting"),
        (
            "def get_config():\n    return {'data': {'binarise': True, 'binarize': False}}\n",
            "settings data.binarize and its old name differ; give one",
        ),
        ("config = {}\n", "has no function get_config"),
        ("import my_helper\n", "my_helper.py, line 2: SyntaxError: unmatched ')'"),
        ("\0", "null bytes"),
        (config_to_json(DIGITS)[:-40], "config.json is not valid JSON ("),
        ('{"trian": {}}', "did you mean 'train'"),
        ("[" * 100_000, ""),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_wrong_with_a_file_is_one_line_with_its_number(tmp_path, monkeypatch, text, message):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_helper.py").write_text("\n)\n")
    file = tmp_path / ("config.json" if text[:1] in ("{", "[") else "mine.py")
    file.write_text(text)
    said = refuses("", load_settings, str(file))
    assert message in said and "\n" not in said


def test_the_settings_of_another_run(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(config_to_json(DIGITS))
    settings = load_settings(str(file))
    assert resolve_lengths(complete_config(settings), 11, 1000) == DIGITS == experiment_config(str(tmp_path))
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


def config(**settings):
    return ModelConfig(**{"num_preprocess_blocks": 1, "num_postprocess_blocks": 1, **settings})


def test_any_size_fits_with_the_smallest_frame_around_it_and_without_blocks_the_largest_scale_has_its_size():
    plan = plans.latent_plan(config(image_height=28, image_width=33, num_latent_scales=3))
    assert [(scale.height, scale.width) for scale in plan.scales] == [(4, 5), (8, 10), (16, 20)]
    sizes = dict(image_height=28, image_width=28, padded_height=32, padded_width=32, num_channels_encoder=9)
    plan = plans.latent_plan(config(num_preprocess_blocks=0, num_postprocess_blocks=0, **sizes))
    assert (plan.preprocess, plan.postprocess) == ((), ())
    assert plan.scales[0] == plans.Scale(32, 32, 9, 32, tuple(range(10)))


def test_the_cell_sets():
    for name, preprocess, encoder, decoder, postprocess in (
        ("res_mbconv", "bnswish bnswish", "bnswish bnswish", (5, 6), (5, 3)),
        ("mbconv_den", (5, 3, 8), (5, 6), (5, 6), (5, 3, 8)),
        ("res53_mbconv", "bnswish5 bnswish", "bnswish5 bnswish", (5, 6), (5, 3)),
        ("mbconv_res", (5, 3), (5, 6), "bnswish bnswish", "bnswish bnswish"),
    ):
        expected = [
            plans.ConvolutionBranch(tuple(each.split())) if isinstance(each, str) else plans.InvertedBranch(*each)
            for each in (preprocess, encoder, decoder, postprocess)
        ]
        assert plans.CELL_SETS[name] == tuple(expected)


FAR_TOO_LARGE = r"model\.num_\*: at least [0-9,]{6,} (layers|weights), and a .*; use fewer"
REFUSALS = [
    *(({f"num_{name}": 10**6}, FAR_TOO_LARGE) for name in ("groups_per_scale", "cells_per_group_decoder")),
    *(({name: 10**9}, FAR_TOO_LARGE) for name in ("num_channels_encoder", "num_mixtures", "image_height")),
    ({"padded_width": 34}, "model.padded_width = 34: not divisible by 4"),
    ({"padded_height": 24}, "model.padded_height = 24: .* or smaller than the image's height of 32"),
    ({"num_preprocess_blocks": 2}, "num_postprocess_blocks = 1: must equal num_preprocess_blocks = 2"),
    ({"image_hight": 8}, "setting model.image_hight = .*no such setting.*did you mean 'image_height'"),
    ({"cell_set": "res_mbcov"}, "model.cell_set = 'res_mbcov'.*did you mean 'res_mbconv'"),
    ({"cell_set": "mbconv_den", "num_channels_decoder": 12}, "its postprocess cells widen 12 channels 3 times and cut"),
    ({"likelihood": "bernoulli", "num_bits": 8}, "num_bits = 8: the Bernoulli likelihood is for 1-bit images"),
    ({"image_channels": 33}, "model.image_channels = 33: the logistic mixture takes 1 to 32 channels"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSALS)
def test_what_does_not_fit_or_is_far_too_large_is_refused(settings, message):
    refuses(message, lambda: plans.latent_plan(config(num_latent_scales=2, **settings)))


@pytest.mark.parametrize(("settings", "frame"), [({"padded_height": 48, "padded_width": 48}, "48 x 48"), ({}, None)])
def test_a_frame_of_more_than_twice_the_pixels_is_warned_of_once(settings, frame):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        for _ in range(2):
            plans.latent_plan(config(image_height=32, image_width=32, **settings))
    texts = [f"images of 32 x 32 are padded with zeros to {frame} (height x width), "] if frame else []
    assert [str(warning.message)[: len(text)] for warning, text in zip(warned, texts, strict=True)] == texts


# ml_collections reads the files of configs in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

PRESETS = sorted(file.stem for file in (ROOT / "configs").glob("*.py") if file.stem != "__init__")
PUBLISHED = ("mnist", "cifar10", "celeba64", "imagenet32", "celebahq256", "ffhq256")
# Presets that take the model and the training of another.
LIKE = dict.fromkeys(("omniglot", "stacked_mnist", "fashion_mnist"), "mnist") | {"ffhq256": "celebahq256"}
LIKE |= dict.fromkeys(("imagenet64", "lsun_bedroom64", "lsun_church64"), "celeba64")
# All but those whose images must be looked at first.
WHOLE = [name for name in PRESETS if name not in ("own_images", "scientific")]


@pytest.fixture
def settings_from_flags(monkeypatch):
    """The settings as a command gets them, from a preset and flags."""

    def settings(name, *arguments):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        # The flag looks there for what overrides the file.
        monkeypatch.setattr(sys, "argv", ["command", f"--config={ROOT}/configs/{name}.py", *arguments])
        values(sys.argv)
        return values.config

    return settings


def test_all_presets_are_there_and_locked():
    assert set(PRESETS) == {*PUBLISHED, *LIKE, "digits", "photos", "own_images", "scientific"}
    for name in PRESETS:
        with pytest.raises(AttributeError):
            preset(name).train.batch_sise = 3


@pytest.mark.parametrize("name", WHOLE)
def test_a_preset_is_possible_and_has_all_of_its_data_set(name):
    config = experiment_config(name)
    latent_plan(config.model)
    assert config.data == data_spec(name)
    check_model_fits(config.model, config.data)
    for setting, data_setting in MODEL_SETTINGS.items():
        assert getattr(config.model, setting) == getattr(config.data, data_setting)
    # Looking at the images changes nothing of what is known, and is not done.
    assert complete_config(preset(name)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_the_docstring_has_the_command_and_says_where_the_images_come_from(name):
    text = " ".join(importlib.import_module(f"configs.{name}").__doc__.split())
    assert re.search(rf"nvae-train --config={name}( --config\.data\.[a-z_]+=\S+)* --workdir=runs/\w+", text)
    if name in WHOLE:
        assert re.search(r"\b[Dd]ata(:| comes with) [^D]", text)
        assert "--config.data.path" in text or not SOURCES[data_spec(name).source][1]


def groups_per_scale(model):
    """From the largest resolution to the smallest."""
    return tuple(len(scale.groups) for scale in reversed(latent_plan(model).scales))


def test_the_published_settings():
    for name, groups, channels, flows, bits, blocks, regularization, batch_size, epochs, rate, warm in (
        ("mnist", (10, 5), 32, 0, 1, (2, 3), (1e-2, False), 200, 400, 1e-2, 5),
        ("cifar10", (30,), 128, 1, 8, (1, 2), (1e-2, False), 32, 400, 1e-2, 5),
        ("celeba64", (20, 10, 5), 64, 1, 8, (1, 2), (1e-1, False), 16, 90, 1e-2, 5),
        ("imagenet32", (28,), 192, 1, 8, (1, 2), (1e-2, True), 24, 45, 1e-2, 1),
        ("celebahq256", (16, 8, 4, 4, 4), 30, 2, 5, (1, 2), (1e-2, True), 4, 300, 1e-2, 5),
        ("ffhq256", (16, 8, 4, 4, 4), 30, 2, 5, (1, 2), (1e-1, True), 4, 200, 8e-3, 5),
    ):
        config = resolve_lengths(experiment_config(name), steps_per_epoch=1000, total_steps=100_000)
        model, objective, optimizer, train = config.model, config.objective, config.optimizer, config.train
        assert groups_per_scale(model) == groups
        same = dict(num_latent_per_group=20, num_cells_per_group_encoder=2, num_cells_per_group_decoder=2)
        same |= dict(squeeze_excite=True, residual_distributions=True, cell_set="res_mbconv")
        same |= dict.fromkeys(("num_preprocess_blocks", "num_postprocess_blocks"), blocks[0])
        same |= dict.fromkeys(("num_preprocess_cells", "num_postprocess_cells"), blocks[1])
        same |= dict(num_channels_encoder=channels, num_channels_decoder=channels, num_flows=flows, num_bits=bits)
        assert model == dataclasses.replace(model, **same)
        assert (objective.regularization, objective.anneal_regularization) == regularization
        assert objective.regularization_initial == 1.0 or not objective.anneal_regularization
        assert (train.batch_size, train.epochs, train.steps) == (batch_size, epochs, 0)
        assert (train.checkpoint_every_steps, train.evaluate_every_steps) == (1000, 1000)
        assert (optimizer.learning_rate, optimizer.warmup_epochs) == (rate, warm)
        assert (optimizer.learning_rate_min, optimizer.weight_decay) == (1e-4, 3e-4)


def size_of_model(name, size, side, **given):
    """Groups of each scale, halvings before them, and channels; `given` settings of the model too."""
    settings = dict(height=side, width=side, channels=3, file_bits=8, likelihood="normal")
    settings = {f"data.{key}": value for key, value in (settings | dict(padded_height=None, padded_width=None)).items()}
    settings |= {f"model.{key}": value for key, value in given.items()} | {"size": size}
    model = experiment_config(name, settings).model
    plan = latent_plan(model)
    assert plan.latent_shapes()[-1][0] == -(-side // 2**model.num_preprocess_blocks)
    return groups_per_scale(model), model.num_preprocess_blocks, model.num_channels_decoder


def test_a_size_fits_the_images_and_leaves_what_is_given():
    for side, size, expected in (
        (16, "tiny", ((2, 1), 1, 16)),
        (32, "tiny", ((2, 1, 1), 1, 16)),
        (64, "small", ((4, 2, 1), 2, 16)),
        (256, "tiny", ((2, 1, 1), 4, 8)),
        (64, "medium", ((8, 4, 2), 1, 32)),
        (32, "published", ((30,), 1, 128)),
        (64, "published", ((20, 10, 5), 1, 64)),
        (128, "published", ((16, 8, 4, 4, 4), 1, 30)),
    ):
        assert size_of_model("own_images", size, side) == expected
    assert size_of_model("own_images", "tiny", 32, num_channels_decoder=24) == ((2, 1, 1), 1, 24)
    # The preset's own model is the published one; another size is as for any other images of 32 pixels.
    assert experiment_config("mnist", {"size": "published"}) == experiment_config("mnist")
    assert experiment_config("mnist", {"size": "published", "data.name": "faces"}).model.num_channels_decoder == 128
    tiny = experiment_config("celebahq256", {"size": "tiny"}).model
    assert groups_per_scale(tiny) == (2, 1, 1) and tiny.num_flows == 0
    # Of a tiny model's settings nothing stays.
    sizes = experiment_config("celeba64", {"size": "tiny"}), experiment_config("celeba64")
    published = model_of_size("published", sizes[0].data)
    assert dataclasses.replace(sizes[0].model, **published) == sizes[1].model
    for wrong, message in (("large", "not one of"), ("", "not one of"), ("tiny", "give data.height, data.width")):
        refuses(f"setting size = '{wrong}': {message}", experiment_config, "own_images", {"size": wrong})


def test_the_efficient_recipe_changes_what_the_study_proved_and_nothing_that_is_given():
    published, efficient = (experiment_config("digits", {"recipe": recipe}) for recipe in ("published", "efficient"))
    assert published == experiment_config("digits")
    model = dataclasses.replace(published.model, residual_scale=0.3, num_latent_per_group=8)
    train = dataclasses.replace(published.train, batch_size=64, steps=1400, epochs=280)
    assert efficient == dataclasses.replace(published, model=model, train=train)
    given = {"train.batch_size": 128, "train.epochs": 5, "model.residual_scale": 0.2}
    changed = experiment_config("digits", given | {"recipe": "efficient"})
    assert (changed.train.batch_size, changed.train.steps, changed.train.epochs) == (128, 700, 5)
    assert (changed.model.residual_scale, changed.model.num_latent_per_group) == (0.2, 8)
    parts = experiment_config("digits", {"train.accumulate_steps": 64, "recipe": "efficient"}).train
    assert (parts.batch_size, parts.steps) == (64, 1400)
    refuses("setting recipe = 'quick': not one of", experiment_config, "digits", {"recipe": "quick"})


@pytest.mark.parametrize("name", LIKE)
def test_a_preset_like_another_differs_in_its_data(name):
    config, other = experiment_config(name), experiment_config(LIKE[name])
    from_data = {setting: getattr(config.model, setting) for setting in MODEL_SETTINGS}
    assert config.model == dataclasses.replace(other.model, **from_data)
    assert config.data.name == name != other.data.name
    if name != "ffhq256":
        assert config.objective == other.objective
    assert config.train.batch_size == other.train.batch_size


def test_flags_keep_model_and_data_together_and_reach_the_settings_that_are_none(settings_from_flags):
    flags = [f"--config.model.{flag}" for flag in ("likelihood=normal", "num_bits=5", "image_height=64")]
    config = experiment_config(settings_from_flags("cifar10", *flags))
    assert (config.data.likelihood, config.data.num_bits, config.data.height) == ("normal", 5, 64)
    check_model_fits(config.model, config.data)
    assert settings_from_flags("mnist", "--config.data.binarise=False").data.binarize is False
    arguments = ["path=/faces", "crop_box=(15, 40, 163, 188)", "padded_height=72"]
    settings = settings_from_flags("celeba64", *[f"--config.data.{argument}" for argument in arguments])
    spec = experiment_config(settings).data
    assert (spec.path, spec.padded_height, spec.crop_box) == ("/faces", 72, (15, 40, 163, 188))
    flags = [f"--config.objective.{flag}" for flag in ("kl_scale_weights=1,0.5,2", "kl_final_weight=0.7")]
    objective = experiment_config(settings_from_flags("digits", *flags)).objective
    assert (objective.kl_scale_weights, objective.kl_final_weight) == ((1, 0.5, 2), 0.7)


def test_a_model_of_another_size_or_likelihood_is_refused():
    with pytest.raises(ValueError, match="does not fit data set 'cifar10'.*Set them alike") as caught:
        check_model_fits(experiment_config("mnist").model, data_spec("cifar10"))
    assert "model.image_height is 28, the data have 32" in str(caught.value)
    assert "model.likelihood is 'bernoulli', the data have 'logistic_mixture'" in str(caught.value)
    # Padding and a continuous likelihood are free.
    free = dict(likelihood="normal", padded_height=40, padded_width=48)
    check_model_fits(dataclasses.replace(experiment_config("cifar10").model, **free), data_spec("cifar10"))


def test_registered_names(monkeypatch):
    """A name is for one class; the same class again, of a notebook's cell that is run anew, takes its place."""
    from nvae_tf.layers.residual_cells import register_cell

    monkeypatch.setattr("nvae_tf.config.REGISTERED", {"likelihood": {}, "cell_set": {}})
    monkeypatch.setattr(plans, "CELL_SETS", dict(plans.CELL_SETS))
    older, newer, other = (type(name, (), {}) for name in ("Mine", "Mine", "Other"))
    assert register_cell("mine", parts=["encoder"])(older) is older
    assert register_cell("mine")(newer) is newer
    config = ModelConfig(cell_set="moved_since:mine", num_preprocess_blocks=0, num_postprocess_blocks=0)
    assert config.cell_set == f"{__name__}:mine" and config.has_masses
    assert set(plans.latent_plan(config).cells) == {newer}
    for name, kind in (("mine", other), ("res_elu", other), ("my cells", other), ("number", 5)):
        with pytest.raises(ValueError, match=f"'{name}'.*(is registered already, by|register a class, by a name)"):
            register_cell(name)(kind)
    with pytest.raises(ValueError, match="cell 'more': part = 'middle': not one of the choices"):
        register_cell("more", parts=["middle"])(other)
