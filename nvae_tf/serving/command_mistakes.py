"""Flags of the two commands for published files that are read with argparse, with errors of one line."""

import argparse
import difflib
from collections.abc import Collection, Sequence
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """Reports errors as ValueError, in one line and without the usage; its `--help` is a manual page."""

    def __init__(self, **arguments):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        """Raises ValueError instead of ending the program."""
        raise ValueError(f"{message}; see {self.prog} --help")


def check_flag_names(arguments: Sequence[str], known: Collection[str]) -> None:
    """Checks that each `--name` or `--name=value` is known.

    Raises:
      ValueError: one is not; the message has the nearest one that is.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in known:
            nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
            raise ValueError(f"{name}: no such flag; did you mean {nearest}?")


def flag_names(parser: argparse.ArgumentParser) -> list[str]:
    """All long flags of a parser."""
    return [name for name in parser._option_string_actions if name.startswith("--")]
