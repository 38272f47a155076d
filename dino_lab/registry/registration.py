"""Names for components, and the parameters that each name accepts.

A component's constructor *is* its schema: what stands before the `*` is supplied by the builder, what
stands after it may be set in YAML.

    @register("loss", "mse")
    class Mse(nn.Module):
        def __init__(self, dim: int, *, normalize: bool = True) -> None: ...

Parameters that several components share are declared once, as a group: see `parameters`.

Names are known without importing anything: a built-in component lives in the file that bears its name, a
plugin's component is an entry point that bears its name. Only what is asked for is imported.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from dino_lab.errors import UserError
from dino_lab.registry.discovery import BUILT_IN, Source, obstacle, owners, sources
from dino_lab.registry.parameters import Params, arguments, parameter_model

T = TypeVar("T")


class ComponentError(UserError):
    """A component that cannot be had: nobody owns its name, two own it, or its module fails to import."""


@dataclass(frozen=True)
class Entry:
    """A registered component."""

    kind: str
    name: str
    cls: type
    params: type[Params]

    @property
    def where(self) -> str:
        """File and line of the class."""
        return f"{inspect.getsourcefile(self.cls)}:{inspect.getsourcelines(self.cls)[1]}"


class Registry:
    """Kind and name to class and parameters."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}

    def register(self, kind: str, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: check the contract of `kind` and make the class known as `name`."""

        def add(cls: type[T]) -> type[T]:
            entry = Entry(kind, name, cls, params_of(cls, kind, name))
            self._refuse_second_owner(entry)
            self._entries[kind, name] = entry
            return cls

        return add

    def _refuse_second_owner(self, entry: Entry) -> None:
        old = self._entries.get((entry.kind, entry.name))
        owner = old.where if old is not None else None
        if not entry.cls.__module__.startswith(BUILT_IN):  # one file cannot hold two built-ins of a name
            others = [s for s in sources(entry.kind) if s.name == entry.name]
            strangers = [s for s in others if s.module != entry.cls.__module__]
            if strangers and len(strangers) < len(others):
                return  # `find` says so to whoever asks for it, and the rest of the module stays usable
            owner = owner or next((f"{s.origin} ({s.module})" for s in strangers), None)
        if owner is not None:
            raise ComponentError(
                f"{entry.kind} {entry.name!r} of {entry.where} is already registered by {owner}"
            )

    def sources(self, kind: str) -> list[Source]:
        """Every component of a kind, by name, without importing any."""
        found = sources(kind)
        known = {source.name for source in found}
        found += [
            Source(kind, name, entry.cls.__module__, f"{inspect.getsourcefile(entry.cls)}")
            for (its_kind, name), entry in self._entries.items()
            if its_kind == kind and name not in known
        ]
        return sorted(found, key=lambda source: source.name)

    def names(self, kind: str) -> list[str]:
        """The names of a kind."""
        return sorted({source.name for source in self.sources(kind)})

    def source(self, kind: str, name: str) -> Source:
        """Where a component comes from; a ComponentError if that is nowhere, or more than one place."""
        found = [source for source in self.sources(kind) if source.name == name]
        if not found:
            names = self.names(kind)
            raise ComponentError(
                f"no {kind} is called {name!r}{suggest(name, names)} (there are: {', '.join(names)})"
            )
        if len(found) > 1:
            raise ComponentError(f"{kind} {name!r} has two owners: {owners(found)}; uninstall one")
        return found[0]

    def find(self, kind: str, name: str) -> Entry:
        """Import the component if need be; a ComponentError says why there is none."""
        source = self.source(kind, name)
        if (kind, name) not in self._entries:
            self._import(source)
        return self._entries[kind, name]

    def _import(self, source: Source) -> None:
        who = f"{source.kind} {source.name!r} of {source.origin}"
        if (reason := obstacle(source)) is not None:
            raise ComponentError(f"{who} {reason}")
        before = dict(self._entries)
        try:
            importlib.import_module(source.module)
        except (Exception, SystemExit) as error:
            self._forget_half_imported(before)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ComponentError(f"{who} failed to import ({reason})") from error
        if (source.kind, source.name) not in self._entries:
            raise ComponentError(
                f"{source.module} of {source.origin} was imported, but registers no "
                f"{source.kind} {source.name!r}"
            )

    def _forget_half_imported(self, before: dict[tuple[str, str], Entry]) -> None:
        """Keep what was known, and what is whole: Python drops a module whose import failed."""
        self._entries = {
            key: entry
            for key, entry in self._entries.items()
            if key in before or entry.cls.__module__ in sys.modules
        }

    def build(self, kind: str, params: Params, *context: Any) -> Any:
        """An instance: what the builder supplies, then what the spec says."""
        return self.find(kind, params.name).cls(*context, **arguments(params))

    @contextmanager
    def scratch(self) -> Iterator[None]:
        """Forget, on exit, whatever was registered inside, but for built-ins. For tests."""
        saved = dict(self._entries)
        try:
            yield
        finally:
            # A built-in's module stays imported, so it would never be registered again.
            imported = {k: e for k, e in self._entries.items() if e.cls.__module__.startswith(BUILT_IN)}
            self._entries = imported | saved


def params_of(cls: type, kind: str, name: str) -> type[Params]:
    """The Pydantic model of the keyword-only parameters of `cls`, once it is known to keep its contract."""
    _check_contract(cls, kind)
    return parameter_model(cls, name)


def _check_contract(cls: type, kind: str) -> None:
    """Compare parameter names with the protocol of the kind."""
    from dino_lab.protocols import PROTOCOLS

    protocol = PROTOCOLS[kind]
    methods = [m for m, f in vars(protocol).items() if inspect.isfunction(f) and not m.startswith("_")]
    for method in ["__init__", *methods]:
        if not hasattr(cls, method):
            raise TypeError(f"{cls.__qualname__}: a {kind} has a method {method}")
        wanted, given = _positional(protocol, method), _positional(cls, method)
        if given != wanted:
            raise TypeError(
                f"{cls.__qualname__}.{method}: a {kind} takes ({', '.join(wanted)}), not ({', '.join(given)})"
            )


def _positional(cls: type, method: str) -> list[str]:
    parameters = list(inspect.signature(getattr(cls, method)).parameters.values())[1:]
    return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


def suggest(word: str, words: list[str]) -> str:
    """`; did you mean 'x'?` where one of `words` is close, else nothing."""
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


registry = Registry()
register = registry.register
