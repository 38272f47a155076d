from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator
from torch import nn

from dino_lab.errors import SpecError
from dino_lab.registry import ComponentError, EvaluatorOptions, Flat, ParameterGroup, Registry, registry
from dino_lab.registry.kinds import FOLDERS
from dino_lab.registry.parameters import mappings_in, undescribed
from dino_lab.schedule import Momentum, constant
from dino_lab.spec.file import load_text
from dino_lab.testing.tested_component import METHOD

if TYPE_CHECKING:
    from decimal import Decimal


class Options(BaseModel, frozen=True):
    """Some nested options."""

    amount: float = 1.0


class Good(nn.Module):
    """A loss that keeps its contract.

    More of it.
    """

    def __init__(
        self,
        dim: int,
        *,
        scale: Annotated[float, Field(gt=0)] = 2.0,
        momentum: Momentum = constant(0.9),
        options: Options = Options(),  # noqa: B008
        queue: int,
    ) -> None:
        super().__init__()
        self.given = (dim, scale, momentum, options, queue)

    def forward(self, student: Any, target: Any, pairs: Any) -> Any: ...


class RenamedContext(Good):
    """Its builder would have to guess."""

    def __init__(self, dimension: int) -> None: ...


class TooMuchContext(Good):
    """It asks for what nobody has."""

    def __init__(self, dim: int, device: str = "cpu") -> None: ...


class AnyParameter(Good):
    """It hides its parameters."""

    def __init__(self, dim: int, **options: Any) -> None: ...


class OtherForward(Good):
    """Its forward takes something else."""

    def forward(self, student: Any, target: Any) -> Any: ...


class NoForward:
    """It does nothing."""

    def __init__(self, dim: int) -> None: ...


class NoUpdate(nn.Module):
    """A teacher that stands still."""

    def __init__(self, student: Any) -> None: ...
    def forward(self, views: Any, student: Any, labels: Any) -> Any: ...


class Unresolved(Good):
    """Its annotation is only there for type checkers."""

    def __init__(self, dim: int, *, price: Decimal) -> None: ...


class Undocumented:
    def __init__(self, dim: int) -> None: ...
    def forward(self, student: Any, target: Any, pairs: Any) -> Any: ...


class UndocumentedModule(nn.Module):
    def __init__(self, dim: int) -> None: ...
    def forward(self, student: Any, target: Any, pairs: Any) -> Any: ...


@pytest.mark.parametrize(
    ("kind", "cls", "message"),
    [
        ("loss", RenamedContext, "RenamedContext.__init__: a loss takes (dim), not (dimension)"),
        ("loss", TooMuchContext, "TooMuchContext.__init__: a loss takes (dim), not (dim, device)"),
        ("loss", AnyParameter, "AnyParameter.__init__: a loss takes (dim), not (dim, options)"),
        (
            "loss",
            OtherForward,
            "OtherForward.forward: a loss takes (student, target, pairs), not (student, target)",
        ),
        ("loss", NoForward, "NoForward: a loss has a method forward"),
        ("teacher", NoUpdate, "NoUpdate: a teacher has a method update"),
        ("head", Good, "Good.__init__: a head takes (in_dim), not (dim)"),
        (
            "loss",
            Unresolved,
            "Unresolved.__init__: the type 'Decimal' is not there at run time; "
            "import it outside `if TYPE_CHECKING`",
        ),
        (
            "loss",
            Undocumented,
            "Undocumented: a component has a docstring; it is what `list` and the schema show",
        ),
        pytest.param(
            "loss",
            UndocumentedModule,
            "UndocumentedModule: a component has a docstring; it is what `list` and the schema show",
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_contract_is_told_at_registration(kind: str, cls: type, message: str) -> None:
    mine = Registry()
    with pytest.raises(TypeError) as caught:
        mine.register(kind, "broken")(cls)
    assert str(caught.value) == message
    assert "broken" not in mine.names(kind)


def test_parameters_are_those_after_the_star() -> None:
    mine = Registry()
    assert mine.register("loss", "good")(Good) is Good
    entry = mine.find("loss", "good")
    assert set(entry.params.model_fields) == {"name", "scale", "momentum", "options", "queue"}
    assert entry.params.__doc__ == "A loss that keeps its contract.\n\nMore of it."
    path, line = entry.where.rsplit(":", 1)
    assert Path(path) == Path(__file__)
    assert Path(__file__).read_text().splitlines()[int(line) - 1] == "class Good(nn.Module):"


def test_build_hands_over_context_and_parameters() -> None:
    mine = Registry()
    mine.register("loss", "good")(Good)
    given = {"name": "good", "queue": 3, "momentum": 0.5, "options": {"amount": 4}}
    params = mine.find("loss", "good").params.model_validate(given)
    assert mine.build("loss", params, 7).given == (7, 2.0, constant(0.5), Options(amount=4), 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"queue": 3, "scale": 0}, "greater than 0"),
        ({"queue": 3, "momentum": 2}, "must be at most 1"),
        ({"queue": 3, "size": 1}, "Extra inputs"),
        ({"queue": 3, "dim": 1}, "Extra inputs"),
        ({"queue": 3, "scale": float("inf")}, "finite"),
        ({}, "Field required"),
    ],
    ids=str,
)
def test_parameters_are_checked(given: dict[str, Any], message: str) -> None:
    mine = Registry()
    mine.register("loss", "good")(Good)
    with pytest.raises(ValidationError, match=message):
        mine.find("loss", "good").params.model_validate({"name": "good", **given})


def test_a_name_is_registered_once() -> None:
    mine = Registry()
    mine.register("loss", "good")(Good)
    with pytest.raises(ComponentError) as caught:
        mine.register("loss", "good")(Good)
    where = mine.find("loss", "good").where
    assert str(caught.value) == f"loss 'good' of {where} is already registered by {where}"


def test_scratch_forgets() -> None:
    with registry.scratch():
        registry.register("loss", "good")(Good)
        assert "good" in registry.names("loss")
    assert "good" not in registry.names("loss")


def test_scratch_keeps_built_ins_that_are_imported_inside() -> None:
    with registry.scratch():
        inside = registry.find("loss", "mse")
    assert registry.find("loss", "mse").cls is inside.cls


def test_an_unknown_name_gets_a_suggestion() -> None:
    names = ", ".join(registry.names("loss"))
    with pytest.raises(ComponentError) as caught:
        registry.find("loss", "cross_entrpy")
    assert str(caught.value) == (
        f"no loss is called 'cross_entrpy'; did you mean 'cross_entropy'? (there are: {names})"
    )


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_file_registers_its_name(kind: str) -> None:
    built_in = [source for source in registry.sources(kind) if source.origin == "built-in"]
    assert built_in
    for source in built_in:
        entry = registry.find(kind, source.name)
        assert (entry.cls.__module__, entry.params.model_fields["name"].annotation.__args__) == (
            source.module,
            (source.name,),
        )


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put distributions of one module on the path, entry points included; undone after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    modules: list[str] = []

    def put(distribution: str, version: str, code: str, name: str, group: str = "dino_lab.losses") -> None:
        module = f"{distribution.replace('-', '_')}_module"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")

    with registry.scratch():
        yield put
    for module in modules:
        sys.modules.pop(module, None)


PLUGIN = '''\
from dino_lab.registry import register

@register("loss", "{name}")
class Extra:
    """A loss from elsewhere."""

    negatives = cross_entropy = False

    def __init__(self, dim: int, *, scale: float = 1.0) -> None: ...
    def forward(self, student, target, pairs): ...
'''


def test_a_plugin_is_found_by_its_entry_point(install: Install) -> None:
    install("dino-extra", "1.2", PLUGIN.format(name="extra"), "extra")
    (source,) = [source for source in registry.sources("loss") if source.name == "extra"]
    assert (source.module, source.origin) == ("dino_extra_module", "dino-extra 1.2")
    assert "dino_extra_module" not in sys.modules
    assert registry.find("loss", "extra").cls.__name__ == "Extra"
    assert "extra" in registry.names("loss")
    assert "extra" not in registry.names("head")


def test_a_plugin_that_fails_to_import_is_named_with_its_distribution(install: Install) -> None:
    install("dino-broken", "0.3", "import nowhere_at_all\n", "broken")
    assert "broken" in registry.names("loss")
    assert registry.find("loss", "mse").name == "mse"
    with pytest.raises(ComponentError) as caught:
        registry.find("loss", "broken")
    assert str(caught.value) == (
        "loss 'broken' of dino-broken 0.3 failed to import "
        "(ModuleNotFoundError: No module named 'nowhere_at_all')"
    )


def test_a_plugin_that_breaks_the_contract_is_named_with_its_distribution(install: Install) -> None:
    install("dino-wrong", "0.3", PLUGIN.format(name="wrong").replace("dim:", "width:"), "wrong")
    with pytest.raises(ComponentError) as caught:
        registry.find("loss", "wrong")
    assert str(caught.value) == (
        "loss 'wrong' of dino-wrong 0.3 failed to import "
        "(TypeError: Extra.__init__: a loss takes (dim), not (width))"
    )


def test_a_plugin_must_register_what_it_promises(install: Install) -> None:
    install("dino-extra", "1.2", PLUGIN.format(name="other"), "promised")
    with pytest.raises(ComponentError) as caught:
        registry.find("loss", "promised")
    assert str(caught.value) == (
        "dino_extra_module of dino-extra 1.2 was imported, but registers no loss 'promised'"
    )


def test_a_plugin_cannot_take_the_name_of_a_built_in(install: Install) -> None:
    install("dino-extra", "1.2", PLUGIN.format(name="mse"), "mse")
    with pytest.raises(ComponentError) as caught:
        registry.find("loss", "mse")
    assert str(caught.value) == (
        "loss 'mse' has two owners: built-in (dino_lab.components.losses.mse) and "
        "dino-extra 1.2 (dino_extra_module); uninstall one"
    )
    assert registry.find("loss", "cross_entropy").name == "cross_entropy"


def test_two_plugins_with_one_name_are_refused(install: Install) -> None:
    for distribution in ("dino-one", "dino-two"):
        install(distribution, "1.0", PLUGIN.format(name="extra"), "extra")
    with pytest.raises(ComponentError, match="'extra' has two owners: dino-") as caught:
        registry.find("loss", "extra")
    for distribution in ("dino-one 1.0 (dino_one_module)", "dino-two 1.0 (dino_two_module)"):
        assert distribution in str(caught.value)


def test_a_class_of_the_user_cannot_take_the_name_of_a_built_in() -> None:
    """Whether or not the built-in has been imported: else the last import would decide what is trained."""
    mine = Registry()
    with pytest.raises(ComponentError, match=r"loss 'mse' of .* is already registered by built-in"):
        mine.register("loss", "mse")(Good)


class Noise(ParameterGroup):
    """Noise of a plugin's own."""

    amount: float = Field(0.1, ge=0, le=1, description="standard deviation, in grey levels")
    kind: Literal["white", "pink"] = Field("white", description="its spectrum")

    @model_validator(mode="after")
    def _pink_is_weak(self) -> Self:
        if self.kind == "pink" and self.amount > 0.5:
            raise ValueError("pink noise of more than 0.5 hides everything")
        return self


class Noisy(Good):
    """A loss with a group of its own, and one of this package."""

    def __init__(
        self,
        dim: int,
        *,
        scale: float = 1.0,
        noise: Flat[Noise] = Noise(amount=0.3),  # noqa: B008
        options: Flat[EvaluatorOptions],
        nested: Annotated[Noise, Field(description="the same group, not flat")] = Noise(),  # noqa: B008
    ) -> None:
        self.given = (scale, noise, options, nested)


def noisy(**given: Any) -> Any:
    mine = Registry()
    mine.register("loss", "noisy")(Noisy)
    params = mine.find("loss", "noisy").params.model_validate({"name": "noisy", **given})
    return mine.build("loss", params, 7).given


def test_a_group_is_flat_in_a_spec_and_whole_in_the_constructor() -> None:
    assert noisy() == (1.0, Noise(amount=0.3), EvaluatorOptions(), Noise(amount=0.1))
    assert noisy(amount=0.2, of="student", scale=2.0, nested={"kind": "pink"}) == (
        2.0,
        Noise(amount=0.2),
        EvaluatorOptions(of="student"),
        Noise(kind="pink"),
    )


def test_keys_of_a_group_stand_where_the_argument_stands() -> None:
    mine = Registry()
    mine.register("loss", "noisy")(Noisy)
    model = mine.find("loss", "noisy").params
    assert list(model.model_fields) == ["name", "scale", "amount", "kind", "every", "of", "nested"]
    schema = model.model_json_schema()["properties"]
    assert schema["amount"] == {
        "default": 0.3,
        "description": "standard deviation, in grey levels",
        "maximum": 1,
        "minimum": 0,
        "title": "Amount",
        "type": "number",
    }
    written = model.model_validate({"name": "noisy"}).model_dump(mode="json")
    assert written == {
        "name": "noisy",
        "scale": 1.0,
        "amount": 0.3,
        "kind": "white",
        "every": 1,
        "of": "teacher",
        "nested": {"amount": 0.1, "kind": "white"},
    }
    assert Noise.model_fields["amount"].default == 0.1


@pytest.mark.parametrize(
    ("given", "place", "message"),
    [
        ({"amount": 2}, ("amount",), "less than or equal to 1"),
        ({"every": 0}, ("every",), "greater than 0"),
        ({"noise": {"amount": 1}}, ("noise",), "Extra inputs"),
        ({"kind": "pink", "amount": 0.6}, (), "pink noise of more than 0.5 hides everything"),
        ({"nested": {"kind": "pink", "amount": 0.6}}, ("nested",), "pink noise of more than 0.5"),
    ],
    ids=str,
)
def test_keys_of_a_group_are_checked(given: dict[str, Any], place: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        noisy(**given)
    (error,) = caught.value.errors()
    assert error["loc"] == place
    assert message in error["msg"]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("kind: pink, amount: 0.6", "loss: pink noise of more than 0.5 hides everything"),
        ("amount: 2", "loss.amount: must be at most 1, got 2"),
        (
            "amuont: 0.2",
            "loss.amuont: unknown key; did you mean 'amount'? "
            "(accepted: scale, amount, kind, every, of, nested)",
        ),
    ],
)
def test_a_spec_says_what_is_wrong_with_a_group_of_a_plugin(keys: str, line: str) -> None:
    with registry.scratch():
        registry.register("loss", "noisy")(Noisy)
        with pytest.raises(SpecError) as caught:
            load_text(METHOD, "method.yaml", [f"loss={{name: noisy, {keys}}}"], registry)
    assert str(caught.value).split("}: ", 1)[1] == line


class Twice(Good):
    """Two groups want one key."""

    def __init__(self, dim: int, *, amount: float = 0.0, noise: Flat[Noise] = Noise()) -> None: ...  # noqa: B008


class NotAGroup(Good):
    """Its group is none."""

    def __init__(self, dim: int, *, noise: Flat[Options]) -> None: ...  # type: ignore[type-var]


class Named(Good):
    """It has a second name."""

    def __init__(self, dim: int, *, name: str) -> None: ...


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Twice, "Twice.__init__: the key 'amount' stands twice; rename one"),
        (Named, "Named.__init__: the key 'name' stands twice; rename one"),
        (NotAGroup, "NotAGroup.__init__: noise: Flat[...] takes a class derived from ParameterGroup"),
    ],
)
def test_a_group_that_cannot_be_flat_is_told_at_registration(cls: type, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        Registry().register("loss", "broken")(cls)
    assert str(caught.value) == message


def test_what_has_no_description_is_found() -> None:
    class Inner(BaseModel):
        depth: int = Field(1, description="Depth.")
        width: int = Field(1, description="of a layer, in channels")

    class Outer(BaseModel):
        name: str
        inner: Inner | None = Field(None, description="a mapping")
        many: tuple[Inner, ...] = Field((), description="the many")
        beta: float = Field(0.5, description="the weight of the second term")
        gamma: float = 0.5

    assert undescribed(Outer) == ["many", "gamma", "Inner.depth"]


class Tree(BaseModel):
    """A mapping that may hold itself."""

    left: Tree | None = Field(None, description="branch")
    leaf: Options = Field(Options(), description="end of a branch")


def test_mappings_are_found_at_any_depth_and_once() -> None:
    assert mappings_in([Tree]) == [Tree, Options]
    assert undescribed(Tree) == ["Options.amount"]
