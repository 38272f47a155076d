"""Paths that a spec names."""

from __future__ import annotations

from pathlib import Path

from dino_lab.errors import Misfit, printable


def named_path(path: str) -> Path:
    """The path that `data.path` names; a Misfit where it cannot be looked at."""
    try:
        found = Path(path).expanduser()
        found.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, of no such user, not allowed
        reason = getattr(error, "strerror", None) or str(error)
        raise Misfit(("data", "path"), f"{printable(path, 200)} cannot be read ({reason})") from error
    return found


def named_folder(path: str) -> Path:
    """As `named_path`, and a Misfit where it is no folder."""
    found = named_path(path)
    if not found.is_dir():
        raise Misfit(("data", "path"), f"{printable(path, 200)} is not a folder")
    return found
