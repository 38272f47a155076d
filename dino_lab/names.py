"""Which components there are, told without importing any: file names and entry points."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dino_lab.kinds import FOLDERS

BUILT_IN = "dino_lab.components."


@dataclass(frozen=True)
class Source:
    """A name and the module that registers it."""

    kind: str
    name: str
    module: str
    origin: str  # "built-in", or the distribution and its version


def sources(kind: str) -> list[Source]:
    """The built-in and the installed components of a kind."""
    return [*_built_in(kind), *_installed(kind)]


def _built_in(kind: str) -> list[Source]:
    folder = Path(__file__).parent / "components" / FOLDERS[kind]
    return [
        Source(kind, file.stem, f"{BUILT_IN}{FOLDERS[kind]}.{file.stem}", "built-in")
        for file in sorted(folder.glob("*.py"))
        if not file.stem.startswith("_")
    ]


def _installed(kind: str) -> list[Source]:
    return [
        Source(kind, point.name, point.module, f"{point.dist.name} {point.dist.version}")
        for point in metadata.entry_points(group=f"dino_lab.{FOLDERS[kind]}")
        if point.dist is not None
    ]
