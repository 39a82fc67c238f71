"""The origin of weights that a run did not, or not alone, make: `origin.json` of its folder."""

import contextlib
import dataclasses
import json

from nvae_tf.files import atomic_write
from nvae_tf.runs.run_folder import RunFolder
from nvae_tf.runs.sharing import find_run_folder
from nvae_tf.schemas import Field, parsed


@dataclasses.dataclass(frozen=True)
class Origin:
    """The content of `origin.json`: the file or the run that weights came from.

    A person may write the file too, `{"license": "mit"}`, for weights that were trained here.

    Attributes:
      source_file: the name of the imported file, or of the run folder that a run started from if a person has stated
        the license of its weights.
      sha256: the SHA-256 of that file, in hexadecimal digits.
      license: the license of the weights: an identifier of the Hugging Face Hub (`mit`), another name, or an address.
      step: the step of the imported checkpoint; None where the run has started from other weights.
    """

    source_file: str | None = None
    sha256: str | None = None
    license: str | None = None
    step: int | None = None

    def text(self) -> str:
        """The content of the file."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return json.dumps(known, indent=2) + "\n"


def origin_from_text(text: str) -> Origin:
    """The origin in the content of a file; a ValueError says which form is needed."""
    schema = dict.fromkeys(("source_file", "sha256", "license"), Field("text", optional=True))
    schema["step"] = Field("whole number", (), 0, 2**63, optional=True)
    return Origin(**parsed(text, schema, "must be a JSON object with texts: "))


def write_origin(folder: RunFolder, origin: Origin) -> None:
    """Writes the file of a run folder; raises OSError where it can't."""
    atomic_write(folder.origin_file, origin.text())


def read_origin(folder: RunFolder) -> Origin | None:
    """The origin that the run's own file states; None where there is none, ValueError where it has another form."""
    file = folder.origin_file
    if not file.is_file():
        return None
    try:
        return origin_from_text(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}; fix or delete it") from error


def origin_of_run(folder: RunFolder, initialize_from: str | None) -> Origin | None:
    """The origin of a run's weights: from its own file, or from the file of the run that it was fine-tuned from."""
    origin = read_origin(folder)
    if origin is not None or not initialize_from:
        return origin
    source = None
    # A shared run may not be there to fetch now.
    with contextlib.suppress(OSError):
        source = read_origin(RunFolder(find_run_folder(initialize_from)))
    return source and dataclasses.replace(source, source_file=source.source_file or initialize_from, step=None)
