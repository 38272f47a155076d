"""YAML text to nodes, within limits.

YAML 1.2 in the points where it matters: 1e-3 is a number, only true and false are booleans, 010 is ten.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from dino_lab.spec.problems import Problem, report, start_of

MAX_NODES = 10_000
MAX_DEPTH = 50
TAG = "tag:yaml.org,2002:"
NUMBERS = {
    "int": re.compile(r"^[-+]?[0-9]+$"),
    "float": re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - forget those of YAML 1.1; see below

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name
        self._level = self._nodes = 0
        self._measured: dict[int, tuple[int, int]] = {}  # of each finished node: how many nodes, how deep

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count nodes as if every alias were written out, so that a small file cannot become a huge one."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        self._level += 1
        before = self._nodes
        self._nodes += not is_alias
        self._check(mark, self._level)
        node = super().compose_node(parent, index)
        if node is None:
            return None
        if is_alias:
            if id(node) not in self._measured:
                raise yaml.MarkedYAMLError(problem="an alias that contains itself", problem_mark=mark)
            nodes, depth = self._measured[id(node)]
            self._nodes += nodes
            self._check(mark, self._level + depth - 1)
        else:
            depth = 1 + max((self._measured[id(child)][1] for child in _children(node)), default=0)
            self._measured[id(node)] = (self._nodes - before, depth)
        self._level -= 1
        return node

    def _check(self, mark: yaml.Mark, depth: int) -> None:
        if self._nodes > MAX_NODES:
            problem = f"more than {MAX_NODES} values, aliases written out; a spec is smaller"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        if depth > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} deep; a spec is flatter"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


for _name, _pattern, _first in (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", NUMBERS["int"], list("-+0123456789")),
    ("float", NUMBERS["float"], list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(TAG + _name, _pattern, _first)


def compose(text: str, name: str) -> yaml.Node | None:
    """The one document of `text`, or None if there is none; SpecError if it is not YAML."""
    try:
        return _Loader(text, name).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or start_of(name)
        raise report([Problem(mark, (), _said(error))]) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n"), error.position - before.rfind("\n") - 1
        mark = yaml.Mark(name, error.position, line, column, None, 0)
        message = f"the character {chr(int(error.character))!a} is not allowed in a text file"
        raise report([Problem(mark, (), message)]) from None


def _said(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not readable"
    if isinstance(error, yaml.composer.ComposerError):
        return "one file holds one spec; '---' starts a second" if "another document" in problem else problem
    if not isinstance(error, (yaml.scanner.ScannerError, yaml.parser.ParserError)):
        return problem
    if "'\\t'" in problem:
        return "not valid YAML: a tab; indent with spaces"
    context = f" ({error.context})" if error.context else ""
    return f"not valid YAML: {problem}{context}"


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
