"""The experiments that come with the package: files to run by name, and to extend."""

from __future__ import annotations

import re
from functools import cache
from itertools import takewhile
from pathlib import Path

SCHEMA_LINE = "# yaml-language-server"


def find(name: str) -> Path | None:
    """The file called `quickstart` or `methods/byol`, or `byol` where only one has that name."""
    files = experiments()
    if name in files:
        return files[name]
    found = [file for key, file in files.items() if key.rpartition("/")[2] == name]
    return found[0] if len(found) == 1 else None


@cache
def experiments() -> dict[str, Path]:
    """Name and file of each, those without a folder first."""
    root = _folder()
    files = sorted(root.rglob("*.yaml"), key=lambda file: (len(file.relative_to(root).parts), file))
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}


def description(file: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith(SCHEMA_LINE)]
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"(?<=[a-z)])\. ", comment, maxsplit=1)[0].rstrip(".:")


def _folder() -> Path:
    """Inside the package, where a wheel has them, or beside it, where a checkout has them."""
    package = Path(__file__).parents[1]
    beside = package.parent / "experiments"
    is_checkout = (package.parent / "pyproject.toml").is_file()
    return beside if is_checkout and beside.is_dir() else package / "experiments"
