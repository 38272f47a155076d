"""Imports go down only: a row may import the rows above it, never one below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dino_lab

ROOT = Path(dino_lab.__file__).parent
LAYERS = [  # a room, or a file of a room that lies below the rest of it
    "registry.kinds errors types schedule collectives",
    "registry.discovery registry.plugin_files extras kernels runs.files runs.checkpoint",
    "imaging",
    "network",
    "evaluation.outputs evaluation.attention_maps",
    "distributed",
    "protocols",
    "registry evaluation.encoder weights",
    "spec",
    "building",
    "runs",
    "components",
    "evaluation",
    "training",
    "testing",
    "exports",
    "loggers",
    "reports",
    "sweeps",
    "distributed.on_ray",
    "api",
    "cli",
    "__main__",
]
RANK = {tuple(name.split(".")): rank for rank, row in enumerate(LAYERS) for name in row.split()}


def rank(module: tuple[str, ...]) -> int | None:
    """The layer of a module: its own, or that of its room."""
    return RANK.get(module[:2], RANK.get(module[:1]))


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
    if other == ("__version__",) or me == ("__init__",):
        return None
    mine, theirs = rank(me), rank(other)
    if mine is None or theirs is None:
        return "has no layer; add it to LAYERS"
    same_room = me[0] == other[0] and (ROOT / me[0]).is_dir()
    if theirs > mine or (theirs == mine and not same_room):
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
    ray = (
        "cluster",
        "dispatch",
        "head_node",
        "join_cluster",
        "schedulers",
        "search_algorithm",
        "spread_trial",
        "worker",
    )
    pages = ("chart", "comparison_report", "run_report", "scatter")
    assert inside == {
        *(f"reports/page/{name}.py" for name in pages),
        *(f"reports/{name}.py" for name in ("crop_picture", "theme", "study/figures")),
        *(f"components/evaluators/{name}.py" for name in ("_figures", "invariance")),
        *(f"sweeps/ray/{name}.py" for name in ray),
        "distributed/on_ray.py",
    }


@pytest.mark.parametrize(
    ("file", "source", "why"),
    [
        ("registry/registration.py", "from dino_lab.spec.model import Spec", "not below"),
        ("types.py", "import dino_lab.schedule", "not below"),
        ("spec/file.py", "def f():\n    from dino_lab.training import loop", "not below"),
        ("components/losses/a.py", "from dino_lab.components.losses.b import B", "another component"),
        ("components/losses/a.py", "from dino_lab.components.heads._norm import f", "another component"),
        ("components/losses/a.py", "from ._norm import f", "relative"),
        ("components/losses/a.py", "from dino_lab.training.loop import train", "not below"),
        ("protocols.py", "from dino_lab.evaluation.scoring import score", "not below"),
        ("extra.py", "from dino_lab.types import Views", "no layer"),
        ("components/losses/a.py", "from dino_lab.components.losses._norm import f", None),
        ("training/loop.py", "from dino_lab.spec.model import Spec\nfrom dino_lab import __version__", None),
        ("protocols.py", "from dino_lab.evaluation.encoder import Encoder", "not below"),
        ("protocols.py", "from dino_lab.evaluation.outputs import Split", None),
    ],
)
def test_the_test_sees_it(file: str, source: str, why: str | None) -> None:
    whys = [complaint(Path(file), name) for _, name in imported(ast.parse(source))]
    assert whys == [None] * len(whys) if why is None else why in (whys[0] or "")
