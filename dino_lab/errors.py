"""What a user did wrong, as one clear line; the command line prints it and exits with 2."""

from __future__ import annotations

from pickle import UnpicklingError

Loc = tuple[str | int, ...]
LONGEST = 2000  # characters of one line of a message


class UserError(Exception):
    """A wrong request: its text says what, where, and what would be right."""


class SpecError(UserError):
    """One or more lines, each `file:line:column: dotted.key: message`."""


class Misfit(UserError):
    """Parts of a valid spec that do not go together, found while building; `loc` is the key to point at."""

    def __init__(self, loc: Loc, message: str) -> None:
        super().__init__(f"{'.'.join(map(str, loc))}: {message}")
        self.loc, self.message = loc, message


class FailedElsewhere(Exception):
    """Another process of this run has failed, and says so itself; `cause` is what it raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(first_line(cause))
        self.cause = cause


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its kind where it says nothing.

    Of a checkpoint that torch refuses its line is left out: it advises `weights_only=False`, which runs code.
    """
    if isinstance(error, UnpicklingError):
        return "it is damaged, or holds more than tensors and plain values"
    return (str(error) or type(error).__name__).splitlines()[0]


def printable(text: str, longest: int = LONGEST) -> str:
    r"""One line without characters that a terminal obeys or hides, and without the middle of a long text.

    Control characters, line breaks, characters without width and odd spaces are written as in Python (`\x1b`,
    `\n`, `\u200b`): no key and no file name can move the cursor, forge a line, or look like another.
    """
    if len(text) > longest:
        ends = longest // 2
        text = f"{text[:ends]} ... ({len(text) - 2 * ends} characters) ... {text[-ends:]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
