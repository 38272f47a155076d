"""Which components there are, told without importing any: file names and entry points."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from dino_lab import __version__
from dino_lab.registry.kinds import FOLDERS

BUILT_IN = "dino_lab.components."


@dataclass(frozen=True)
class Source:
    """A name and the module that registers it."""

    kind: str
    name: str
    module: str
    origin: str  # "built-in", or the distribution and its version
    requires: tuple[str, ...] = ()  # what that distribution says it needs


def sources(kind: str) -> list[Source]:
    """The built-in and the installed components of a kind."""
    return [*_built_in(kind), *_installed(kind)]


def _built_in(kind: str) -> list[Source]:
    folder = Path(__file__).parent.parent / "components" / FOLDERS[kind]
    return [
        Source(kind, file.stem, f"{BUILT_IN}{FOLDERS[kind]}.{file.stem}", "built-in")
        for file in sorted(folder.glob("*.py"))
        if not file.stem.startswith("_")
    ]


def _installed(kind: str) -> list[Source]:
    return [source for source in _plugins(tuple(map(_stamp, sys.path))) if source.kind == kind]


@lru_cache(maxsize=1)
def _plugins(state_of_path: tuple[tuple[str, int], ...]) -> list[Source]:
    """Every component of every plugin; read anew when something was installed or removed."""
    points = metadata.entry_points()
    return [
        _source(kind, point, point.dist)
        for kind, folder in FOLDERS.items()
        for point in points.select(group=f"dino_lab.{folder}")
        if point.dist is not None
    ]


def _stamp(folder: str) -> tuple[str, int]:
    """A folder and when its content last changed."""
    try:
        return folder, os.stat(folder or os.curdir).st_mtime_ns
    except OSError:
        return folder, 0


def _source(kind: str, point: metadata.EntryPoint, distribution: metadata.Distribution) -> Source:
    # Read once: every look at a distribution's name or version parses its metadata anew.
    fields = distribution.metadata
    origin = " ".join(str(fields[key]) for key in ("Name", "Version") if key in fields)
    # Not point.module, which raises where the entry point is malformed.
    module = point.value.partition(":")[0].strip()
    return Source(kind, point.name, module, origin, tuple(fields.get_all("Requires-Dist") or ()))


def obstacle(source: Source) -> str | None:
    """Why a component cannot be had, as far as that is known without importing anything."""
    if source.module.startswith(BUILT_IN):
        return None
    if (wanted := _unmet(source.requires)) is not None:
        return f"needs dino-lab{wanted}, and this is dino-lab {__version__}"
    return None if _is_there(source.module) else f"names a module that is not there: {source.module}"


def owners(sources: list[Source]) -> str:
    """Who else wants a name, in words."""
    return " and ".join(f"{source.origin} ({source.module})" for source in sources)


def _unmet(requires: tuple[str, ...]) -> str | None:
    """The versions of dino-lab that are asked for, if this is none of them."""
    lines = [line for line in requires if re.match(r"dino[-_.]+lab(?![-_.]*\w)", line, re.IGNORECASE)]
    if not lines:
        return None
    from packaging.requirements import InvalidRequirement, Requirement

    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and not requirement.specifier.contains(__version__, prereleases=True):
            return str(requirement.specifier)
    return None


def _is_there(module: str) -> bool:
    """Whether a module can be found; neither it nor a package around it is imported."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    name = top
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            return False
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec is not None
