"""A registry with one or two tiny components of each kind, for the tests of this folder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from dino_lab.registry import EvaluatorOptions, Flat, Registry
from dino_lab.schedule import Momentum, Schedule, Temperature, constant

registry = Registry()


class Jitter(BaseModel, frozen=True, extra="forbid"):
    """How much colours vary."""

    hue: float = Field(0.1, ge=0, le=0.5)
    strength: float


@registry.register("data", "fake_data")
class FakeData:
    """Images of nothing.

    This paragraph is not for the reference page.
    """

    classes = size = channels = train_images = test_images = 1
    mean = std = (0.5,)

    def __init__(
        self, device: Any, *, path: str = "here", images: Annotated[int, Field(gt=0, le=100)] = 10
    ) -> None: ...
    def train(self, batch_size: int, seed: int, start: int) -> Any: ...
    def test(self, batch_size: int) -> Any: ...
    def bank(self, batch_size: int) -> Any: ...


@registry.register("augment", "fake_augment")
class FakeAugment:
    """Crops of nothing."""

    pairs = groups = ()

    def __init__(
        self,
        *,
        scale: tuple[float, float] = (0.4, 1.0),
        jitter: Jitter | None = None,
        amount: int | Literal["all"] = "all",
        flip: bool = True,
        sizes: Annotated[tuple[int, ...], Field(max_length=3)] = (32,),
    ) -> None: ...
    def forward(self, images: Any, generator: Any) -> Any: ...


@registry.register("backbone", "fake_backbone")
class FakeBackbone:
    """Features of nothing."""

    dim = 1

    def __init__(self, channels: int, size: int, *, width: int, drop: float = 0.0) -> None: ...
    def forward(self, images: Any) -> Any: ...


@registry.register("head", "fake_head")
class FakeHead:
    """Outputs of nothing."""

    dim = 1

    def __init__(self, in_dim: int, *, layers: int = 3) -> None: ...
    def forward(self, features: Any) -> Any: ...


@registry.register("teacher", "fake_ema")
class FakeEma:
    """An average of nothing."""

    network = None

    def __init__(
        self, student: Any, *, momentum: Momentum = Schedule(start=0.996, end=1.0, shape="cosine")
    ) -> None: ...
    def forward(self, views: Any, student: Any, labels: Any) -> Any: ...
    def update(self, student: Any, progress: float, ends_epoch: bool) -> None: ...


@registry.register("targets", "fake_targets")
class FakeTargets:
    """Targets of nothing."""

    distribution = True

    def __init__(
        self, dim: int, *, temperature: Temperature = constant(0.04), center: bool = True
    ) -> None: ...
    def forward(self, teacher: Any, progress: float) -> Any: ...


@registry.register("loss", "fake_mse")
class FakeMse:
    """The squared distance of nothing."""

    negatives = cross_entropy = False

    def __init__(self, dim: int, *, reduce: Literal["mean", "sum"] = "mean") -> None: ...
    def forward(self, student: Any, target: Any, pairs: Any) -> Any: ...


@registry.register("loss", "fake_nce")
class FakeNce:
    """The contrast of nothing."""

    negatives = cross_entropy = True

    def __init__(
        self, dim: int, *, temperature: Annotated[float, Field(gt=0)] = 0.2, queue: int = 0
    ) -> None: ...
    def forward(self, student: Any, target: Any, pairs: Any) -> Any: ...


@registry.register("regularizer", "fake_spread")
class FakeSpread:
    """The spread of nothing."""

    def __init__(self, *, weight: Annotated[float, Field(ge=0)] = 0.1) -> None: ...
    def forward(self, views: Any, student: Any) -> Any: ...


@registry.register("evaluator", "fake_knn")
class FakeKnn:
    """The neighbours of nothing."""

    protocol = "none"

    def __init__(
        self,
        *,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
        k: tuple[int, ...] = (10, 20),
    ) -> None: ...
    def forward(self, encode: Any, data: Any) -> dict[str, float]: ...


GOOD = """\
name: good
seed: 0
data: {name: fake_data}
augment: {name: fake_augment}
backbone: {name: fake_backbone, width: 8}
head: {name: fake_head}
teacher:
  name: fake_ema
  momentum: {start: 0.9, end: 1.0}
targets: {name: fake_targets, temperature: 4E-2}
loss: {name: fake_nce, temperature: .5e1}
optim: {name: adamw, lr: 1e-3}
train: {epochs: 2, batch_size: 8}
evaluators:
  - {name: fake_knn, k: [1, 2]}
  - name: fake_knn
    every: 5
regularizers: [{name: fake_spread, weight: 0.5}]
"""
