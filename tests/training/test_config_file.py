import pytest

from configs import digits
from nvae_tf.config import ExperimentConfig, config_to_dict, config_to_json, resolve_lengths
from nvae_tf.data.spec import complete_config
from nvae_tf.presets import completed_config, experiment_config, load_settings

DIGITS = resolve_lengths(experiment_config(digits.get_config()), 11, 1000)


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
