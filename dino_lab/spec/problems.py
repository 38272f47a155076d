"""One thing wrong with a spec, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from dino_lab.errors import Loc, SpecError, printable

SETTING = "--set "
MOST_PROBLEMS = 50  # that are told at once
LONGEST_KEY = 200  # characters of a dotted key


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec, and where."""

    mark: yaml.Mark
    loc: Loc
    message: str

    def __str__(self) -> str:
        key = printable(".".join(map(str, self.loc)), LONGEST_KEY)
        parts = [place(self.mark), key, printable(" ".join(self.message.split()))]
        return ": ".join(part for part in parts if part)

    @property
    def order(self) -> tuple[bool, str, int, int]:
        """Files before settings, then by line."""
        return self.mark.name.startswith(SETTING), self.mark.name, self.mark.line, self.mark.column


def report(problems: list[Problem]) -> SpecError:
    """All problems, one line each; of very many the first."""
    found = sorted(problems, key=lambda problem: problem.order)
    lines = list(dict.fromkeys(map(str, found[:MOST_PROBLEMS])))
    if len(found) > MOST_PROBLEMS:
        lines.append(f"and {len(found) - MOST_PROBLEMS} more mistakes")
    return SpecError("\n".join(lines))


def place(mark: yaml.Mark) -> str:
    """`file:line:column`, or the setting itself."""
    name = printable(mark.name)
    return name if name.startswith(SETTING) else f"{name}:{mark.line + 1}:{mark.column + 1}"


def start_of(name: str) -> yaml.Mark:
    """The first character of a file."""
    return yaml.Mark(name, 0, 0, 0, None, 0)


def shown(value: object) -> str:
    """A value as a message shows it."""
    match value:
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
