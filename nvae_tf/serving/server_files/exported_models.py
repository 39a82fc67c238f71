"""Which exports a folder holds, and which versions of them a server shall load under which labels."""

import pathlib
import re
from typing import NamedTuple

from nvae_tf.serving.clients.signature_specs import nearest

# What a model or a label may be called: it becomes a part of addresses, `/v1/models/NAME/labels/LABEL`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
AUTOMATIC_LABELS = "auto"


class ServedExports(NamedTuple):
    """One model of the folder: its versions, oldest first, and the labels of some of them."""

    name: str
    versions: tuple[int, ...]
    labels: dict[str, int]

    @property
    def served(self) -> tuple[int, ...]:
        """The versions that are loaded: those with a label; without labels the newest."""
        return tuple(sorted(set(self.labels.values()))) or self.versions[-1:]


def find_exports(models: pathlib.Path) -> list[ServedExports]:
    """The models of a folder `models/NAME/VERSION/saved_model.pb`, by name.

    Raises:
      FileNotFoundError: there is no such folder, or no export in it.
      ValueError: a model's name can't be a part of an address.
    """
    if not models.is_dir():
        raise FileNotFoundError(f"{models}: no such folder; give one that holds NAME/VERSION/saved_model.pb")
    if _versions(models):
        raise ValueError(f"{models}: holds the versions of one model; give the folder above it, {models.parent}")
    folders = sorted(folder for folder in models.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    found = [ServedExports(folder.name, versions, {}) for folder in folders if (versions := _versions(folder))]
    if not found:
        raise FileNotFoundError(
            f"{models}: no export in it; export.export_saved_model --output={models}/NAME makes one"
        )
    for model in found:
        if not _NAME.fullmatch(model.name):
            raise ValueError(
                f"{models / model.name}: rename it; a model's name has letters, digits, '_', '-', '.' only"
            )
    return found


def with_labels(exports: list[ServedExports], labels: str) -> list[ServedExports]:
    """Gives versions their labels.

    Args:
      exports: the models.
      labels: `digits:stable=3,digits:canary=4`; or `auto`, for every model: canary is the newest version, stable
        the newest but one, or the newest where there is no other; or nothing.

    Raises:
      ValueError: an entry is no `MODEL:LABEL=VERSION`, names a model or a version that is missing, or a label twice.
    """
    if labels == AUTOMATIC_LABELS:
        return [
            model._replace(labels={"stable": model.versions[-2:][0], "canary": model.versions[-1]}) for model in exports
        ]
    models = {model.name: model for model in exports}
    for entry in filter(None, labels.split(",")):
        match = re.fullmatch(r"([^:=]+):([^:=]+)=([0-9]+)", entry)
        if not match or not _NAME.fullmatch(match[2]):
            raise ValueError(f"--labels: {entry!r} is no MODEL:LABEL=VERSION, as digits:stable=3")
        name, label, version = match[1], match[2], int(match[3])
        if name not in models:
            raise ValueError(f"--labels: {entry!r}: no model {name!r}; did you mean {nearest(name, models)!r}?")
        model = models[name]
        if version not in model.versions:
            existing = ", ".join(map(str, model.versions))
            raise ValueError(f"--labels: {entry!r}: {name!r} has no version {version}; there is {existing}")
        if label in model.labels:
            raise ValueError(f"--labels: {entry!r}: {name!r} has a label {label!r} already, {model.labels[label]}")
        models[name] = model._replace(labels={**model.labels, label: version})
    return list(models.values())


def _versions(folder: pathlib.Path) -> tuple[int, ...]:
    files = folder.glob("*/saved_model.pb")
    return tuple(sorted(int(file.parent.name) for file in files if re.fullmatch("[1-9][0-9]*", file.parent.name)))
