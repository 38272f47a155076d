"""The plugin in plugins/, as it is seen when it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "plugins" / "dino-lab-glom"
SPECS = sorted((PLUGIN / "experiments").rglob("*.yaml"))


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment with the plugin, in which its metadata lie as an installer would have left them."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    name, version = project["name"], "1.2.3"
    info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    points = [
        line
        for group, named in project["entry-points"].items()
        for line in [f"[{group}]", *(f"{point} = {module}" for point, module in named.items())]
    ]
    (info / "entry_points.txt").write_text("\n".join(points) + "\n")
    path = os.pathsep.join(map(str, [tmp_path, PLUGIN, ROOT]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def dino_lab(environment: dict[str, str], *arguments: object) -> str:
    words = [sys.executable, "-m", "dino_lab", *map(str, arguments)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("kind", "name"), [("backbone", "glom"), ("evaluator", "islands")])
def test_its_components_are_listed(kind: str, name: str, installed: dict[str, str]) -> None:
    listed = [line.split() for line in dino_lab(installed, "list", kind).splitlines()]
    assert [kind, name, "dino-lab-glom", "1.2.3"] in listed
    assert any(line[2] == "built-in" for line in listed)


def test_its_experiments_are_valid(installed: dict[str, str]) -> None:
    assert SPECS
    for spec in SPECS:
        said = dino_lab(installed, "validate", spec)
        assert said.startswith(f"{spec}: OK")
        assert "evaluator: islands/" in said
