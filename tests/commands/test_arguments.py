import inspect
from collections.abc import Sequence
from typing import Annotated

import pytest
from absl import flags
from absl.testing import flagsaver

from nvae_tf.command_line import FOLDER, define_parameters, output_place, parameter_values, parse_temperature
from nvae_tf.data.picture_folder import Places


def test_where_nothing_can_be_written_is_an_error(tmp_path):
    file, full = tmp_path / "file", tmp_path / "full"
    file.touch()
    full.mkdir()
    (full / "x.png").touch()
    kinds = (".png", ".gif", FOLDER)
    assert output_place(f"{tmp_path}/a/b.GIF", kinds, False).kind == ".gif"
    assert output_place(f"{tmp_path}/a/", kinds, False).kind == FOLDER
    assert output_place(f"{full}", kinds, overwrite=True).kind == FOLDER
    assert output_place(f"{full}/x.png", kinds, overwrite=True).path == full / "x.png"
    for value, allowed, message in (
        (f"{full}", kinds, "there are files in this folder"),
        (f"{full}", (".png",), "a folder; give the name of a file that ends in .png"),
        (f"{tmp_path}/a.jpg", kinds, "give a name that ends in .png or .gif, or a folder that ends in /"),
        (f"{file}/a.png", kinds, "is a file, not a folder"),
        (f"{file}/", kinds, "this is a file, not a folder"),
        (f"{full}/x.png", kinds, "there is such a file"),
    ):
        with pytest.raises(ValueError, match=message):
            output_place(value, allowed, False)


def test_temperatures_are_numbers():
    assert parse_temperature("0.7") == 0.7
    assert parse_temperature("0.7,1") == [0.7, 1.0]
    for wrong in ("", "warm", "0.7,", "0.7,0", "nan", "inf", "-1"):
        with pytest.raises(ValueError, match="--temperature"):
            parse_temperature(wrong)


def a_function(
    *,
    places: Annotated[Places, "Files."],
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
    assert values_of(f"--places={tmp_path}/a,b.png", "--places=x,y", *given) == {
        "places": [f"{tmp_path}/a,b.png", "x", "y"],
        **expected,
    }
    assert values_of("--places=x", "--strength=3")["strength"] == 3.0
    for wrong in ("--numbers=-1", "--numbers=a", "--strength=1,", "--kind=other", "--count=0", "--count=10"):
        with pytest.raises(flags.IllegalFlagValueError, match=wrong.split("=")[0]):
            values_of("--places=x", wrong)
