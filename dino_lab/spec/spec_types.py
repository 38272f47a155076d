"""The type of one spec: each component narrowed to the one that the file names, and nothing else imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, create_model

from dino_lab.errors import Loc, UserError
from dino_lab.registry import Registry, suggest
from dino_lab.registry.kinds import KIND_OF_FIELD, LISTS, OPTIONAL
from dino_lab.spec.model import Spec
from dino_lab.spec.nodes import child, data, mark_at
from dino_lab.spec.problems import Problem, shown

# How a name is looked up, and what the names are.
Find = Callable[[str], type[BaseModel]]
File = TypeVar("File", bound=BaseModel)
OPTIMIZERS: dict[str, type[BaseModel]] = {
    get_args(cls.model_fields["name"].annotation)[0]: cls
    for cls in get_args(Spec.model_fields["optim"].annotation)
}


def narrowed(
    root: yaml.MappingNode, registry: Registry, problems: list[Problem], base: type[File]
) -> type[File]:
    """A subclass of `base`, such as Spec, that accepts exactly the components named in `root`.

    A field whose component cannot be found is a problem and then accepts anything, so that the rest of the
    file is still checked.
    """
    fields: dict[str, Any] = {}
    for field, kind in KIND_OF_FIELD.items():
        pair = child(root, field) if field in base.model_fields else None
        if pair is None or (field in OPTIONAL and data(pair[1]) is None):
            continue
        narrow = _Narrow(root, kind, _finder(registry, kind), registry.names(kind), problems)
        fields[field] = (
            narrow.many((field,), pair[1]) if field in LISTS else narrow.one((field,), pair[1]),
            ...,
        )
    if "optim" in base.model_fields and (pair := child(root, "optim")) is not None:
        narrow = _Narrow(root, "optimizer", _optimizer, list(OPTIMIZERS), problems)
        fields["optim"] = (narrow.one(("optim",), pair[1]), ...)
    return create_model(base.__name__, __base__=base, **fields)


def _finder(registry: Registry, kind: str) -> Find:
    return lambda name: registry.find(kind, name).params


def _optimizer(name: str) -> type[BaseModel]:
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    names = list(OPTIMIZERS)
    raise UserError(f"no optimizer is called {name!r}{suggest(name, names)} (there are: {', '.join(names)})")


class _Narrow:
    """Parameters of what a node names; Any, and a problem, if it names nothing that can be had."""

    def __init__(
        self, root: yaml.MappingNode, kind: str, find: Find, names: list[str], problems: list[Problem]
    ) -> None:
        self.root, self.kind, self.find, self.names, self.problems = root, kind, find, names, problems

    def many(self, loc: Loc, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return self._wrong(loc, f"must be a list with '-' before each item, got {shown(data(node))}")
        return tuple[tuple(self.one((*loc, i), item) for i, item in enumerate(node.value))]  # type: ignore[misc]

    def one(self, loc: Loc, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self._wrong(loc, f"write {self._like(data(node))}")
        pair = child(node, "name")
        if pair is None:
            return self._wrong(loc, f"needs a 'name' (there are: {', '.join(self.names)})")
        name = data(pair[1])
        if not isinstance(name, str):
            return self._wrong((*loc, "name"), f"must be text, the name of a component, got {shown(name)}")
        try:
            return self.find(name)
        except UserError as error:
            return self._wrong((*loc, "name"), str(error))

    def _like(self, given: Any) -> str:
        """How the component that was probably meant is written."""
        return (
            f"{{name: {given}}}, not {shown(given)}"
            if isinstance(given, str) and given in self.names
            else f"{{name: ...}}, not {shown(given)} (there are: {', '.join(self.names)})"
        )

    def _wrong(self, loc: Loc, message: str) -> Any:
        self.problems.append(Problem(mark_at(self.root, loc), loc, message))
        return Any
