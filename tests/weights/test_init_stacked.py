"""Runs of one stack that begin differently, or freeze other parameters, end as they do alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dino_lab.registry import registry
from dino_lab.training.build import build
from dino_lab.training.loop import Row
from dino_lab.training.stacked.loop import train_each

CPU = torch.device("cpu")


def test_members_of_a_stack_train_as_they_do_alone(tiny_spec: Callable, execute: Callable) -> None:
    quick = ("backbone.drop_path=0", "train.epochs=1", "evaluators=[]")
    source = execute(tiny_spec(*quick, "seed=7")).folder
    specs = [
        tiny_spec(*quick, "optim.freeze=[backbone.model.blocks.0]", "optim.layer_decay=0.5"),
        tiny_spec(*quick, f"init={{from: {source}, freeze: 0.3}}"),
        tiny_spec(*quick),
    ]
    alone = [build(spec, registry, CPU) for spec in specs]
    for run in alone:
        rows = list(train_each([run]))
        assert all(isinstance(row, Row) for (row,) in rows)
    stacked = [build(spec, registry, CPU) for spec in specs]
    assert len(list(train_each(stacked))) == len(rows)
    for run, its in zip(stacked, alone, strict=True):
        for name, value in its.student.state_dict().items():
            torch.testing.assert_close(run.student.state_dict()[name], value, rtol=1e-2, atol=2e-4, msg=name)
    weight = "backbone.model.blocks.0.attn.qkv.weight"
    before = build(specs[0], registry, CPU).student.state_dict()[weight]
    assert torch.equal(stacked[0].student.state_dict()[weight], before)
    assert not torch.equal(stacked[2].student.state_dict()[weight], before)
