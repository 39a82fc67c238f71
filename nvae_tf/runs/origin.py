"""The origin of weights that a run did not, or not alone, make: `origin.json` of its folder."""

import contextlib
import dataclasses

from nvae_tf.files import atomic_write
from nvae_tf.runs.run_folder import RunFolder
from nvae_tf.runs.sharing import find_run_folder
from nvae_tf.schemas import ORIGIN, Record


@dataclasses.dataclass(frozen=True)
class Origin(Record):
    """The file or the run that weights came from; a person may write `{"license": "mit"}` for weights trained here."""

    schema = ORIGIN
    source_file: str | None = None  # the name of the imported file, or of the run that a run started from
    sha256: str | None = None  # the SHA-256 of that file, in hexadecimal digits
    license: str | None = None  # an identifier of the Hugging Face Hub (`mit`), another name, or an address
    step: int | None = None  # the step of the imported checkpoint; None where the run started from other weights


def write_origin(folder: RunFolder, origin: Origin) -> None:
    """Writes the file of a run folder; raises OSError where it can't."""
    atomic_write(folder.origin_file, origin.text())


def origin_of_run(folder: RunFolder, initialize_from: str | None) -> Origin | None:
    """The origin of a run's weights: from its own file, or from the file of the run that it was fine-tuned from."""
    origin = Origin.read(folder.origin_file)
    if origin is not None or not initialize_from:
        return origin
    source = None
    with contextlib.suppress(OSError):  # a shared run may not be there to fetch now
        source = Origin.read(RunFolder(find_run_folder(initialize_from)).origin_file)
    return source and dataclasses.replace(source, source_file=source.source_file or initialize_from, step=None)
