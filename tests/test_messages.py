"""What is printed when something is wrong: one line, fit for a terminal."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest

from dino_lab.cli import app, validate
from dino_lab.cli.app import main
from dino_lab.components.data import _pack_format
from dino_lab.components.evaluators._benchmark import read_layout
from dino_lab.errors import UserError, first_line, printable
from dino_lab.reports.page.evaluator_files import read_evaluator_files


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 日本 'a'", "plain ü 日本 'a'"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\u200b\u202e\u2028\xa0", "\\u200b\\u202e\\u2028\\xa0"),
        ("\udcff", "\\udcff"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_long_text_loses_its_middle() -> None:
    shown = printable("a" * 500_000 + "b" * 500_000)
    assert len(shown) < 2100
    assert shown.startswith("aaa")
    assert shown.endswith("bbb")
    assert "(998000 characters)" in shown


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a\n\x1b[2Jb: no such file"), 2, "a\\n\\x1b[2Jb: no such file"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), 2, f"{'a' * 300}: File name too long"),
        (OSError(errno.EIO, "Input/output error", "x\ny"), 1, "x\\ny: Input/output error"),
        (
            RuntimeError("\x1b[2J"),
            1,
            "internal error: RuntimeError: \\x1b[2J (DINO_LAB_TRACEBACK=1 shows where)",
        ),
    ],
)
def test_every_message_is_one_line(
    error: Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(app, "app", fails)
    assert main(["validate", "x"]) == code
    assert capsys.readouterr().err == f"{said}\n"


@pytest.mark.parametrize("verb", ["validate", "run", "report", "attend", "diff"])
def test_a_name_of_300_letters(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    second = {"attend": ["y"], "diff": ["quickstart"]}.get(verb, [])
    assert main([verb, "a" * 300 + ".yaml", *second]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("word", ["~/x.yaml", "--output=~/x.json"])
def test_the_home_folder(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if word.startswith("--"):
        assert main(["schema", "--evaluation", word]) == 0
        assert (tmp_path / "x.json").exists()
    else:
        assert main(["validate", word]) == 2
        assert capsys.readouterr().err == f"{tmp_path}/x.yaml: no such file\n"
    assert not (tmp_path / "~").exists()


def test_the_advice_of_pytorch_is_not_passed_on() -> None:
    """It is to load a refused checkpoint with weights_only=False, which runs whatever the file says."""
    said = first_line(pickle.UnpicklingError("Weights only load failed ... set `weights_only` to `False`"))
    assert said == "it is damaged, or holds more than tensors and plain values"


def test_the_answer_of_validate_is_fit_to_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a\x1b[31m\nb.yaml"
    file.write_text("extends: quickstart\nname: fine\n")
    validate.validate(file)
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert "a\\x1b[31m\\nb.yaml: OK" in out


def test_files_of_brackets_are_damaged_files(tmp_path: Path) -> None:
    """Each reader of JSON, given 100,000 opening brackets, which are too deep for Python's own."""
    deep = "[" * 100_000
    (tmp_path / "gnd_deep.json").write_text(deep)
    with pytest.raises(UserError, match=r"gnd_deep.json: not a whole JSON file"):
        read_layout(tmp_path)
    (tmp_path / _pack_format.MANIFEST).write_text(deep)
    with pytest.raises(UserError, match=r"is damaged .*; remove the folder and pack again"):
        _pack_format.Manifest.read(tmp_path)
    evaluations = tmp_path / "evaluations" / "000006"
    evaluations.mkdir(parents=True)
    (evaluations / "bad.teacher.deep.json").write_text(deep)
    found = read_evaluator_files(tmp_path)
    assert not found.shown
    assert "bad.teacher.deep.json: maximum recursion depth exceeded" in found.left_out[0]
