"""Where the project and the recorded files are, and what tests of many files say."""

import pathlib
from collections.abc import Callable, Iterable

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"


def slow_but(*quick, of: Iterable) -> list:
    """The cases of a test, all of them slow but the quick ones."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in of]


def refuses(message: str, call: Callable, *arguments, error: type[Exception] = ValueError, **settings) -> str:
    """The text of the error with which a call ends; it matches, and where users are to read it, it is one line."""
    with pytest.raises(error, match=message) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value) or not isinstance(caught.value, ValueError | FileNotFoundError)
    return str(caught.value)
