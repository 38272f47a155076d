"""Experiments that come with the package go by name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from dino_lab.cli.app import main
from dino_lab.spec import shipped
from dino_lab.spec.file import load, load_text

ROOT = Path(__file__).parents[2]


def test_names() -> None:
    names = list(shipped.experiments())
    assert names.index("quickstart") < names.index("methods/byol")
    assert set(names) == {
        file.relative_to(ROOT / "experiments").with_suffix("").as_posix()
        for file in (ROOT / "experiments").rglob("*.yaml")
    }
    assert shipped.find("byol") == shipped.find("methods/byol") == ROOT / "experiments/methods/byol.yaml"
    assert shipped.find("quikstart") is None


def test_a_name_that_two_have_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.yaml").touch()
    monkeypatch.setattr(
        shipped, "experiments", lambda: {f"{f}/same": tmp_path / f / "same.yaml" for f in "ab"}
    )
    assert shipped.find("same") is None
    assert shipped.find("b/same") == tmp_path / "b" / "same.yaml"


def test_the_wheel_has_them_inside_the_package() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {"experiments": "dino_lab/experiments"}
    assert Path(shipped.__file__).parents[1].name == "dino_lab"


def test_inside_the_package_they_are_found_where_there_is_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "dino_lab" / "spec" / "shipped.py"))
    (tmp_path / "experiments").mkdir()  # of somebody else
    assert shipped._folder() == tmp_path / "dino_lab" / "experiments"


def test_a_file_may_extend_one_by_name(tmp_path: Path) -> None:
    text = "extends: byol\nseed: 5\n"
    assert load_text(text, str(tmp_path / "mine.yaml")).spec.loss.name == "mse"
    (tmp_path / "byol").write_text((ROOT / "experiments" / "quickstart.yaml").read_text())
    assert load_text(text, str(tmp_path / "mine.yaml")).spec.loss.name == "cross_entropy"  # a file goes first


def test_verbs_take_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "quickstart"]) == 0
    assert f"{ROOT / 'experiments' / 'quickstart.yaml'}: OK" in capsys.readouterr().out
    assert main(["diff", "quickstart", "methods/dino_koleo"]) == 0
    assert "regularizers.0" in capsys.readouterr().out
    assert load(Path(shipped.find("simsiam") or "")).spec.name == "simsiam"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("quikstart", "and no experiment that comes with dino-lab; did you mean 'quickstart'?"),
        ("experiments/quickstart.yaml", "'quickstart', without folder and suffix, comes with dino-lab"),
        ("other.yaml", "other.yaml: no such file"),
    ],
)
def test_what_is_not_there(
    word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["validate", word]) == 2
    assert said in capsys.readouterr().err


def test_list_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "experiments"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == shipped.experiments().keys()
    assert lines["quickstart"].endswith("no GPU, under three minutes on two cores")
