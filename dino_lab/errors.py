"""What a user did wrong, as one clear line; the command line prints it and exits with 2."""

from __future__ import annotations

Loc = tuple[str | int, ...]


class UserError(Exception):
    """A wrong request: its text says what, where, and what would be right."""


class SpecError(UserError):
    """One or more lines, each `file:line:column: dotted.key: message`."""


class Misfit(UserError):
    """Parts of a valid spec that do not go together, found while building; `loc` is the key to point at."""

    def __init__(self, loc: Loc, message: str) -> None:
        super().__init__(f"{'.'.join(map(str, loc))}: {message}")
        self.loc, self.message = loc, message


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its kind where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """The text in one line, with ESC, newlines and all else that has no glyph written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
