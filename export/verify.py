"""Checks an export wherever it has been copied to: every signature is run and compared with the model's numbers.

    python -m export.verify models/digits/1

Every file is compared with the SHA-256 that was noted when the export was made. Then the export is run on the CPU by
TensorFlow's session loader, as TensorFlow Serving does it, in a process that can't import this package. The inputs and
the model's numbers are in the export, assets.extra/verification.npz.

Exit code: 0 the same numbers, 2 others, a damaged export, or a mistake in the command.
"""

import pathlib
import sys
from collections.abc import Sequence

from nvae_tf.errors import exit_on_user_error, start_tensorflow_quietly
from nvae_tf.serving.command_mistakes import OneLineParser, check_flag_names, flag_names
from nvae_tf.serving.saved_models.file_digests import check_digests


def main(arguments: Sequence[str]) -> None:
    """Reads the path and checks."""
    with exit_on_user_error():
        parser = OneLineParser(prog="export.verify", description=__doc__)
        parser.add_argument("path", type=pathlib.Path, metavar="PATH", help="one version, as models/digits/1")
        check_flag_names(arguments, flag_names(parser))
        flags = parser.parse_args(arguments)
        start_tensorflow_quietly()
        from nvae_tf.serving.saved_models.verification import TOLERANCE, check_is_export, verified

        check_is_export(flags.path)
        check_digests(flags.path)
        differences = verified(flags.path)
        width = max(map(len, differences))
        for name, difference in differences.items():
            print(f"{name:{width}}  {difference:.1e}")
    print(f"{flags.path}: gives the model's numbers, to {TOLERANCE:.0e} of the largest of each.")


def run() -> None:
    """The command `nvae-verify`."""
    main(sys.argv[1:])


if __name__ == "__main__":
    run()
