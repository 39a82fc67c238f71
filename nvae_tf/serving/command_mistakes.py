"""How commands tell a mistake: one line and exit code 2; and flags that are read so.

`exit_on_mistake` is for those that speak with servers. It is like `nvae_tf.errors`, which they don't use: a
client's machine has none of the model's code.
"""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from typing import NoReturn

from nvae_tf.serving.clients.serving_errors import ServingError
from nvae_tf.serving.clients.signature_specs import nearest

USER_ERROR_CODE = 2
INTERRUPTED_CODE = 130
TRACEBACK_VARIABLE = "NVAE_TF_TRACEBACK"


@contextlib.contextmanager
def exit_on_mistake() -> Iterator[None]:
    """Turns ServingError, ValueError and OSError into `error: ...` on standard error and exit code 2.

    Raises:
      SystemExit: code 2 for such an error, 130 for Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED_CODE) from None
    except (ServingError, ValueError, OSError) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(USER_ERROR_CODE) from None


class OneLineParser(argparse.ArgumentParser):
    """Tells a mistake as ValueError, in one line and without the usage; its `--help` is a manual page."""

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
            raise ValueError(f"{name}: no such flag; did you mean {nearest(name, known)}?")


def flag_names(parser: argparse.ArgumentParser) -> list[str]:
    """All long flags of a parser."""
    return [name for name in parser._option_string_actions if name.startswith("--")]
