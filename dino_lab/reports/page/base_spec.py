"""The base of a run's spec, and the changes that the run makes to it.

A run folder keeps the resolved spec, which no longer says what it extends, and the command. Where the file
that the command names is still there and still gives this spec, the base is the file that it extends; if it
extends nothing and was changed by `--set`, the base is the file itself. Else the spec is compared with the
defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dino_lab.errors import UserError
from dino_lab.registry import Registry
from dino_lab.schedule import Schedule
from dino_lab.spec.difference import NOTHING, Change, difference
from dino_lab.spec.file import load
from dino_lab.spec.literal import inline
from dino_lab.spec.merge import compose_root, read
from dino_lab.spec.model import After, Spec
from dino_lab.spec.nodes import child


@dataclass(frozen=True)
class BaseSpec:
    """What a spec is compared with, and the changes."""

    name: str
    changes: list[Change]


def base_spec_of(spec: Spec, environment: Mapping[str, Any], registry: Registry) -> BaseSpec:
    """The base by the command that the run was started with, else the defaults."""
    file, settings = _asked(environment)
    if file is not None:
        try:
            if load(file, settings, registry).spec == spec:
                base = _base(file) or (file if settings else None)
                if base is not None:
                    return BaseSpec(str(base), difference(load(base, (), registry).spec, spec))
        except UserError:
            pass  # the file has changed since, or is gone
    return BaseSpec("the defaults", _from_defaults("", spec))


def _asked(environment: Mapping[str, Any]) -> tuple[Path | None, list[str]]:
    """The spec file and the settings of a `dino-lab run`."""
    words = [str(word) for word in environment.get("command", ())]
    if words[1:2] != ["run"]:
        return None, []
    given, files, settings = iter(words[2:]), [], []
    for word in given:
        name, equals, value = word.partition("=")
        if name == "--set":
            settings.append(value if equals else next(given, ""))
        elif Path(word).suffix in (".yaml", ".yml"):
            files.append(word)
    place = Path(environment.get("directory") or ".")
    return (place / files[0] if len(files) == 1 else None), settings


def _base(file: Path) -> Path | None:
    found = child(compose_root(read(file), file, []), "extends")
    if found is None or not isinstance(found[1], yaml.ScalarNode):
        return None
    return Path(os.path.normpath(file.parent / found[1].value))


def _from_defaults(key: str, part: BaseModel) -> list[Change]:
    """Values that are not the default, and those that have none."""
    return [
        change
        for name, field in type(part).model_fields.items()
        if not (not key and name == "name")
        for change in _value(
            f"{key}{name}", getattr(part, name), field.get_default(call_default_factory=False)
        )
    ]


def _value(key: str, value: Any, default: Any) -> list[Change]:
    if value == default:
        return []
    if isinstance(value, (tuple, list)) and value and all(isinstance(item, BaseModel) for item in value):
        return [change for i, item in enumerate(value) for change in _from_defaults(f"{key}.{i}.", item)]
    if isinstance(value, BaseModel) and not isinstance(value, (Schedule, After)):
        return _from_defaults(f"{key}.", value)
    return [Change(key, NOTHING if default is PydanticUndefined else inline(default), inline(value))]
