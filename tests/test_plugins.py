"""A broken plugin is one line that names its distribution, and costs nobody else anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

from dino_lab.cli.app import main
from dino_lab.errors import SpecError
from dino_lab.registry import ComponentError, parameters, registry
from dino_lab.registry import discovery as names
from dino_lab.registry.plugin_files import load_plugins
from dino_lab.registry.registration import params_of
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
    assert 100 < len(lines) < 190  # ten kinds
    with installed(folder):
        from dino_lab.registry.kinds import FOLDERS

        for kind in FOLDERS:
            (found,) = [source for source in names.sources(kind) if source.origin == "dino-lab-example 0.1.0"]
            assert found.module == "dino_lab_example"


# ------------------------------------------------------------------------------------------ of other people


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a distribution with this entry_points.txt on the path; its metadata may be missing."""

    def put(entry_points: str, metadata: str | None = "Name: odd-plugin\nVersion: 0.1\n") -> Path:
        info = tmp_path / "site" / "odd_plugin-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "entry_points.txt").write_text(entry_points)
        if metadata is not None:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata}")
        monkeypatch.syspath_prepend(info.parent)
        return info.parent

    return put


@pytest.mark.parametrize(
    ("entry_points", "said"),
    [
        ("[dino_lab.losses]\nodd\n", "odd_plugin-0.1.dist-info: its entry_points.txt is malformed"),
        (
            "[console_scripts]\nsome broken line\n",
            "odd_plugin-0.1.dist-info: its entry_points.txt is malformed",
        ),
        (
            "[dino_lab.loss]\nodd = odd\n",
            "odd-plugin 0.1: 'odd' is in 'dino_lab.loss', which is no group; did you mean 'dino_lab.losses'?",
        ),
        (
            "[dino-lab.heads]\nodd = odd\n",
            "odd-plugin 0.1: 'odd' is in 'dino-lab.heads', which is no group; did you mean 'dino_lab.heads'?",
        ),
    ],
)
def test_entry_points_that_cannot_be_used_cost_the_others_nothing(
    entry_points: str, said: str, site: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    site(entry_points)
    assert main(["list", "loss"]) == 0
    shown = capsys.readouterr()
    assert "cross_entropy" in shown.out
    assert shown.err == f"left out: {said}\n"
    assert names.complaints() == [said]
    assert complaint("odd").endswith(f"; {said}")


@pytest.mark.parametrize(
    "value", ["odd_module [fast]", "odd_module:Odd [fast]", "odd_module:Odd", "odd_module"]
)
@pytest.mark.parametrize("metadata", ["Name: odd-plugin\nVersion: 0.1\n", "", None])
def test_entry_points_that_can_be_used(value: str, metadata: str | None, site: Callable[..., Path]) -> None:
    folder = site(f"[dino_lab.losses]\nodd = {value}\n", metadata)
    (folder / "odd_module.py").touch()
    (source,) = [source for source in names.sources("loss") if source.name == "odd"]
    assert source.module == "odd_module"
    assert source.origin == ("odd-plugin 0.1" if metadata else "odd_plugin 0.1")  # else the folder's name
    assert names.obstacle(source) is None
    assert names.plugins() == {source.origin.split()[0]: "0.1"}


class EditableFinder:
    """As setuptools installs one: modules by name, wherever they lie."""

    def __init__(self, mapping: dict[str, Path]) -> None:
        self.mapping = mapping

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        from importlib.machinery import ModuleSpec
        from importlib.util import spec_from_file_location

        if name not in self.mapping:
            return None
        if (file := self.mapping[name]).is_dir():
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(file)]
            return spec
        inside = [str(file.parent)] if file.name == "__init__.py" else None
        return spec_from_file_location(name, file, submodule_search_locations=inside)


@pytest.mark.parametrize("top", ["namespace", "package"])
def test_editable_installs_are_found(top: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("lib/__init__.py", "elsewhere/losses/__init__.py", "elsewhere/losses/far.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("raise SystemExit('imported')")
    holder = tmp_path / "lib" if top == "namespace" else tmp_path / "lib" / "__init__.py"
    mapping = {"dino_quokka": holder, "dino_quokka.losses": tmp_path / "elsewhere" / "losses" / "__init__.py"}
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, EditableFinder(mapping)])
    try:
        for module, there in (("far", True), ("near", False)):
            source = names.Source("loss", "far", f"dino_quokka.losses.{module}", "quokka 0.1")
            assert (names.obstacle(source) is None) == there
        assert "dino_quokka.losses" not in sys.modules
    finally:
        sys.modules.pop("dino_quokka", None)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "one.py")
        text = LOSS.format(name=name).replace("Annotated[float, Field(gt=0)]", f"{name.title()}Scale")
        scale = f"{name.title()}Scale = Annotated[float, Field(gt=0)]\n"
        files[-1].write_text(
            "from __future__ import annotations\n" + text.replace("@register", f"{scale}@register")
        )
    before = set(sys.modules)
    with registry.scratch():
        try:
            load_plugins([*files, files[0]])  # the same file twice is one
            for name, file in zip(("first", "second"), files, strict=True):
                entry = registry.find("loss", name)
                assert entry.where.startswith(str(file))
                assert entry.params(name=name).scale == 1.0
                assert sys.modules[entry.cls.__module__].__file__ == str(file)
        finally:
            for name in set(sys.modules) - before:
                del sys.modules[name]


def test_a_plugin_that_leaves_by_an_exception_of_its_own(install: Install) -> None:
    install("extra", "class Quit(BaseException): pass\nraise Quit('no licence')")
    assert complaint("extra") == "loss 'extra' of dino-extra 0.3 failed to import (Quit: no licence)"


def test_without_docstrings_components_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -OO` runs them."""

    class Bare:
        negatives = cross_entropy = False

        def __init__(self, dim: int) -> None: ...
        def forward(self, student: object, target: object, pairs: object) -> None: ...

    with pytest.raises(TypeError, match="a component has a docstring"):
        params_of(Bare, "loss", "bare")
    flags = SimpleNamespace(optimize=2)
    monkeypatch.setattr(parameters, "sys", SimpleNamespace(flags=flags, modules=sys.modules))
    assert params_of(Bare, "loss", "bare")(name="bare").name == "bare"
