from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dino_lab.registry import registry
from dino_lab.registry.discovery import sources
from dino_lab.registry.kinds import FOLDERS
from dino_lab.registry.parameters import undescribed
from dino_lab.testing import check_component


def test_npz(tmp_path: Path) -> None:
    arrays = {"train_images": np.zeros((9, 20, 20)), "test_images": np.zeros((6, 20, 20, 3))}
    labels = {"train_labels": np.arange(9)[:, None] % 3, "test_labels": np.arange(6) % 3}
    np.savez(tmp_path / "tiny.npz", **{k: v.astype(np.uint8) for k, v in (arrays | labels).items()})
    check_component("data", "npz", params={"path": str(tmp_path / "tiny.npz")})


PARTS = "augment/tint operation/fog backbone/convnet head/random_projection teacher/consensus targets/hard loss/huber"


@pytest.mark.parametrize("part", [*PARTS.split(), "regularizer/uniformity", "evaluator/ridge"])
def test_each_keeps_its_contract(part: str) -> None:
    check_component(*part.split("/"))


def test_every_parameter_has_a_description() -> None:
    for kind in FOLDERS:
        for source in sources(kind):
            if source.module == "dino_lab_example":
                assert not undescribed(registry.find(kind, source.name).params), source.name
