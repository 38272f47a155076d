"""docs/python.md does what it says: its code runs, block after block, in one empty folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import dino_lab

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_has_every_public_function() -> None:
    code = "".join(BLOCKS)
    assert [name for name in dino_lab.__all__ if f"dino_lab.{name}(" not in code] == []


def test_its_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {}
    for i, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/python.md, block {i + 1}", "exec"), session)
    said = capsys.readouterr().out
    assert "--set train.epohcs=3: train.epohcs: unknown key; did you mean 'epochs'?" in said
    assert f"finished {session['outcome'].folder}\n" in said
    assert session["outcome"].folder == Path("runs/small") / session["spec"].hash
    assert (session["result"].folder / "table.md").exists()
