"""Checks of single settings, in the one form that all messages have: which setting, its value, what is wrong."""

import difflib
from collections.abc import Iterable


def check(valid: bool, message: str) -> None:
    """Raises ValueError with the message unless `valid`."""
    if not valid:
        raise ValueError(message)


def check_choice(where: str, name: str, names: Iterable[str], what: str = "not one of the choices") -> None:
    """Raises ValueError unless `name` is one of `names`; the message has them all, and the nearest."""
    names = tuple(names)
    check(name in names, f"{where} = {name!r}: {what} ({', '.join(names)}){did_you_mean(str(name), names)}")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The valid name that looks most like `name`, as the end of a message; empty where nothing is near."""
    # A part of a name means that name: "float16" is meant for "mixed_float16", not for "float32".
    containing = [candidate for candidate in names if name and name in candidate]
    matches = containing[:1] or difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
