"""YAML text to nodes, within limits.

YAML 1.2 in the points where it matters: 1e-3 is a number, only true and false are booleans, 010 is ten.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import yaml

from dino_lab.errors import SpecError
from dino_lab.spec.problems import Problem, report, start_of

MAX_NODES = 10_000
MAX_DEPTH = 50
LINE_BREAKS = "\x85\u2028\u2029"  # of YAML 1.1 only, in which they end a comment that goes on for the eye
LOOK_ALIKES = "\u2010\u2011\u2012\u2013\u2014\u2018\u2019\u201c\u201d\uff0c\uff1a\uff5b\uff5d"
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
    if (broken := re.search(f"[{LINE_BREAKS}]", text)) is not None:
        raise _refused(text, name, broken.start())
    try:
        return _Loader(text, name).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or start_of(name)
        raise report([Problem(mark, (), _said(error, text, mark))]) from None
    except yaml.reader.ReaderError as error:
        raise _refused(text, name, error.position) from None


def _refused(text: str, name: str, position: int) -> SpecError:
    """That the character at `position` may not stand there."""
    before = text[:position]
    line, column = before.count("\n"), position - before.rfind("\n") - 1
    message = f"the character {text[position]!a} is not allowed in a text file"
    return report([Problem(yaml.Mark(name, position, line, column, None, 0), (), message)])


def comment_in(text: str) -> bool:
    """Whether YAML takes a part of `text` for a comment."""
    end = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if "#" in text[end : token.start_mark.index]:
            return True
        end = token.end_mark.index
    return "#" in text[end:]


def _said(error: yaml.MarkedYAMLError, text: str, mark: yaml.Mark) -> str:
    problem = error.problem or "not readable"
    if isinstance(error, yaml.composer.ComposerError):
        return "one file holds one spec; '---' starts a second" if "another document" in problem else problem
    if not isinstance(error, (yaml.scanner.ScannerError, yaml.parser.ParserError)):
        return problem
    lines = re.split("\r\n|\r|\n", text)  # as YAML counts them
    if "'\\t'" in problem:
        indents = not lines[mark.line][: mark.column].strip()
        return f"not valid YAML: a tab; {'indent with spaces' if indents else 'put a space there'}"
    if problem.startswith("expected '<document start>'"):
        return "not valid YAML: stands further to the left than the first key"
    context = error.context or ""
    if context and error.context_mark and error.context_mark.line != mark.line:
        context += f" that begins on line {error.context_mark.line + 1}"
    hint = _look_alike(lines, mark.line) or _quotes(problem)
    return f"not valid YAML: {problem}{f' ({context})' if context else ''}{hint}"


def _quotes(problem: str) -> str:
    """What helps against a character that means something to YAML."""
    if "cannot start any token" in problem:
        return "; put the value in quotes"
    return "; single quotes take a backslash as it is" if "unknown escape character" in problem else ""


def _look_alike(lines: list[str], last: int) -> str:
    """Of the line of a mistake and the one before: what looks like something that YAML would understand."""
    for number in range(max(0, last - 1), min(last + 1, len(lines))):
        for column, letter in enumerate(lines[number]):
            if (name := odd_character(letter)) is not None:
                return f"; line {number + 1}, column {column + 1} is {name}"
        if re.match(r"\s*\w+:[^\s:/]", lines[number]) and number < last:
            return f"; on line {number + 1} a space is missing after the ':'"
    return ""


def odd_character(letter: str) -> str | None:
    """What a character is that no reader tells from a blank, a quote, a dash or a colon, or None."""
    if letter.isascii() or (letter.isprintable() and letter not in LOOK_ALIKES):
        return None
    name = unicodedata.name(letter, "an unnamed character").lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name} (U+{ord(letter):04X})".replace("an an ", "an ")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
