"""All settings of a run, as HTML."""

import json
from typing import Any

from nvae_tf.reports.page.markup import escaped, table


def settings_section(settings: dict[str, Any]) -> str:
    """A foldable table for every group of `config.json`, in its order; settings outside of groups come last."""
    groups = {name: values for name, values in settings.items() if isinstance(values, dict)}
    others = {name: value for name, value in settings.items() if name not in groups}
    parts = [_folded(name, values) for name, values in groups.items()]
    return "".join(parts + ([_folded("others", others)] if others else []))


def _folded(name: str, values: dict[str, Any]) -> str:
    rows = [[setting, json.dumps(value, ensure_ascii=False)] for setting, value in values.items()]
    count = f"{len(rows)} setting{'' if len(rows) == 1 else 's'}"
    return f"<details><summary><b>{escaped(name)}</b>, {count}</summary>{table([], rows, 'facts')}</details>"
