"""Where the weights of a run folder came from and under which license: `origin.json`, for all later model cards."""

import dataclasses
import json
import pathlib
import typing

from nvae_tf.files import atomic_write
from nvae_tf.training.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is known of weights that were not, or not only, made by the run itself.

    A person may write the file too, `{"license": "mit"}`, for weights that were trained here.

    Attributes:
      source_file: the name of the file that they were imported from, or of the run folder whose weights were the first
        where a person has stated the license of those.
      sha256: of that file, in hexadecimal digits.
      license: that of the weights: an identifier of the Hugging Face Hub (`mit`), any other name, or an address.
      step: that of the imported checkpoint; None where the run has started from other weights.
    """

    source_file: str | None = None
    sha256: str | None = None
    license: str | None = None
    step: int | None = None

    def text(self) -> str:
        """What the file says."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return json.dumps(known, indent=2) + "\n"


def write_origin(folder: RunFolder, origin: Origin) -> None:
    """Writes the file of a run folder; `write_model_card` then tells it.

    Raises:
      OSError: the file can't be written.
    """
    atomic_write(folder.origin_file, origin.text())


def read_origin(folder: RunFolder) -> Origin | None:
    """What the file says; None where there is none.

    Raises:
      ValueError: it is no JSON object of these; the message says where.
    """
    file = folder.origin_file
    if not file.is_file():
        return None
    try:
        return origin_from_text(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}; mend or delete it") from error


def origin_from_text(text: str) -> Origin:
    """What `Origin.text` has written.

    Raises:
      ValueError: the text is of another form; the message says which is needed.
    """
    try:
        found = json.loads(text)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"not JSON ({error})") from error
    kinds = typing.get_type_hints(Origin)
    if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in kinds.items()):
        raise ValueError("must be a JSON object with texts for source_file, sha256 and license, and a number for step")
    return Origin(*map(found.get, kinds))


def origin_of_run(folder: RunFolder, initialise_from: str | None) -> Origin | None:
    """What is known of a run's weights: by its own file, or, for a fine-tuned run, by that of its weights' source.

    Args:
      folder: the run's.
      initialise_from: `train.initialise_from` of its settings.

    Raises:
      ValueError: see `read_origin`.
    """
    origin = read_origin(folder)
    if origin is None and initialise_from:
        source = read_origin(RunFolder(pathlib.Path(initialise_from)))
        # A license that was stated for the source's weights is not one of these.
        origin = source and dataclasses.replace(source, source_file=source.source_file or initialise_from, step=None)
    return origin
