"""docs/add-a-component.md does what it says: its code runs, its commands print what it shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dino_lab.cli.app import main
from dino_lab.testing import check_component, installed

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-component.md").read_text()
MOST_LINES = 25


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `dino-lab new` writes, with the page's code in it."""
    folder = tmp_path_factory.mktemp("page")
    assert main(["new", "huber", "--kind", "loss", "--into", str(folder)]) == 0
    (folder / "dino-lab-huber/dino_lab_huber/huber.py").write_text(blocks("python")[0])
    return folder / "dino-lab-huber"


@pytest.fixture
def environment(plugin: Path) -> Iterator[dict[str, str]]:
    with installed(plugin) as environment:
        yield environment


def test_a_loss_is_at_most_25_lines_and_one_entry_point(plugin: Path) -> None:
    lines = blocks("python")[0].splitlines()
    assert len(lines) <= MOST_LINES
    assert f"{len(lines)} lines of one file and one entry point" in PAGE
    (points,) = blocks("toml")
    assert len(points.splitlines()) == 2
    assert points in (plugin / "pyproject.toml").read_text()


@pytest.mark.usefixtures("environment")
def test_it_keeps_its_contract() -> None:
    check_component("loss", "huber")


def test_its_test_is_that_of_the_page(plugin: Path) -> None:
    written = (plugin / "tests" / "test_huber.py").read_text()
    assert blocks("python")[1] in written


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: block.splitlines()[0])
def test_commands_print_what_the_page_shows(
    block: str,
    plugin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, *shown = block.splitlines()
    words = shlex.split(command.removeprefix("$ "))
    assert words[0] == "dino-lab"
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    with installed(*[] if words[1] == "new" else [plugin]):
        code = main(words[1:])
    said = [line.split() for line in "".join(capsys.readouterr()).splitlines()]
    missing = [line for line in shown if line != "..." and line.split() not in said]
    assert not missing, said
    assert code == (2 if ": loss." in block else 0)
