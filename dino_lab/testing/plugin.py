"""A plugin's folder, seen as if it were installed."""

from __future__ import annotations

import os
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dino_lab.registry import Registry
from dino_lab.registry import registry as default_registry


@contextmanager
def installed(*folders: Path, registry: Registry = default_registry) -> Iterator[dict[str, str]]:
    """Let the plugins in `folders`, each with a pyproject.toml, be found; forget them in the end.

    Yields the environment in which other processes find them too.
    """
    known = set(sys.modules)
    with tempfile.TemporaryDirectory() as metadata, registry.scratch():
        for folder in folders:
            write_metadata(folder, Path(metadata))
        paths = [metadata, *(str(folder.resolve()) for folder in folders)]
        sys.path[:0] = paths
        try:
            python_path = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
            yield os.environ | {"PYTHONPATH": python_path}
        finally:
            for path in paths:
                sys.path.remove(path)
            for name in set(sys.modules) - known:
                if _lies_in(sys.modules[name], paths[1:]):
                    del sys.modules[name]


def write_metadata(folder: Path, into: Path) -> None:
    """What an installer would write of a plugin's pyproject.toml: name, version, needs and entry points."""
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    name, version = project["name"], project.get("version", "0")  # another file may say the version
    info = into / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in project.get("dependencies", [])]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    groups = project.get("entry-points", {}).items()
    points = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups]
    (info / "entry_points.txt").write_text("".join(points), encoding="utf-8")


def _lies_in(module: Any, folders: list[str]) -> bool:
    file = getattr(module, "__file__", None) or ""
    return any(Path(folder) in Path(file).parents for folder in folders)
