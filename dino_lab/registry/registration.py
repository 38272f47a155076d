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
from functools import partial
from typing import Any, TypeVar

from dino_lab.errors import UserError
from dino_lab.registry.discovery import BUILT_IN, Source, complaints, obstacle, owners, sources
from dino_lab.registry.kinds import FAMILIES
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
    abilities: frozenset[type]  # those of protocols.ABILITIES that the class has

    @property
    def where(self) -> str:
        """File and line of the class."""
        cls = getattr(self.cls, "made_of", self.cls)  # a class that was made on demand stands nowhere
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"

    def has(self, ability: type) -> bool:
        """Whether the class has an ability, one that a plugin defines too."""
        return ability in self.abilities or _has(self.cls, ability)


class Registry:
    """Kind and name to class and parameters."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}

    def register(self, kind: str, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: check the contract of `kind` and make the class known as `name`."""

        def add(cls: type[T]) -> type[T]:
            params = params_of(cls, kind, name)
            entry = Entry(kind, name, cls, params, _abilities(cls, kind))
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
            if its_kind == kind and name not in known and not self.makes(kind, name)
        ]
        return sorted(found, key=lambda source: source.name)

    def names(self, kind: str) -> list[str]:
        """The names of a kind."""
        return sorted({source.name for source in self.sources(kind)})

    def source(self, kind: str, name: str) -> Source:
        """Where a component comes from; a ComponentError if that is nowhere, or more than one place."""
        if self.makes(kind, name):
            family = name.partition(".")[0]
            return Source(kind, name, FAMILIES[kind][family], f"made of {family}")
        found = [source for source in self.sources(kind) if source.name == name]
        if not found:
            names = self.names(kind)
            raise ComponentError(
                f"no {kind} is called {name!r}{suggest(name, names)} (there are: {', '.join(names)})"
                + "".join(f"; {complaint}" for complaint in complaints())
            )
        if len(found) > 1:
            raise ComponentError(f"{kind} {name!r} has two owners: {owners(found)}; uninstall one")
        return found[0]

    def find(self, kind: str, name: str) -> Entry:
        """Import the component if need be; a ComponentError says why there is none."""
        if self.makes(kind, name):
            return self._of_family(kind, *name.split(".", 1))
        source = self.source(kind, name)
        if (kind, name) not in self._entries:
            self._import(source)
        return self._entries[kind, name]

    @staticmethod
    def makes(kind: str, name: str) -> bool:
        """Whether it is made on demand: there are too many of these to list."""
        family, dot, _ = name.partition(".")
        return bool(dot) and family in FAMILIES.get(kind, {})

    def _of_family(self, kind: str, family: str, member: str) -> Entry:
        """A component that is made on demand, such as `kornia.RandomErasing`."""
        name = f"{family}.{member}"
        if (kind, name) not in self._entries:
            try:
                cls = importlib.import_module(FAMILIES[kind][family]).component(member)
            except UserError as error:
                raise ComponentError(str(error)) from error
            self.register(kind, name)(cls)
        return self._entries[kind, name]

    def _import(self, source: Source) -> None:
        who = f"{source.kind} {source.name!r} of {source.origin}"
        if (reason := obstacle(source)) is not None:
            raise ComponentError(f"{who} {reason}")
        before = dict(self._entries)
        try:
            importlib.import_module(source.module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of somebody else's code, which may exit
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
    """Compare the names of arguments with the contract of the kind, and with those of its abilities."""
    from dino_lab.protocols import ABILITIES, FORMER_NAMES, PROTOCOLS, abilities_in, members

    contract = PROTOCOLS[kind]
    methods = [m for m, f in vars(contract).items() if inspect.isfunction(f) and not m.startswith("_")]
    for method in ["__init__", *methods]:
        if not hasattr(cls, method):
            raise TypeError(f"{cls.__qualname__}: a {kind} has a method {method}")
        _check_arguments(cls, contract, kind, method)
    for former, name in FORMER_NAMES.get(kind, {}).items():
        _rename(cls, former, name)
    for ability in filter(partial(_has, cls), ABILITIES[kind]):
        for method, function in members(ability).items():
            if function is not None and not _forwards(cls, method):
                _check_arguments(cls, ability, kind, method)
    if kind == "evaluator" and isinstance(needs := getattr(cls, "needs", None), tuple):
        try:
            abilities_in(needs)
        except TypeError as error:
            raise TypeError(f"{cls.__qualname__}.needs: {error}") from error


def _check_arguments(cls: type, protocol: type, kind: str, method: str) -> None:
    wanted, given = _arguments(protocol, method), _arguments(cls, method)
    if given != wanted:
        raise TypeError(
            f"{cls.__qualname__}.{method}: a {kind} takes ({', '.join(wanted)}), not ({', '.join(given)})"
        )


def _arguments(cls: type, method: str) -> list[str]:
    """Names of the arguments that a caller supplies; a constructor's keywords are what YAML may set."""
    bound = isinstance(inspect.getattr_static(cls, method), (staticmethod, classmethod))
    parameters = list(inspect.signature(getattr(cls, method)).parameters.values())[0 if bound else 1 :]
    optional = [p for p in parameters if p.kind is p.KEYWORD_ONLY and (p.default is not p.empty)]
    return [
        p.name
        for p in parameters
        if p not in optional and not (p.kind is p.KEYWORD_ONLY and method == "__init__")
    ]


def _forwards(cls: type, method: str) -> bool:
    """Whether a method is known of an instance only, or takes whatever it is given."""
    found = getattr(cls, method, None)
    if not callable(found):
        return True
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(found).parameters.values())


def _rename(cls: type, former: str, name: str) -> None:
    """Give a class that defines a method under its former name the same method under its name."""
    owner = next((base for base in cls.__mro__ if former in vars(base) or name in vars(base)), None)
    if owner is not None and name not in vars(owner):
        setattr(cls, name, vars(owner)[former])


def _abilities(cls: type, kind: str) -> frozenset[type]:
    from dino_lab.protocols import ABILITIES

    return frozenset(ability for ability in ABILITIES[kind] if _has(cls, ability))


def _has(cls: type, ability: type) -> bool:
    """Whether a class has all methods and attributes of an ability, or declares that its instances do."""
    from dino_lab.protocols import members

    return all(_declares(cls, name, function is not None) for name, function in members(ability).items())


def _declares(cls: type, name: str, is_method: bool) -> bool:
    for base in cls.__mro__:
        if name in vars(base):
            value = vars(base)[name]
            fits = callable(getattr(cls, name)) or isinstance(value, property) or not is_method
            return fits and value is not None
        if name in (annotations := inspect.get_annotations(base)):
            # A submodule, declared as one, may have the name of a method.
            return not is_method or "Callable" in str(annotations[name])
    return False


def suggest(word: str, words: list[str]) -> str:
    """`; did you mean 'x'?` where one of `words` is close, else nothing."""
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


registry = Registry()
register = registry.register
