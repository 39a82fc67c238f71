"""Checks an export wherever it has been copied to: every signature is run and compared with the model's numbers.

    nvae-verify models/digits/1

Every file is compared with the recorded SHA-256. Then the export is run on the CPU in a process that can't import this
package: sample and score by TensorFlow's session loader, as TensorFlow Serving does it, the other signatures by
tf.saved_model.load. The inputs and the model's numbers are in the export, assets.extra/verification.npz.

Exit code: 0 the same numbers, 2 others, a damaged export, or a mistake in the command.
"""

import pathlib
from typing import Annotated

from nvae_tf import command_line, errors
from nvae_tf.serving.outputs import check_digests


def main(path: Annotated[str, "One version, as models/digits/1; may stand without --path=."]) -> None:
    """Checks."""
    check_digests(pathlib.Path(path))
    errors.start_tensorflow_quietly()
    from nvae_tf.serving.verification import TOLERANCE, verified

    differences = verified(pathlib.Path(path))
    width = max(map(len, differences))
    for name, difference in differences.items():
        print(f"{name:{width}}  {difference:.1e}")
    print(f"{path}: gives the model's numbers, to {TOLERANCE:.0e} of the largest of each.")


run = command_line.command(main, words="path")
