from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dino_lab.testing import check_component


def test_npz(tmp_path: Path) -> None:
    arrays = {"train_images": np.zeros((9, 20, 20)), "test_images": np.zeros((6, 20, 20, 3))}
    labels = {"train_labels": np.arange(9)[:, None] % 3, "test_labels": np.arange(6) % 3}
    np.savez(tmp_path / "tiny.npz", **{k: v.astype(np.uint8) for k, v in (arrays | labels).items()})
    check_component("data", "npz", params={"path": str(tmp_path / "tiny.npz")})


PARTS = "augment/tint backbone/convnet head/random_projection teacher/consensus targets/hard loss/huber"


@pytest.mark.parametrize("part", [*PARTS.split(), "regularizer/uniformity", "evaluator/ridge"])
def test_each_keeps_its_contract(part: str) -> None:
    check_component(*part.split("/"))
