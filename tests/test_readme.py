"""README.md says what is true: its specs, its component, its links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dino_lab.registry import registry
from dino_lab.registry.plugin_files import load_plugins
from dino_lab.spec.file import load

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text()
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("block", "file"), [(0, "quickstart.yaml"), (1, "methods/byol.yaml")])
def test_specs_are_those_of_the_files(block: int, file: str, tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(blocks("yaml")[0])
    written = tmp_path / file
    written.parent.mkdir(exist_ok=True)
    written.write_text(blocks("yaml")[block])
    assert load(written).spec == load(ROOT / "experiments" / file).spec


def test_the_component_is_hubers(tmp_path: Path) -> None:
    (code,) = blocks("python")
    (tmp_path / "huber.py").write_text(code)
    with registry.scratch():
        load_plugins([tmp_path / "huber.py"])
        params = registry.find("loss", "huber").params
        assert params.model_fields["delta"].description
        loss = registry.build("loss", params(name="huber", delta=0.5), 1)
        distances = torch.tensor([[[0.25], [2.0]]])  # 0.25^2 / 2, and 0.5 (2 - 0.25)
        value = loss(distances, torch.zeros(1, 2, 1), torch.ones(1, 1, dtype=torch.int8))
        assert value.item() == pytest.approx((0.03125 + 0.875) / 2)


def test_links_lead_to_files_and_to_every_page() -> None:
    linked = {link for link in LINK.findall(PAGE) if not link.startswith("http")}
    assert [link for link in linked if not (ROOT / link).exists()] == []
    pages = {str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md")}
    assert pages - linked == set()


def test_the_overview_lists_every_page() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    pages = {str(file.relative_to(ROOT / "docs")) for file in (ROOT / "docs").rglob("*.md")}
    assert pages - linked == {"index.md"}
