"""Specs as earlier versions recorded them, in the words of today.

Only recorded specs are read so. There every default is written out, so that a key that is not there tells the
version; in a file that a user writes, it has its default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class _Former:
    """A component that was recorded without a key of today, and the keys that say the same today."""

    field: str
    name: str
    lacks: str
    today: Mapping[str, Any]


_FORMER = (
    _Former("loss", "vicreg", "scaling", {"scaling": "paper"}),  # 0.2.0
    _Former("data", "shapes", "layout", {"name": "grey_shapes"}),  # 0.2.0
    _Former("backbone", "resnet", "zero_init_last", {"zero_init_last": True}),  # 0.2.0
)


def of_today(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings, by dotted key, as they are written today."""
    settings = dict(recorded)
    for former in _FORMER:
        is_it = settings.get(f"{former.field}.name") == former.name
        if is_it and f"{former.field}.{former.lacks}" not in settings:
            settings |= {f"{former.field}.{key}": value for key, value in former.today.items()}
    return settings


def changes(recorded: str) -> list[str]:
    """What to lay over the text of a recorded spec, as `--set` takes it; nothing where it cannot be read."""
    try:
        plain = yaml.safe_load(recorded)
    except yaml.YAMLError:
        return []
    if not isinstance(plain, dict):
        return []
    changed = []
    for field in dict.fromkeys(former.field for former in _FORMER):
        if isinstance(plain.get(field), dict):
            old = {f"{field}.{key}": value for key, value in plain[field].items()}
            if (new := of_today(old)) != old:
                component = {key.removeprefix(f"{field}."): value for key, value in new.items()}
                changed.append(f"{field}={json.dumps(component)}")
    return changed
