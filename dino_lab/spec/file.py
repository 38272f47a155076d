"""A YAML file in, a Spec or every mistake in it out; and a Spec back to YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dino_lab.errors import Loc, UserError
from dino_lab.registry import Registry
from dino_lab.registry import registry as default_registry
from dino_lab.spec.compose import NUMBERS, TAG
from dino_lab.spec.document import Located, validated
from dino_lab.spec.file_kinds import refuse_other_kinds
from dino_lab.spec.former import changes
from dino_lab.spec.merge import apply_settings, compose_all, read
from dino_lab.spec.model import Spec
from dino_lab.spec.nodes import child, mark_at
from dino_lab.spec.problems import Problem, report, start_of
from dino_lab.spec.stages import after, stage_nodes


@dataclass(frozen=True)
class Document(Located):
    """A spec and the text it came from; of a file with `stages` the last of them."""

    spec: Spec
    own: yaml.MappingNode  # nodes of this spec alone: without `stages`, and with what they change
    before: tuple[Document, ...] = ()  # of the stages before, the first one first

    @property
    def stages(self) -> tuple[Document, ...]:
        """One for each stage, in order."""
        return (*self.before, self)

    def line(self, loc: Loc, message: str) -> str:
        """`file:line:column: dotted.key: message`, for a mistake that is found after loading."""
        return str(Problem(mark_at(self.own, loc), loc, message))


def load(path: Path, settings: Sequence[str] = (), registry: Registry = default_registry) -> Document:
    """The spec in a file, with `a.b=c` settings laid over it; SpecError with one line for each mistake."""
    return _load(read(path), path, settings, registry)


def load_text(
    text: str, name: str, settings: Sequence[str] = (), registry: Registry = default_registry
) -> Document:
    """The spec in `text`; messages call it `name`, and what it extends is looked for beside that path."""
    return _load(text, Path(name), settings, registry)


def _load(text: str, file: Path, settings: Sequence[str], registry: Registry) -> Document:
    problems: list[Problem] = []
    root = compose_all(text, file, problems)
    refuse_other_kinds(root, file, "spec")
    root = apply_settings(root, settings, problems)
    document = read_nodes(root, file, problems, registry)
    if document is None:
        raise report(problems)
    return document


def read_nodes(
    root: yaml.MappingNode, file: Path, problems: list[Problem], registry: Registry
) -> Document | None:
    """The spec of nodes, called as its file unless they name it; None, and problems, if they say none."""
    is_named = child(root, "name") is not None
    if not is_named:
        mark = start_of(str(file))
        pair = tuple(yaml.ScalarNode(TAG + "str", part, mark, mark) for part in ("name", file.stem))
        root = yaml.MappingNode(root.tag, [*root.value, pair], root.start_mark, root.end_mark)
    stages: list[Document] = []
    for own in stage_nodes(root, problems):
        spec = _spec_of(own, stages[-1].spec if stages else None, registry, problems)
        if spec is None:
            break
        stages.append(Document(root, spec, own, tuple(stages)))
    if problems:
        if not is_named:
            problems[:] = [_of_the_file(problem) for problem in problems]
        return None
    return stages[-1]


def _spec_of(
    own: yaml.MappingNode, parent: Spec | None, registry: Registry, problems: list[Problem]
) -> Spec | None:
    """The spec of one stage, after its parent; None, and problems, where the nodes say none."""
    found = validated(own, registry, problems, Spec)
    if problems or found is None:
        return None
    # The narrowed type has done its work; equal specs are equal, whatever file they came from.
    values = {field: getattr(found, field) for field in Spec.model_fields}
    return Spec(**values | ({"after": after(parent)} if parent is not None else {}))


def parent_of(spec: Spec, registry: Registry) -> Spec | None:
    """The spec of the run that a run begins with; None where it begins with weights of its own.

    A UserError where it is not the run that `after` names: its plugins may have changed since.
    """
    if spec.after is None:
        return None
    text = yaml.dump(spec.after.spec, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    parent = load_text(text, f"{spec.after.where}.yaml", changes(text), registry).spec
    if parent.hash != spec.after.run:
        raise UserError(
            f"after.spec is that of the run {parent.hash}, not of {spec.after.run}: a key of it, or the code "
            "of a plugin, has changed since"
        )
    return parent


def with_seed(spec: Spec, seed: int, registry: Registry) -> Spec:
    """The spec with another seed, and the stages before it too; the run that is forked keeps its own."""
    changed: dict[str, Any] = {"seed": seed}
    if spec.after is not None and spec.after.epoch is None and spec.seed != seed:
        parent = parent_of(spec, registry)
        assert parent is not None
        changed["after"] = after(with_seed(parent, seed, registry))
    return spec.model_copy(update=changed)


def _of_the_file(problem: Problem) -> Problem:
    """Where the name of the run is wrong, that it is the file's."""
    if problem.loc != ("name",):
        return problem
    return replace(problem, message=f"{problem.message}; it is that of the file, so give the spec a 'name'")


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or this package would read as something else."""


for _tag, _pattern in NUMBERS.items():
    _Dumper.add_implicit_resolver(TAG + _tag, _pattern, list("-+.0123456789"))


def _list(dumper: _Dumper, items: list[Any]) -> yaml.Node:
    flow = not any(isinstance(item, (list, dict)) for item in items)
    return dumper.represent_sequence(TAG + "seq", items, flow_style=flow)


_Dumper.add_representer(list, _list)


def dump_yaml(spec: Spec) -> str:
    """The spec with every default written out; loading it gives an equal spec with the same hash."""
    plain = {key: _name_first(value) for key, value in spec.dump().items()}
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _name_first(value: object) -> object:
    return {"name": value["name"], **value} if isinstance(value, dict) and "name" in value else value
