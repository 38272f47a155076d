"""The verb that begins a plugin."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from dino_lab import __version__
from dino_lab.cli.components import kinds, must_be_a_kind
from dino_lab.errors import UserError
from dino_lab.registry.discovery import sources
from dino_lab.registry.kinds import FOLDERS

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_NAME = 40


def new(
    name: Annotated[str, typer.Argument(help="What a spec will call the component.", show_default=False)],
    kind: Annotated[
        str,
        typer.Option(metavar="KIND", autocompletion=kinds, help="As `list` prints it.", show_default=False),
    ],
    into: Annotated[Path, typer.Option(metavar="DIR", help="Where the folder is made.")] = Path(),
) -> None:
    """Begin a component of your own: a package with one component and its test.

    Once installed it is listed, and it passes its test as it is.
    """
    must_be_a_kind(kind)
    _check_name(kind, name)
    files = _files(kind, name)
    folder = into / _distribution(name)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder}: is there already; take another name, or --into another folder") from None
    for file, text in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    print(f"wrote {folder}")
    for file in files:
        print(f"  {file}")
    print(f"next:\n  pip install -e {folder}\n  dino-lab list {kind}\n  pytest {folder}")


def _check_name(kind: str, name: str) -> None:
    word = re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", name) and not keyword.iskeyword(name)
    if not word or len(name) > LONGEST_NAME:
        raise UserError(
            f"{name!r} is no name for a component; it should be at most {LONGEST_NAME} small letters and "
            "digits, parted by _ and beginning with a letter, such as my_loss"
        )
    if owner := next((source.origin for source in sources(kind) if source.name == name), None):
        raise UserError(f"there is a {kind} called {name!r} already ({owner}); take another name")


def _distribution(name: str) -> str:
    return f"dino-lab-{name.replace('_', '-')}"


def _class_name(kind: str, name: str) -> str:
    """Ends with the kind, so that it cannot be the name of anything that the template imports."""
    words = name.split("_")
    return "".join(word.capitalize() for word in (words if words[-1] == kind else [*words, kind]))


def _files(kind: str, name: str) -> dict[str, str]:
    """Path in the folder and text of every file."""
    module = f"dino_lab_{name}"
    words = {
        "kind": kind,
        "folder": FOLDERS[kind],
        "name": name,
        "Class": _class_name(kind, name),
        "distribution": _distribution(name),
        "module": module,
        "version": __version__,
    }
    templates = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}/__init__.py": "__init__.py",
        f"{module}/{name}.py": f"{kind}.py",
        f"tests/test_{name}.py": "test.py",
    }
    return {
        file: Template((TEMPLATES / f"{template}.template").read_text(encoding="utf-8")).substitute(words)
        for file, template in templates.items()
    }
