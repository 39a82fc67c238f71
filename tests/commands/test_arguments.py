import inspect
import os
from collections.abc import Sequence
from typing import Annotated

import pytest
from absl import flags
from absl.testing import flagsaver

from nvae_tf.command_line import FOLDER, check_config_flags, define_parameters, output_place, parameter_values

KINDS = (".png", ".gif", FOLDER)


def test_where_nothing_can_be_written_is_an_error(tmp_path):
    file, full = tmp_path / "file", tmp_path / "full"
    file.touch()
    full.mkdir()
    (full / "x.png").touch()
    assert output_place(f"{tmp_path}/a/b.GIF", KINDS, False).kind == ".gif"
    assert output_place(f"{tmp_path}/a/", KINDS, False).kind == FOLDER
    assert output_place(f"{full}/x.png", KINDS, overwrite=True).path == full / "x.png"
    for value, message in (
        (f"{full}", "is there already"),
        (f"{full}/x.png", "is there already"),
        (f"{tmp_path}/a.jpg", "a file \\*.png or a file \\*.gif or a folder that ends in /"),
        (f"{file}/a.png", "is a file, not a folder"),
        (f"{file}/", "give the name of"),
    ):
        with pytest.raises(ValueError, match=message):
            output_place(value, KINDS, False)


def a_function(
    *,
    places: Annotated[os.PathLike | Sequence[str], "Files."],
    numbers: Annotated[Sequence[int] | None, "Numbers.", 0] = None,
    strength: Annotated[float | Sequence[float], "One, or several."] = 1.0,
    kind: Annotated[str, "A kind.", "fast", "slow"] = "fast",
    count: Annotated[int | None, "How many.", 1, 9] = None,
    exact: Annotated[bool, "Whether."] = False,
):
    pass


@pytest.fixture
def values_of():
    """`values_of(*arguments)`: what the flags of `a_function` are given by arguments."""
    parameters = inspect.signature(a_function).parameters

    def values(*arguments):
        with flagsaver.flagsaver():
            # One by one: other tests' commands have flags that are required.
            for argument in arguments:
                name, _, value = argument.removeprefix("--").partition("=")
                flags.FLAGS[name].parse(value or "true")
            return parameter_values(flags, parameters)

    before = set(flags.FLAGS)
    define_parameters(flags, parameters)
    yield values
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


def test_the_parameters_of_a_function_become_flags(values_of, tmp_path):
    (tmp_path / "a,b.png").touch()
    defaults = {name: each.default for name, each in inspect.signature(a_function).parameters.items()}
    assert values_of("--places=x,y") == defaults | {"places": ["x", "y"]}
    given = "--numbers=3,0", "--strength=0.5, 2", "--kind=slow", "--count=9", "--exact"
    expected = dict(numbers=[3, 0], strength=[0.5, 2.0], kind="slow", count=9, exact=True)
    places = {"places": [f"{tmp_path}/a,b.png", "x", "y"]}
    assert values_of(f"--places={tmp_path}/a,b.png", "--places=x,y", *given) == places | expected
    assert values_of("--places=x", "--strength=3")["strength"] == 3.0
    for wrong in ("--numbers=-1", "--numbers=a", "--strength=1,", "--kind=other", "--count=0", "--count=10"):
        with pytest.raises(flags.IllegalFlagValueError, match=wrong.split("=")[0]):
            values_of("--places=x", wrong)


def test_right_settings_pass_and_a_wrong_one_is_reported_with_the_nearest():
    check_config_flags(["--config", "configs/digits.py", "--config.train.batch_size", "3"])
    check_config_flags(["-config=configs/digits.py", "--noconfig.model.squeeze_excite", "--workdir=x"])
    for argument, nearest in (
        ("--config.train.batch_sise=3", "--config.train.batch_size"),
        ("--config.num_flows=3", "--config.model.num_flows"),
        ("--config=config/digits.py", "'digits'"),
    ):
        with pytest.raises(ValueError, match=f"did you mean {nearest}"):
            check_config_flags([argument])
