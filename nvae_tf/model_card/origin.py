"""Where the weights of a run folder came from and under which licence: `origin.json`, for all later model cards."""

import dataclasses
import json
import typing

from nvae_tf.checkpoints.run_folder import RunFolder
from nvae_tf.whole_files import write_whole


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is known of weights that were not, or not only, made by the run itself.

    A person may write the file too, `{"license": "mit"}`, for weights that were trained here.

    Attributes:
      source_file: the name of the file that they were imported from.
      sha256: of that file, in hexadecimal digits.
      license: that of the weights: an identifier of the Hugging Face Hub (`mit`), any other name, or an address.
      step: that of the imported checkpoint; None where the run has started from other weights.
    """

    source_file: str | None = None
    sha256: str | None = None
    license: str | None = None
    step: int | None = None


def write_origin(folder: RunFolder, source_file: str, sha256: str, step: int, license: str | None = None) -> Origin:
    """Writes the file for imported weights; `write_model_card` then tells it.

    Args:
      folder: the run folder, which exists.
      source_file: the name of the imported file, without its folders.
      sha256: of the file's content, in hexadecimal digits.
      step: of the checkpoint that was made of it.
      license: that of the weights, see `Origin`; None where it is not known.

    Raises:
      OSError: the file can't be written.
    """
    origin = Origin(source_file, sha256, license, step)
    _write(folder, origin)
    return origin


def read_origin(folder: RunFolder) -> Origin | None:
    """What the file says; None where there is none.

    Raises:
      ValueError: it is no JSON object of these; the message says where.
    """
    file = folder.origin_file
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); mend or delete it") from error
    kinds = typing.get_type_hints(Origin)
    if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(
            f"{file}: must be a JSON object with texts for source_file, sha256 and license, and a number for step; "
            "mend or delete it"
        )
    return Origin(*map(found.get, kinds))


def take_over_origin(folder: RunFolder, source: RunFolder) -> Origin | None:
    """Notes for a fine-tuned run what the source of its weights says of theirs: the source may be gone later.

    Raises:
      OSError, ValueError: see `write_origin` and `read_origin`.
    """
    origin = read_origin(source)
    if origin is None:
        return None
    origin = dataclasses.replace(origin, step=None)
    _write(folder, origin)
    return origin


def _write(folder: RunFolder, origin: Origin) -> None:
    known = {name: value for name, value in dataclasses.asdict(origin).items() if value is not None}
    write_whole(folder.origin_file, json.dumps(known, indent=2) + "\n")
