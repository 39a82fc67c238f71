"""The SHA-256 of every file of an export, so that a copy that has come to harm is known by it."""

import hashlib
import json
import pathlib

from nvae_tf.files import atomic_write

FILE = "assets.extra/sha256.json"


def write_digests(folder: pathlib.Path) -> None:
    """Notes the files that are in an export now."""
    atomic_write(folder / FILE, json.dumps(_digests(folder), indent=2) + "\n")


def check_digests(folder: pathlib.Path) -> None:
    """Compares an export with what was noted.

    Raises:
      ValueError: a file is missing or another one, or the list of files is damaged.
    """
    try:
        noted = dict(json.loads((folder / FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / FILE}: missing or damaged ({error}); copy the export anew") from error
    found = _digests(folder)
    missing = sorted(set(noted) - set(found))
    if missing:
        raise ValueError(f"{folder}: {', '.join(missing)} missing; copy the export anew")
    changed = sorted(name for name in noted if noted[name] != found[name])
    if changed:
        raise ValueError(f"{folder}: {', '.join(changed)} damaged or changed; copy the export anew")


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """Of all files but the list itself, by their paths in the folder."""
    digests = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name != FILE:
            with file.open("rb") as content:
                digests[name] = hashlib.file_digest(content, "sha256").hexdigest()
    return digests
