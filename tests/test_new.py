"""What `dino-lab new` writes: a plugin that is found, passes its own test and is in good style."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dino_lab.cli.app import main
from dino_lab.registry.kinds import FOLDERS
from dino_lab.testing import installed

ROOT = Path(__file__).parents[1]


def python(*arguments: object, environment: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    words = [sys.executable, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new plugin of each kind."""
    folder = tmp_path_factory.mktemp("plugins")
    for kind in FOLDERS:
        assert main(["new", f"my_{kind}", "--kind", kind, "--into", str(folder)]) == 0
    return folder


def test_a_new_plugin_of_each_kind_is_listed_and_passes_its_test(plugins: Path) -> None:
    with installed(*plugins.iterdir()) as environment:
        listed = python("-m", "dino_lab", "list", environment=environment, cwd=plugins)
        words = [line.split() for line in listed.splitlines()]
        for kind in FOLDERS:
            assert [kind, f"my_{kind}", f"dino-lab-my-{kind}", "0.1.0"] in words
        tests = ["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib"]
        said = python(*tests, plugins, environment=environment | {"OMP_NUM_THREADS": "1"}, cwd=plugins)
        assert f"{len(FOLDERS)} passed" in said


def test_it_is_in_good_style(plugins: Path) -> None:
    config = ["--config", ROOT / "pyproject.toml", "--no-cache"]
    python("-m", "ruff", "format", "--check", *config, plugins)
    python("-m", "ruff", "check", *config, "--extend-per-file-ignores", "test_*.py:D", plugins)


def test_it_consists_of_five_files(plugins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plugins / "dino-lab-my-loss"
    files = sorted(
        str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in (".py", ".toml", ".md")
    )
    assert files == [
        "README.md",
        "dino_lab_my_loss/__init__.py",
        "dino_lab_my_loss/my_loss.py",
        "pyproject.toml",
        "tests/test_my_loss.py",
    ]
    assert not [file for file in files if "$" in (folder / file).read_text()]


def test_the_class_is_named_after_its_kind(tmp_path: Path) -> None:
    assert main(["new", "tensor", "--kind", "loss", "--into", str(tmp_path)]) == 0
    assert (
        "class TensorLoss(nn.Module)" in (tmp_path / "dino-lab-tensor/dino_lab_tensor/tensor.py").read_text()
    )


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("Huber", "loss", "'Huber' is no name for a component; it should be at most 40 small letters"),
        ("my-loss", "loss", "is no name for a component"),
        ("_loss", "loss", "is no name for a component"),
        ("loss_", "loss", "is no name for a component"),
        ("2nd", "loss", "is no name for a component"),
        ("lambda", "loss", "is no name for a component"),
        ("../loss", "loss", "is no name for a component"),
        ("a.b", "loss", "is no name for a component"),
        ("", "loss", "is no name for a component"),
        ("x" * 41, "loss", "is no name for a component"),
        ("mse", "loss", "there is a loss called 'mse' already (built-in); take another name"),
        ("huber", "losses", "no kind is called 'losses' (there are: data, augment, "),
    ],
)
def test_a_wrong_name_gets_one_line(
    name: str, kind: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", name, "--kind", kind, "--into", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dino-lab-huber").mkdir()
    (tmp_path / "dino-lab-huber" / "README.md").write_text("mine")
    assert main(["new", "huber", "--kind", "loss", "--into", str(tmp_path)]) == 2
    assert "is there already; take another name, or --into another folder" in capsys.readouterr().err
    assert [file.read_text() for file in (tmp_path / "dino-lab-huber").rglob("*")] == ["mine"]


def test_a_file_in_the_way_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["new", "huber", "--kind", "loss", "--into", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
