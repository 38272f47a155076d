"""Whole steps as a GPU would be given them: nothing waits for the device but a row, once, and none is far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.traffic import step_of_the_paper, without_networks
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.testing.traffic import META, PRODUCTS, counted
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


# Launches and GB beside products of the step of benchmarks.traffic, not compiled; counted 793 and 269.6 in
# float32, 914 and 218.9 in bfloat16.
@pytest.mark.parametrize(
    ("precision", "launches", "gigabytes"), [("float32", 800, 272), ("bfloat16", 920, 222)]
)
def test_the_paper_s_step_keeps_its_budget(precision: str, launches: int, gigabytes: int) -> None:
    traffic = step_of_the_paper(f"train.precision={precision}")
    print(f"{traffic.launches.total()} launches, {traffic.bytes.total() / 1e9:.0f} GB beside products")
    assert traffic.launches.total() <= launches
    assert traffic.bytes.total() <= gigabytes * 1e9
    loss = sum(traffic.bytes[f"cross_entropy_{way}"] for way in ("forward", "backward"))
    assert 2e9 < loss < 2.5e9  # outputs read twice, their gradient written once; 24 GB by single operations


def test_what_is_beside_the_networks_is_little() -> None:
    """As where they are compiled, which benchmarks.traffic counts in minutes."""
    rest = without_networks("train.precision=bfloat16")
    assert 0 < rest.launches.total() <= 70
    assert 0 < rest.bytes.total() <= 10e9
    assert not set(rest.launches) & PRODUCTS


def test_casts_are_those_of_autocast() -> None:
    """A product of float32 in bfloat16: its two factors are cast, and twice a gradient back."""
    layer = nn.Linear(3, 4, bias=False, device=META)
    with counted() as traffic:
        x = torch.zeros(2, 3, device=META, requires_grad=True)
        with torch.autocast("meta", torch.bfloat16):
            once, again = layer(x), layer(x.exp())
            assert F.layer_norm(once, (4,)).dtype == torch.float32
            assert once.dtype == again.dtype == torch.bfloat16
        assert traffic.launches["_to_copy"] == 4  # x, exp of x, the weight once, and the outcome to be normed
        with torch.autocast("meta", torch.bfloat16, enabled=False):
            assert layer(x).dtype == torch.float32


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
