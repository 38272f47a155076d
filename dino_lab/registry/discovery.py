"""Which components there are, told without importing any: file names and entry points."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from email.message import Message
from functools import lru_cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from dino_lab import __version__
from dino_lab.registry.kinds import FOLDERS

BUILT_IN = "dino_lab.components."
_KINDS = {f"dino_lab.{folder}": kind for kind, folder in FOLDERS.items()}  # by group of entry points
_OURS = re.compile(r"dino[-_]?lab\.")


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
    return [source for source in _plugins(tuple(map(_stamp, sys.path))).sources if source.kind == kind]


def plugins() -> dict[str, str]:
    """Name and version of every distribution that has components."""
    origins = [source.origin.partition(" ") for kind in FOLDERS for source in _installed(kind)]
    return {name: version for name, _, version in origins}


def complaints() -> list[str]:
    """One line for each distribution with malformed entry points, or with some in a group of no kind."""
    return _plugins(tuple(map(_stamp, sys.path))).complaints


@dataclass
class _Plugins:
    """What was found, and what is wrong with the rest."""

    sources: list[Source] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def _plugins(state_of_path: tuple[tuple[str, int], ...]) -> _Plugins:
    """Every component of every plugin; read anew when something was installed or removed."""
    plugins = _Plugins()
    seen: set[str] = set()
    for distribution in metadata.distributions():
        folder = _folder(distribution)
        name = re.sub(r"[-_.]+", "-", folder.rpartition(".")[0].partition("-")[0]).lower()
        if name in seen:
            continue  # the first on the path is the one that is imported
        seen.update([name] if name else [])
        try:
            points = [point for point in distribution.entry_points if _OURS.match(point.group)]
        except Exception:  # the file of any installed package, in whatever state
            plugins.complaints.append(f"{folder}: its entry_points.txt is malformed")
            continue
        if points:
            _sort(points, distribution, plugins)
    return plugins


def _sort(points: list[metadata.EntryPoint], distribution: metadata.Distribution, plugins: _Plugins) -> None:
    """The entry points of one distribution: those of a kind, and a complaint about each other one."""
    fields: Any
    try:
        fields = distribution.metadata  # read once: every look at a name or a version parses it anew
    except Exception:  # there is none, or it is damaged; what can be imported can be used
        fields = Message()
    origin = " ".join(str(fields[key]) for key in ("Name", "Version") if key in fields)
    origin = origin or _folder(distribution).rpartition(".")[0].replace("-", " ")
    requires = tuple(fields.get_all("Requires-Dist") or ())
    for point in points:
        if (kind := _KINDS.get(point.group)) is None:
            hint = get_close_matches(point.group, _KINDS, n=1, cutoff=0)[0]
            plugins.complaints.append(
                f"{origin}: {point.name!r} is in {point.group!r}, which is no group; did you mean {hint!r}?"
            )
        else:
            plugins.sources.append(Source(kind, point.name, _module(point), origin, requires))


def _folder(distribution: metadata.Distribution) -> str:
    """The name of the folder of the metadata, such as `x-1.0.dist-info`; nothing where it has none."""
    return Path(str(getattr(distribution, "_path", ""))).name


def _module(point: metadata.EntryPoint) -> str:
    """What is imported; not by point.module, which raises where the entry point is malformed."""
    parts = point.pattern.match(point.value)
    return parts["module"] if parts else point.value.partition(":")[0].strip()


def _stamp(folder: str) -> tuple[str, int]:
    """A folder and when its content last changed."""
    try:
        return folder, os.stat(folder or os.curdir).st_mtime_ns
    except OSError:
        return folder, 0


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
    """Whether a module can be found; no code of it, nor of a package around it, is run.

    Each finder is asked, as `import` does: editable installs have one of their own.
    """
    if module in sys.modules:  # such as a file given with --plugin
        return True
    path: Sequence[str] | None = None
    name, namespaces = "", True
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        try:
            found = _find(name, path) if part.isidentifier() else None
        except KeyError:  # a namespace inside a package that is not imported: only the import can tell
            return True
        if found is None:
            return False
        path = found.submodule_search_locations
        namespaces = namespaces and path is not None and found.origin is None
        if namespaces:
            # It has no code, and what lies in it is only found once it is imported.
            importlib.import_module(name)
        if path is None and name != module:
            return False
    return True


def _find(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """What the first finder that knows the module says of it."""
    for finder in sys.meta_path:
        try:
            if (found := finder.find_spec(name, path)) is not None:
                return found
        except (ImportError, ValueError, TypeError):  # of a finder that somebody installed, too
            continue
    return None
