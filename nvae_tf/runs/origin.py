"""Where the weights of a run came from that the run did not make by itself: `origin.json` of its folder."""

import contextlib
import dataclasses
import json

from nvae_tf.files import atomic_write
from nvae_tf.runs.run_folder import RunFolder
from nvae_tf.runs.sharing import find_run_folder
from nvae_tf.schemas import Field, parsed


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where weights came from that were not, or not only, made by the run itself: `origin.json` of its folder.

    A person may write the file too, `{"license": "mit"}`, for weights that were trained here.

    Attributes:
      source_file: the name of the imported file, or of the run folder whose weights were the first where a person has
        stated the license of those.
      sha256: of that file, in hexadecimal digits.
      license: that of the weights: an identifier of the Hugging Face Hub (`mit`), any other name, or an address.
      step: that of the imported checkpoint; None where the run has started from other weights.
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
    """Reads what `Origin.text` has written; a ValueError says which form is needed."""
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


def origin_of_run(folder: RunFolder, initialise_from: str | None) -> Origin | None:
    """The origin of a run's weights: by its own file, or by that of the run that it was fine-tuned from."""
    origin = read_origin(folder)
    if origin is None and initialise_from:
        source = None
        # A shared run that can't be fetched now.
        with contextlib.suppress(OSError):
            source = read_origin(RunFolder(find_run_folder(initialise_from)))
        # A license that was stated for the source's weights is not one of these.
        origin = source and dataclasses.replace(source, source_file=source.source_file or initialise_from, step=None)
    return origin
