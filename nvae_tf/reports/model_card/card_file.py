"""Writing a run folder's README.md without losing what a person has written in it."""

from nvae_tf.files import atomic_file
from nvae_tf.reports.model_card.facts import gather
from nvae_tf.reports.model_card.front_matter import front_matter
from nvae_tf.reports.model_card.origin import write_origin
from nvae_tf.reports.model_card.sections import sections
from nvae_tf.training.run_folder import RunFolder

MARKER = "<!-- Yours: what stands below this line is kept. -->"


def write_model_card(folder: RunFolder, parameters: int | None = None) -> bool:
    """Writes the card of a run from what its folder holds, or brings it up to date.

    What stands below `MARKER` in the file is kept, byte by byte. A file without that line is somebody's own and is
    left as it is; so is one that says the same already. For a fine-tuned run, what its source says of its weights'
    origin is noted in the folder too: the source may be gone later.

    Example:
      >>> write_model_card(RunFolder(pathlib.Path("runs/digits")))

    Args:
      folder: a run folder with a `config.json`.
      parameters: how many numbers of the model are trained, if known.

    Returns:
      Whether the file is the run's card now; False where it is somebody's own.

    Raises:
      FileNotFoundError, ValueError: the folder is no run folder, or its settings or `origin.json` can't be read.
      OSError: a file can't be written.
    """
    file = folder.card_file
    before = file.read_bytes() if file.exists() else None
    kept = b"\n" if before is None else _below_marker(before)
    facts = gather(folder, parameters)
    if facts.origin is not None and not folder.origin_file.is_file():
        write_origin(folder, facts.origin)
    if kept is None:
        return False
    # A name may have the marker in it, on a line of its own: what stands below that is not somebody's.
    body = sections(facts).replace(MARKER, MARKER.replace("<!--", "<! --"))
    text = f"{front_matter(facts)}\n\n{body}\n\n{MARKER}"
    # A folder's name may be no text at all.
    content = text.encode("utf-8", errors="replace") + kept
    if content != before:
        with atomic_file(file) as partial:
            partial.write_bytes(content)
    return True


def _below_marker(content: bytes) -> bytes | None:
    """What follows the first line that is the marker, its end of line included; None where there is no such line."""
    place = 0
    for line in content.splitlines(keepends=True):
        if line.strip() == MARKER.encode():
            return content[place + len(line.rstrip()) :]
        place += len(line)
    return None
