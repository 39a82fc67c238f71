"""Settings that say of which size the images are, although they are not there."""

from collections.abc import Mapping
from typing import Any


def sized_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a config file, so that no image is looked at where they say of which size the images are.

    A size that is set stands for a missing one, as in a run; channels and bits that are left to the data are taken to
    be 3 and 8.
    """
    data = settings["data"]
    if not (data.get("height") or data.get("width")):
        return settings
    known = {"height": data.get("width"), "width": data.get("height"), "channels": 3, "file_bits": 8}
    missing = {name: value for name, value in known.items() if data.get(name) is None}
    groups = {group: dict(values.items()) for group, values in settings.items()}
    groups["data"] |= missing | ({"source": "folder"} if data.get("source") == "auto" else {})
    return groups
