"""A broken plugin is one line that names its distribution, and costs nobody else anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest

from dino_lab.cli.app import main
from dino_lab.errors import SpecError
from dino_lab.registry import ComponentError, registry
from dino_lab.registry import discovery as names
from dino_lab.spec.compose import compose
from dino_lab.spec.file import load
from dino_lab.spec.json_schema import json_schema
from dino_lab.spec.nodes import data
from dino_lab.testing import installed

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"

LOSS = '''\
from typing import Annotated

from pydantic import Field
from torch import nn

from dino_lab.registry import register

@register("loss", "{name}")
class Extra(nn.Module):
    """Half the squared distance."""

    negatives = cross_entropy = False

    def __init__(
        self, dim: int, *, scale: Annotated[float, Field(gt=0, description="of nothing")] = 1.0
    ) -> None:
        super().__init__()

    def forward(self, student, target, pairs):
        return (student[0] - target[0]).square().mean() / 2
'''

Install = Callable[..., dict[str, str]]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Put a plugin of one loss on the path; gives the environment of other processes that see it."""
    with ExitStack() as stack:

        def put(
            name: str, code: str | None = None, *, module: str = "", needs: str = "dino-lab"
        ) -> dict[str, str]:
            folder = tmp_path / f"dino-{name}"
            folder.mkdir()
            module = module or f"dino_{name}"
            text = f"[project]\nname = 'dino-{name}'\nversion = '0.3'\ndependencies = ['{needs}']\n"
            text += f"[project.entry-points.'dino_lab.losses']\n{name} = '{module}'\n"
            (folder / "pyproject.toml").write_text(text)
            if code is not None:
                (folder / f"dino_{name}.py").write_text(code)
            found = stack.enter_context(installed(folder))
            os.environ["PYTHONPATH"] = found["PYTHONPATH"]
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            yield put


def complaint(name: str) -> str:
    with pytest.raises(ComponentError) as caught:
        registry.find("loss", name)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise RuntimeError('one\\n  two')", "RuntimeError: one two"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError: invalid syntax (dino_extra.py, line 1)"),
        (LOSS.format(name="extra") + "\n1 / 0", "ZeroDivisionError: division by zero"),
        (
            LOSS.format(name="extra").replace("dim:", "width:"),
            "TypeError: Extra.__init__: a loss takes (dim), not (width)",
        ),
        (
            LOSS.format(name="extra").replace(
                'scale: Annotated[float, Field(gt=0, description="of nothing")]', "scale"
            ),
            "TypeError: Extra.__init__: scale has no type; what YAML may set has one, such as "
            "Annotated[float, Field(gt=0)]",
        ),
    ],
)
def test_a_plugin_that_fails_to_import(code: str, reason: str, install: Install) -> None:
    install("extra", code)
    for _ in range(2):  # the second time as well: nothing half-done stays behind
        assert complaint("extra") == f"loss 'extra' of dino-extra 0.3 failed to import ({reason})"
    assert registry.find("loss", "mse").name == "mse"


@pytest.mark.parametrize("taken", ["mse", "cross_entropy"])
def test_a_plugin_that_registers_a_taken_name(taken: str, install: Install) -> None:
    install("extra", LOSS.format(name=taken))
    said = complaint("extra")
    assert said.startswith("loss 'extra' of dino-extra 0.3 failed to import (ComponentError: ")
    assert f"loss '{taken}' of " in said
    assert " is already registered by " in said
    assert registry.find("loss", taken).cls.__module__.startswith(names.BUILT_IN)


def test_a_plugin_that_registers_the_name_of_another(install: Install) -> None:
    install("other", LOSS.format(name="other"))
    install("extra", LOSS.format(name="other"))
    assert "is already registered by dino-other 0.3 (dino_other)" in complaint("extra")
    assert registry.find("loss", "other").cls.__module__ == "dino_other"


@pytest.mark.parametrize(
    "needs", ["dino-lab>=9", "dino_lab >= 9", "Dino.Lab>=9", "dino-lab>=9; python_version>'3'"]
)
def test_a_plugin_that_wants_a_newer_dino_lab(needs: str, install: Install) -> None:
    install("extra", LOSS.format(name="extra"), needs=needs.replace("'", '"'))
    assert complaint("extra") == (
        f"loss 'extra' of dino-extra 0.3 needs dino-lab>=9, and this is dino-lab {names.__version__}"
    )
    assert "dino_extra" not in sys.modules


@pytest.mark.parametrize(
    "needs",
    [
        "dino-lab",
        "dino-lab>=0.1",
        "dino-lab[dev]>=0.0.1",
        "dino-lab-glom>=9",
        "dino-lab>=9; python_version<'3'",
    ],
)
def test_a_plugin_that_is_content(needs: str, install: Install) -> None:
    install("extra", LOSS.format(name="extra"), needs=needs.replace("'", '"'))
    assert registry.find("loss", "extra").name == "extra"


@pytest.mark.parametrize("module", ["dino_gone", "dino_extra.inner", "not a module!", "a..b"])
def test_a_plugin_whose_module_is_not_there(module: str, install: Install) -> None:
    install("extra", LOSS.format(name="extra"), module=module)
    assert complaint("extra") == (
        f"loss 'extra' of dino-extra 0.3 names a module that is not there: {module}"
    )


def test_a_module_in_a_package_is_found_without_importing_the_package(
    tmp_path: Path, install: Install
) -> None:
    package = tmp_path / "dino-extra" / "dino_package"
    install("extra", module="dino_package.inner")
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "inner.py").touch()
    (source,) = [source for source in names.sources("loss") if source.name == "extra"]
    assert names.obstacle(source) is None
    assert "dino_package" not in sys.modules


def test_a_name_with_two_owners_costs_its_neighbours_nothing(install: Install, tmp_path: Path) -> None:
    install("extra", LOSS.format(name="extra"))
    second = LOSS.format(name="extra").replace("class Extra", "class Second")
    install("other", LOSS.format(name="other") + second)
    project = tmp_path / "dino-other" / "pyproject.toml"
    project.write_text(project.read_text() + "extra = 'dino_other'\n")
    with installed(project.parent):
        assert complaint("extra").startswith("loss 'extra' has two owners: ")
        assert registry.find("loss", "other").cls.__module__ == "dino_other"
        assert complaint("extra").startswith("loss 'extra' has two owners: ")


# ------------------------------------------------------------------------------------------ list


@pytest.fixture
def five(install: Install) -> dict[str, str]:
    """Three good plugins, one that fails to import, and one that wants a newer dino-lab."""
    for name in ("one", "two", "three"):
        install(name, LOSS.format(name=name))
    install("broken", "import nowhere_at_all")
    return install("newer", LOSS.format(name="newer"), needs="dino-lab>=9")


def run(environment: dict[str, str], *words: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "dino_lab", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_list_marks_what_it_knows_without_importing(five: dict[str, str]) -> None:
    code, lines = run(five, "list", "loss")
    assert code == 0
    said = {line.split()[1]: line.split()[2:] for line in lines}
    assert said["mse"] == ["built-in"]
    assert said["one"] == ["dino-one", "0.3"]
    assert said["broken"] == ["dino-broken", "0.3"]  # only an import can tell
    assert " ".join(said["newer"]).startswith("dino-newer 0.3 broken: needs dino-lab>=9")


def test_list_check_finds_the_rest(five: dict[str, str]) -> None:
    code, lines = run(five, "list", "--check")
    assert code == 1
    assert lines[-1] == f"2 of {len(lines) - 1} failed"
    said = {tuple(line.split()[:2]): line for line in lines}
    assert said["loss", "one"].endswith(" ok")
    assert said["loss", "broken"].endswith(
        "loss 'broken' of dino-broken 0.3 failed to import (ModuleNotFoundError: No module named 'nowhere_at_all')"
    )
    assert "loss 'newer' of dino-newer 0.3 needs dino-lab>=9" in said["loss", "newer"]


def test_list_marks_a_name_with_two_owners(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("mse", LOSS.format(name="mse"))
    assert main(["list", "loss"]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if "broken" in line]
    assert len(marked) == 2
    assert all("loss" in line and "mse" in line and "two owners" in line for line in marked)


def test_list_imports_no_plugin(five: dict[str, str]) -> None:
    code = (
        "import sys; from dino_lab.cli.app import main; main(['list'])\n"
        "found = {'torch', 'dino_one', 'dino_broken', 'dino_newer'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=five, stdout=subprocess.DEVNULL)


def test_what_was_installed_meanwhile_is_seen(install: Install) -> None:
    assert "extra" not in registry.names("loss")
    install("extra", LOSS.format(name="extra"))
    assert "extra" in registry.names("loss")


# ------------------------------------------------------------------------------------------ specs and editors


@pytest.mark.parametrize(
    "name",
    [
        "evil",
        "evil.py",
        "./evil",
        "../evil",
        "evil:main",
        "os.system",
        "dino_lab.components.losses.mse",
        "_pairs",
        "",
        "mse ",
    ],
)
def test_a_spec_cannot_load_what_is_not_installed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('loaded')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    registry.find("loss", "mse")
    before = set(sys.modules)
    with pytest.raises(SpecError, match="no loss is called") as caught:
        load(QUICKSTART, [f'loss={{name: "{name}"}}'])
    assert "\n" not in str(caught.value)
    assert not {module for module in set(sys.modules) - before if "evil" in module}


@pytest.mark.parametrize(
    ("loss", "messages"),
    [
        ("{name: extra}", []),
        ("{name: extra, scale: 2}", []),
        ("{name: extra, scale: 0}", ["0 is less than or equal to the minimum of 0"]),
        ("{name: extra, scale: much}", ["'much' is not of type 'number'"]),
        ("{name: extra, sclae: 2}", ["Additional properties are not allowed ('sclae' was unexpected)"]),
        ("{name: broken, what: ever}", []),  # its parameters are not known
        ("{name: extar}", ["'extar' is not one of"]),
    ],
)
def test_editors_know_plugins(loss: str, messages: list[str], install: Install) -> None:
    install("extra", LOSS.format(name="extra"))
    install("broken", "import nowhere_at_all")
    schema = json_schema(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    text = QUICKSTART.read_text().replace("{name: cross_entropy, temperature: 0.1}", loss)
    node = compose(text, "x.yaml")
    assert node is not None
    found = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(data(node))]
    assert len(found) == len(messages)
    assert all(a.startswith(b) for a, b in zip(found, messages, strict=True))
    assert schema["$defs"]["loss.extra"]["description"] == "Half the squared distance."


def test_show_says_where_a_plugin_comes_from(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("extra", LOSS.format(name="extra"))
    assert main(["show", "loss", "extra"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["loss: extra", "dino-extra 0.3"]
    assert lines[2].endswith("dino_extra.py:8")
    assert lines[4] == "Half the squared distance."
    assert lines[6].split() == ["scale", "number", ">", "0", "1", "of", "nothing"]


def test_list_check_names_parameters_without_a_description(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("extra", LOSS.format(name="extra").replace(', description="of nothing"', ""))
    assert main(["list", "loss", "--check"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " extra " in line]
    assert line.endswith(" ok, but without a description: scale")


# ------------------------------------------------------------------------------------------ the example


def test_the_example_is_small() -> None:
    folder = ROOT / "plugins" / "dino-lab-example"
    lines = [line for file in folder.rglob("*.py") for line in file.read_text().splitlines() if line.strip()]
    assert 100 < len(lines) < 170
    with installed(folder):
        from dino_lab.registry.kinds import FOLDERS

        for kind in FOLDERS:
            (found,) = [source for source in names.sources(kind) if source.origin == "dino-lab-example 0.1.0"]
            assert found.module == "dino_lab_example"
