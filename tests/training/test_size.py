"""What no machine can hold is refused before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dino_lab.building import size
from dino_lab.building.check import check
from dino_lab.errors import Misfit, UserError
from dino_lab.registry import registry

GIB = 2**30


@pytest.mark.parametrize(
    ("setting", "loc", "said"),
    [
        # 16 numbers of each output, of student and teacher, and one of the centre
        ("head.dim=1000000000", "head", "the weights take 123 GiB, and this machine has 16 GiB"),
        ("train.batch_size=1000000000", "train.batch_size", "the crops and outputs of a step take"),
        ("train.epochs=2000000000", "train.epochs", "must be at most 1,000,000,000, got 2,000,000,000"),
        ("backbone.width=9999999999998", "backbone", "cannot be built: "),
        ("augment.global_size=4294967296", "augment", "crops of 4,294,967,296 px a side; at most 65,536"),
        ("augment.local_size=2147483683648", "augment", "crops of 2,147,483,683,648 px"),
    ],
)
def test_what_is_too_large(
    setting: str, loc: str, said: str, tiny_spec: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        size, "psutil", SimpleNamespace(virtual_memory=lambda: SimpleNamespace(total=16 * GIB))
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(Misfit) as caught:
        check(tiny_spec(setting), registry)
    assert ".".join(map(str, caught.value.loc)) == loc
    assert said in caught.value.message


def test_weights_are_counted_once_and_against_the_larger_memory(
    tiny_spec: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(
        "head.dim=100000000", "train.batch_size=1"
    )  # 16 numbers each, of student and teacher: 2 * 6.4e9 bytes
    card = SimpleNamespace(total_memory=80 * GIB)
    for memory, cards, fits in ((11, 0, False), (13, 0, True), (11, 1, True)):
        monkeypatch.setattr(
            size, "psutil", SimpleNamespace(virtual_memory=lambda m=memory: SimpleNamespace(total=m * GIB))
        )
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=cards: n)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
        if fits:
            assert check(spec, registry)
        else:
            with pytest.raises(Misfit, match="the weights take 12 GiB, and this machine has 11 GiB"):
                check(spec, registry)


def test_a_part_without_end_is_stopped() -> None:
    with size.few_layers():
        nn.Sequential(*[nn.ReLU() for _ in range(100)])
    with pytest.raises(UserError, match="more than 20,000 layers"), size.few_layers():
        nn.ModuleList(nn.ReLU() for _ in range(10**9))
    nn.Sequential(*[nn.ReLU() for _ in range(30_000)])  # nothing is counted afterwards
