"""Optional abilities of components: what a class has, what is refused, and what an evaluator may need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, ClassVar, Protocol

import pytest
import torch
from torch import Tensor, nn

from dino_lab import protocols
from dino_lab.building.check import check, check_needs
from dino_lab.errors import Misfit
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.protocols import (
    ABILITIES,
    PROTOCOLS,
    Backbone,
    ChecksClasses,
    ChecksPairs,
    ChecksSize,
    ComparesLabels,
    CropsShares,
    GivesAnnotations,
    GivesAnswer,
    GivesFiles,
    GivesFingerprint,
    GivesFloors,
    GivesLabels,
    GivesMeasures,
    GivesOutputs,
    GivesReport,
    GivesSegments,
    GivesShares,
    GivesTokens,
    GivesTokenTargets,
    HasClassNames,
    HasLastLayer,
    MayGiveWhole,
    MayLackLabels,
    NeedsAbilities,
    NeedsRepresentations,
    SharedData,
    ability,
    class_names,
    needs_of,
)
from dino_lab.registry import Registry, registry
from dino_lab.types import BackboneOutput, Look


class Plain(nn.Module):
    """Features are the mean colour."""

    dim = 3

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class WithTokens(Plain):
    """Tokens are the pixels."""

    def tokens(self, images: Tensor) -> Tensor:
        return images


class Loss(nn.Module):
    """A loss."""

    negatives = cross_entropy = False

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return student.mean()


def abilities(kind: str, cls: type) -> frozenset[type]:
    mine = Registry()
    mine.register(kind, "mine")(cls)
    return mine._entries[kind, "mine"].abilities


def test_every_ability_extends_the_contract_of_its_kind_and_is_in_the_table() -> None:
    listed = {one for some in ABILITIES.values() for one in some}
    for kind, contract in PROTOCOLS.items():
        assert all(protocols.kind_of(one) == kind for one in ABILITIES[kind])
        mine = [one for one in contract.__subclasses__() if vars(protocols).get(one.__name__) is one]
        assert mine == list(ABILITIES[kind])
    assert all(protocols.members(one) for one in listed)
    with pytest.raises(TypeError, match="Loss: an ability extends the contract of a kind, such as Backbone"):
        protocols.kind_of(Loss)


DATA = {SharedData, HasClassNames, GivesLabels, MayLackLabels, GivesReport, GivesShares}
FROM_FILES = {*DATA, MayGiveWhole}


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("backbone", "vit", set(ABILITIES["backbone"])),
        ("backbone", "timm", set(ABILITIES["backbone"])),
        ("data", "shapes", {*DATA, GivesAnnotations}),
        ("data", "image_folder", FROM_FILES),
        ("data", "shards", {*FROM_FILES, GivesFingerprint}),
        ("data", "voc", {*FROM_FILES, GivesAnnotations, GivesSegments}),
        ("data", "coco", {*FROM_FILES, GivesAnnotations, GivesSegments}),
        ("data", "davis", {*FROM_FILES, GivesAnnotations, GivesSegments}),
        ("augment", "multicrop", {CropsShares}),
        ("augment", "triplet", set()),
        ("head", "prototypes", {HasLastLayer}),
        ("head", "mlp", set()),
        ("teacher", "ema", {GivesAnswer, GivesTokenTargets}),
        ("teacher", "labels", {ChecksClasses}),
        ("teacher", "siamese", set()),
        ("targets", "center", set()),
        ("loss", "info_nce", {GivesMeasures, ChecksPairs}),
        ("loss", "mse", set()),
        ("evaluator", "knn", {ComparesLabels, GivesFloors}),
        ("evaluator", "linear_probe", {NeedsRepresentations, ComparesLabels, GivesFloors}),
        ("evaluator", "dense", {NeedsAbilities}),
        ("evaluator", "attention_masks", {NeedsAbilities, GivesFiles, GivesFloors}),
    ],
)
def test_the_registry_knows_the_abilities_of_a_component(kind: str, name: str, expected: set[type]) -> None:
    assert registry.find(kind, name).abilities == expected


# --------------------------------------------------------------------------------- what a class declares


class TwoArguments(Plain):
    """It wants another argument."""

    def tokens(self, x: Tensor, y: Tensor) -> Tensor:
        return x


class OtherName(Plain):
    """It calls images otherwise."""

    def attention(self, x: Tensor) -> Tensor:
        return x


class NoSelf(Plain):
    """It forgot self."""

    def tokens(images: Tensor) -> Tensor:  # type: ignore[override]
        return images


class RequiredKeyword(Plain):
    """It wants a keyword that nobody gives."""

    def tokens(self, images: Tensor, *, norm: bool) -> Tensor:
        return images


class StaticPairs(Loss):
    """Static, and with one argument too many."""

    @staticmethod
    def check_pairs(pairs: Tensor, groups: Any) -> None: ...


class ShortMeasure(Loss):
    """It does not look at pairs."""

    def measure(self, student: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {}


class WrongNeeds:
    """It needs what is no kind."""

    every, of, protocol = 1, "teacher", "wrong/1"
    needs = (GivesAnnotations, "backbon.tokens")

    def __init__(self) -> None: ...
    def forward(self, encode: Any, data: Any) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(
    ("kind", "cls", "message"),
    [
        ("backbone", TwoArguments, "TwoArguments.tokens: a backbone takes (images), not (x, y)"),
        ("backbone", OtherName, "OtherName.attention: a backbone takes (images), not (x)"),
        ("backbone", NoSelf, "NoSelf.tokens: a backbone takes (images), not ()"),
        ("backbone", RequiredKeyword, "RequiredKeyword.tokens: a backbone takes (images), not (images, norm)"),
        ("loss", StaticPairs, "StaticPairs.check_pairs: a loss takes (pairs), not (pairs, groups)"),
        ("loss", ShortMeasure, "ShortMeasure.measure: a loss takes (student, target, pairs), not (student, target)"),
        (
            "evaluator",
            WrongNeeds,
            "WrongNeeds.needs: 'backbon.tokens' is no ability; an evaluator needs classes such as GivesTokens",
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)  # fmt: skip
def test_an_ability_with_other_arguments_is_refused_at_registration(
    kind: str, cls: type, message: str
) -> None:
    with pytest.raises(TypeError) as caught:
        Registry().register(kind, "broken")(cls)
    assert str(caught.value) == message


class Static(Plain):
    """Its method needs no instance."""

    @staticmethod
    def tokens(images: Tensor) -> Tensor:
        return images


class Anything(Plain):
    """It hands everything on."""

    def tokens(self, *args: Any, **kwargs: Any) -> Tensor:
        return args[0]


class OptionalKeyword(Plain):
    """It may be told more."""

    def tokens(self, images: Tensor, *, norm: bool = True) -> Tensor:
        return images


class Declared(Plain):
    """Its instances find the method by __getattr__."""

    tokens: Callable[[Tensor], Tensor]


class TakenBack(WithTokens):
    """It has no tokens any more."""

    tokens = None  # type: ignore[assignment]


class Submodule(Plain):
    """It calls a layer `attention`, and its register tokens `tokens`."""

    attention: nn.MultiheadAttention

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels, size)
        self.attention = nn.MultiheadAttention(3, 1)
        self.tokens = nn.Parameter(torch.zeros(4, 3))


class Flag(Plain):
    """It calls a number `tokens`."""

    tokens = 5


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Plain, set()),
        (WithTokens, {GivesTokens}),
        (Static, {GivesTokens}),
        (Anything, {GivesTokens}),
        (OptionalKeyword, {GivesTokens}),
        (Declared, {GivesTokens}),
        (TakenBack, set()),
        (Submodule, set()),
        (Flag, set()),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_counts_as_an_ability_of_a_class(cls: type, expected: set[type]) -> None:
    assert abilities("backbone", cls) == expected


# ------------------------------------------------------------------------------- what an instance can do


class Wrapper(nn.Module):
    """It finds in another backbone whatever it has not itself."""

    dim = 3

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class LastLayer(nn.Module):
    """Its attribute lies among the modules, and is found by __getattr__."""

    def __init__(self, last: nn.Module | None) -> None:
        super().__init__()
        self.last_layer = last


def test_an_instance_is_asked_for_what_it_has() -> None:
    inner = WithTokens(3, 8)
    assert ability(inner, GivesTokens) is inner
    wrapped = Wrapper(inner)
    assert ability(wrapped, GivesTokens) is wrapped
    images = torch.rand(1, 3, 2, 2)
    assert ability(wrapped, GivesTokens).tokens(images) is images  # type: ignore[union-attr]
    for without in (Plain(3, 8), Wrapper(Plain(3, 8)), TakenBack(3, 8), Submodule(3, 8), Flag(3, 8), None):
        assert ability(without, GivesTokens) is None
        assert ability(without, protocols.GivesAttention) is None
    head = LastLayer(nn.Linear(2, 2))
    assert ability(head, HasLastLayer) is head
    assert ability(LastLayer(None), HasLastLayer) is None


def test_classes_have_their_names_or_numbers() -> None:
    class Numbered:
        classes = 3

    class Named(Numbered):
        class_names = ("a", "b", 5)

    assert class_names(Numbered()) == ("0", "1", "2")  # type: ignore[arg-type]
    assert class_names(Named()) == ("a", "b", "5")  # type: ignore[arg-type]


def test_a_layer_with_the_name_of_an_ability_is_not_asked_for_it() -> None:
    encode = Encoder(Network(Submodule(3, 4), nn.Identity()), 4, nullcontext)
    output = encode.outputs(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert output.features.shape == (2, 3)
    assert output.tokens is output.attention is None


class Former(Plain):
    """It has the method under its former name."""

    def look(self, images: Tensor, blocks: int) -> Look:
        return Look(self(images), tokens=images + 1)


class NewOverOld(Former):
    """It has both; the newer one counts."""

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        return BackboneOutput(self(images), tokens=images + 2)


class OldOverNew(NewOverOld):
    """It was written when there was one name only."""

    def look(self, images: Tensor, blocks: int) -> Look:
        return Look(self(images), tokens=images + 3)


@pytest.mark.parametrize(("cls", "added"), [(Former, 1), (NewOverOld, 2), (OldOverNew, 3)])
def test_a_plugin_may_call_outputs_by_the_former_name(cls: type, added: int) -> None:
    assert abilities("backbone", cls) == {GivesOutputs}
    output = Encoder(Network(cls(3, 4), nn.Identity()), 4, nullcontext).outputs(
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    )
    assert output.tokens is not None
    assert bool((output.tokens == added).all())


def test_the_former_name_takes_the_same_arguments() -> None:
    class Old(Plain):
        """Without the number of blocks."""

        def look(self, images: Tensor) -> Look:
            return Look(self(images))

    with pytest.raises(TypeError, match=r"Old\.outputs: a backbone takes \(images, blocks\), not \(images\)"):
        Registry().register("backbone", "old")(Old)


# ---------------------------------------------------------------------------------- what evaluators need


class GivesLevels(Backbone, Protocol):
    """An ability of a plugin's own."""

    def levels(self, images: Tensor) -> Tensor: ...


class WithLevels(WithTokens):
    """A backbone with it."""

    def levels(self, images: Tensor) -> Tensor:
        return images[:, None]


class Demanding:
    """It needs what it is told to."""

    every, of, protocol = 1, "teacher", "demanding/1"

    def __init__(self, *, needs: tuple[Any, ...] = (), wants: tuple[Any, ...] = ()) -> None:
        self.needs, self.wants = needs, wants

    def forward(self, encode: Any, data: Any) -> dict[str, float]:
        return {}


def test_names_mean_the_classes_that_they_stand_for() -> None:
    def needed(*needs: Any) -> list[tuple[str, type]]:
        return needs_of(Demanding(needs=needs))  # type: ignore[arg-type]

    assert needed("backbone.tokens", "data.annotated") == [
        ("backbone", GivesTokens),
        ("data", GivesAnnotations),
    ]
    assert needed(GivesTokens, GivesAnnotations) == needed("backbone.tokens", "data.annotated")
    assert needed("backbone.look") == needed("backbone.outputs") == [("backbone", GivesOutputs)]
    assert needed("data.resident") == [("data", SharedData)]
    assert needed("predictor.last_layer") == [("predictor", HasLastLayer)]
    assert needed("backbone.levels") == needed("backbone.levels")
    assert needs_of(object()) == []  # type: ignore[arg-type]


@pytest.fixture
def mine() -> Iterator[Registry]:
    with registry.scratch():
        registry.register("backbone", "plain")(WithTokens)
        registry.register("backbone", "levels")(WithLevels)
        yield registry


@pytest.mark.parametrize(
    ("needs", "fault"),
    [
        ((GivesTokens,), None),
        (("backbone.tokens",), None),
        ((ChecksSize,), "'one' asks for check_size, which backbone 'plain' does not give"),
        ((GivesLevels,), "'one' asks for levels, which backbone 'plain' does not give"),
        (("backbone.levels",), "'one' asks for levels, which backbone 'plain' does not give"),
        ((SharedData,), "'one' asks for resident and to, which data 'bare' does not give"),
        ((HasLastLayer,), "'one' asks for last_layer, but there is no head"),
        (("tokens",), "'one' needs something unknown: 'tokens' is no ability; an evaluator needs classes such"),
        ((Loss,), "'one' needs something unknown: Loss: an ability extends the contract of a kind"),
    ],
)  # fmt: skip
def test_needs_are_compared_with_the_abilities_of_the_class(
    needs: tuple[Any, ...], fault: str | None, mine: Registry
) -> None:
    class Bare:
        """Data without abilities."""

        def __init__(self, device: torch.device) -> None: ...
        def train(self, batch_size: int, seed: int, start: int) -> Any: ...
        def test(self, batch_size: int) -> Any: ...
        def bank(self, batch_size: int) -> Any: ...

    mine.register("data", "bare")(Bare)
    evaluators: Any = [("one", Demanding(needs=needs))]
    names = {"backbone": "plain", "data": "bare"}
    if fault is None:
        check_needs(names, mine, evaluators)
        return
    with pytest.raises(Misfit) as caught:
        check_needs(names, mine, evaluators)
    assert caught.value.loc == ("evaluators", 0, "name")
    assert caught.value.message.startswith(fault)


def test_an_ability_of_a_plugin_is_found(mine: Registry) -> None:
    for need in (GivesLevels, "backbone.levels"):
        evaluators: Any = [("one", Demanding(needs=(need,)))]
        check_needs({"backbone": "levels"}, mine, evaluators)


def test_a_representation_that_there_is_not_is_refused(tiny_spec: Callable[..., Any]) -> None:
    class Wanting(Demanding):
        """It reads what nobody computes."""

        wants: ClassVar[tuple[str, ...]] = ("blocks", "mean_token")  # type: ignore[misc]

        def __init__(self) -> None: ...

    with registry.scratch():
        registry.register("evaluator", "wanting")(Wanting)
        with pytest.raises(Misfit, match=r"asks for the representation 'mean_token' \(there are: features, "):
            check(tiny_spec("evaluators=[{name: wanting}]"), registry)
