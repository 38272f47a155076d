"""Whole steps as a GPU would be given them: nothing waits for the device but a row, once, and none is far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.step import ON_GPU
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.testing.traffic import META, Traffic, counted
from dino_lab.training.build import build
from dino_lab.training.loop import train

pytest.importorskip("triton", reason="a GPU's way is that with Triton, which comes with torch for CUDA")
ROOT = Path(__file__).parents[2]
SPECS = sorted(
    str(file.relative_to(ROOT))
    for file in [*ROOT.glob("experiments/*.yaml"), *ROOT.glob("experiments/methods/*.yaml")]
)
SMALL = ("train.batch_size=8", "train.log_every=1000", "train.epochs=4", "evaluators=[]")


def tiny(file: str) -> Any:
    """The spec, on few of the images that need no file."""
    size = load(ROOT / file).spec.data.model_dump().get("size", 32)
    data = f"data={{name: shapes, train_images: 16, test_images: 10, size: {size}}}"
    return load(ROOT / file, [data, *SMALL]).spec


@pytest.mark.parametrize("file", SPECS)
def test_a_step_waits_for_nothing_and_a_row_once(file: str) -> None:
    with counted() as traffic:
        steps = train(build(tiny(file), registry, META))  # two steps are an epoch, which ends with a row
        next(steps)
        traffic.waits.clear()
        traffic.launches.clear()
        for row in (1, 0, 1):
            next(steps)
            assert traffic.waits.total() == row, traffic.waits
            traffic.waits.clear()
    assert not traffic.mixed
    print(f"{file}: {traffic.launches.total() / 3:.0f} launches a step")
    assert traffic.launches.total() < 3 * 900


@dataclass
class Images:
    """Batches of images that have a shape and no numbers."""

    batch: int
    size: int

    @property
    def train_images(self) -> int:
        return 10 * self.batch

    def train(self, *_: Any) -> Iterator[tuple[Tensor, Tensor]]:
        images = torch.empty(self.batch, 3, self.size, self.size, dtype=torch.uint8, device=META)
        while True:
            yield images, torch.zeros(self.batch, dtype=torch.int64, device=META)


def step_of_the_paper(*settings: str) -> Traffic:
    """DINO's step: ViT-S/16, 2 x 224 + 8 x 96 pixels, 65,536 prototypes, 256 images."""
    small = ("data={name: shapes, train_images: 16, test_images: 10, size: 32}", "train.log_every=1000")
    spec = load(
        ROOT / "benchmarks/step.yaml", [*ON_GPU.settings, *small, "train.batch_size=8", *settings]
    ).spec
    with counted() as traffic:
        run: Any = build(spec, registry, META)
        whole = spec.model_copy(update={"train": spec.train.model_copy(update={"batch_size": 256})})
        steps = train(replace(run, spec=whole, data=Images(256, 256)))
        next(steps)
        traffic.launches.clear()
        traffic.bytes.clear()
        next(steps)
    return traffic


def test_the_paper_s_step_keeps_its_budget() -> None:
    """Without compilation and in float32; what autocast casts is not counted."""
    traffic = step_of_the_paper()
    print(f"{traffic.launches.total()} launches, {traffic.bytes.total() / 1e9:.0f} GB beside products")
    assert traffic.launches.total() <= 800
    assert traffic.bytes.total() <= 272e9
    loss = sum(traffic.bytes[f"cross_entropy_{way}"] for way in ("forward", "backward"))
    assert 2e9 < loss < 2.5e9  # outputs read twice, their gradient written once; 24 GB by single operations


def test_clipping_and_lars_take_no_launch_for_each_tensor() -> None:
    lars = ["optim={name: lars, lr: 0.1, clip: {norm: 1.0, per: tensor}}"]
    assert step_of_the_paper(*lars).launches.total() <= 860


def test_a_tensor_that_left_its_device_is_seen() -> None:
    with counted() as traffic:
        x = torch.zeros(3, device=META)
        assert float(x.sum()) == 1.0
        x.cpu()
        with pytest.raises(RuntimeError):
            torch.cat([x, torch.zeros(3)])
    assert traffic.waits == {"_local_scalar_dense": 1, "_to_copy": 1}
