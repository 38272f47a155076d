from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = """\
name: tiny
data: {name: shapes, train_images: 96, test_images: 48, size: 16}
augment: {name: multicrop, global_size: 16, local_size: 8, local_views: 2}
backbone: {name: vit, width: 24, depth: 2, heads: 2, patch: 4, drop_path: 0.1}
head: {name: prototypes, hidden: 32, bottleneck: 16, dim: 32}
teacher: {name: ema, momentum: {start: 0.9, end: 1.0, shape: cosine}}
targets: {name: center}
loss: {name: cross_entropy}
optim: {name: adamw, lr: 1e-3, freeze_last_layer: 0.1}
train: {epochs: 3, batch_size: 24, log_every: 2}
evaluators: [{name: knn, k: [5]}]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: workers take whole files, and none should end with a long one alone."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests are a million objects that stay: the search for garbage passes over them."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_sessionstart() -> None:
    """Start autograd, which asks once how many GPUs there are, before torch.compile pretends that there is one.

    It would start threads for it, and processes that are forked afterwards could not differentiate.
    """
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """The spec of a run that takes a second: 12 steps."""
    return TINY


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A file of that spec."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture
def tiny_spec(tiny: Path) -> Callable[..., object]:
    """The tiny spec, with settings."""
    from dino_lab.spec.file import load

    def make(*settings: str) -> object:
        return load(tiny, settings).spec

    return make


@pytest.fixture
def execute(tmp_path: Path) -> Callable[..., object]:
    """Run a spec under tmp_path/runs on the CPU."""
    from dino_lab.registry import registry
    from dino_lab.training.trainer import FitOptions, fit

    names = ("runs", "device", "checkpoint_every", "accept_data")

    def run(spec: object, **options: object) -> object:
        how = {"runs": tmp_path / "runs", "device": torch.device("cpu"), "checkpoint_every": 3600.0}
        how |= {name: options.pop(name) for name in names if name in options}
        return fit(spec, registry, FitOptions(**how), **options)

    return run


CHECKED: dict[tuple[str, bool], list[str]] = {}


@pytest.fixture(scope="module")
def checked_once() -> Iterator[None]:
    """For modules that build the same specs of built-in components again and again.

    Whether the parts of a spec go together is seen when it is built for the first time; it takes half the time.
    """
    from dino_lab.training import build

    original = build.check

    def check(spec: Any, registry: Any, *, first_weights: bool) -> list[str]:
        key = (spec.model_dump_json(serialize_as_any=True), first_weights)
        if key not in CHECKED:
            CHECKED[key] = original(spec, registry, first_weights=first_weights)
        return CHECKED[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "check", check)
        yield
