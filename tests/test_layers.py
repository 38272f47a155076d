"""Imports go down only: a row may import the rows above it, never one below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dino_lab

ROOT = Path(dino_lab.__file__).parent
LAYERS = [
    "kinds errors types schedule collectives",
    "names plugin_file extras attention pictures images linear",
    "network",
    "encoder",
    "protocols",
    "registry",
    "components",
    "spec",
    "training",
    "testing",
    "exports",
    "loggers",
    "reports",
    "sweeps",
    "cli",
    "__main__",
]
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row.split()}
RAY = {
    f"sweeps/{name}.py" for name in ("cluster", "dispatch", "feed", "head", "join", "schedulers", "worker")
}
FOLDERS = {name for name in RANK if (ROOT / name).is_dir()}  # whose files may import one another


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and full name of everything imported from this package, inside functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            found += [(node.lineno, f"{dots}{node.module or ''}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] in ("dino_lab", "")]


def complaint(file: Path, name: str) -> str | None:
    """Why `file`, relative to the package, may not import `name`."""
    me, other = file.with_suffix("").parts, tuple(name.split(".")[1:])
    if name.startswith("."):
        return "is relative; write the whole name"
    if other == ("__version__",):
        return None
    if not other or me[0] not in RANK or other[0] not in RANK:
        return "has no layer; add it to LAYERS"
    if RANK[other[0]] > RANK[me[0]] or (RANK[other[0]] == RANK[me[0]] and me[0] not in FOLDERS):
        return "is not below"
    if me[0] == other[0] == "components" and not (
        me[1:2] == other[1:2] and "".join(other[2:3]).startswith("_")
    ):
        return "is another component; share a _helper of the folder"
    return None


def test_imports_go_down() -> None:
    files = [file for file in sorted(ROOT.rglob("*.py")) if file != ROOT / "__init__.py"]
    assert len(files) > 10
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {name} {why}"
        for file in files
        for line, name in imported(ast.parse(file.read_text(encoding="utf-8")))
        if (why := complaint(file.relative_to(ROOT), name))
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_ray_and_matplotlib_are_imported_where_they_are_used_and_not_before() -> None:
    inside, outside = set(), set()
    for file in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.split(".")[0] for name in names} & {"ray", "matplotlib"}:
                (outside if id(node) in top else inside).add(str(file.relative_to(ROOT)))
    assert not outside
    reports = (
        "attention",
        "chart",
        "comparison_report",
        "crops",
        "figures",
        "run_report",
        "scatter",
        "theme",
    )
    assert inside == {
        *(f"reports/{name}.py" for name in reports),
        "components/evaluators/_curves.py",
        "components/evaluators/_figures.py",
        *RAY,
    }


@pytest.mark.parametrize(
    ("file", "source", "why"),
    [
        ("registry.py", "from dino_lab.spec.model import Spec", "not below"),
        ("types.py", "import dino_lab.schedule", "not below"),
        ("spec/file.py", "def f():\n    from dino_lab.training import loop", "not below"),
        ("components/losses/a.py", "from dino_lab.components.losses.b import B", "another component"),
        ("components/losses/a.py", "from dino_lab.components.heads._norm import f", "another component"),
        ("components/losses/a.py", "from ._norm import f", "relative"),
        ("components/losses/a.py", "from dino_lab.spec.model import Spec", "not below"),
        ("extra.py", "from dino_lab.types import Views", "no layer"),
        ("components/losses/a.py", "from dino_lab.components.losses._norm import f", None),
        ("training/loop.py", "from dino_lab.spec.model import Spec\nfrom dino_lab import __version__", None),
    ],
)
def test_the_test_sees_it(file: str, source: str, why: str | None) -> None:
    whys = [complaint(Path(file), name) for _, name in imported(ast.parse(source))]
    assert whys == [None] * len(whys) if why is None else why in (whys[0] or "")
