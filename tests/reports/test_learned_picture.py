"""The picture of what was learned, on runs that were really made."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_lab.errors import UserError
from dino_lab.registry import registry
from dino_lab.reports import learned_picture
from dino_lab.reports.learned_picture import write_learned
from dino_lab.runs.open import open_run

CPU = torch.device("cpu")
RIGHT = (0, 160, 55)  # the frame of a neighbour of the same class


@pytest.fixture
def draw(tiny_spec: Callable, execute: Callable) -> Callable[..., Image.Image]:
    """The picture of a tiny run of one epoch."""

    def drawn(*settings: str) -> Image.Image:
        folder = execute(tiny_spec("train.epochs=1", "evaluators=[]", *settings)).folder
        data = open_run(folder, registry, CPU).data
        path = write_learned(folder, registry, CPU, data)
        first = path.read_bytes()
        assert write_learned(folder, registry, CPU, data).read_bytes() == first
        return Image.open(io.BytesIO(first)).convert("RGB")

    return drawn


def frames(picture: Image.Image) -> int:
    """Frames in green, counted by their lower edges' left ends: rows and columns of 4 pixels that thick."""
    green = torch.from_numpy((np.array(picture) == RIGHT).all(-1))
    runs = green.unfold(1, 96, 1).all(-1)  # [height, width - 95]: 96 green pixels begin here
    return int(runs.sum()) // 8  # 4 rows above, 4 below


def width(maps: int) -> int:
    """Of a picture with so many maps of each network and three neighbours."""
    columns = maps + 3
    return 12 + 96 + 2 * 24 + 2 * (columns * 100 - 4) + 12


def test_attention_and_neighbours_stand_before_and_after(draw: Callable) -> None:
    picture = draw("data.train_images=192")
    assert picture.size == (width(1), 108 + 8 * 117 + 4 + 52)
    assert 0 < frames(picture) < 8 * 6


def test_what_it_counts_is_what_it_frames(draw: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    write = learned_picture._write
    monkeypatch.setattr(learned_picture, "_write", lambda *given: said.append(given[3]) or write(*given))
    picture = draw()
    counts = [int(text.split()[2]) for text in said if "same class: " in text]
    assert len(counts) == 4  # drawn twice
    assert frames(picture) == sum(counts[:2])


def test_a_network_without_attention_shows_similarity(
    draw: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    write = learned_picture._write
    monkeypatch.setattr(learned_picture, "_write", lambda *given: said.append(given[3]) or write(*given))
    large = "data={name: shapes, train_images: 48, test_images: 24, size: 96}", "augment.global_size=96"
    assert draw("backbone={name: timm, model: test_efficientnet}", *large).width == width(1)
    assert "similarity" in said
    assert "attention" not in said


def test_few_images_without_classes_are_shown_without_marks(draw: Callable, tmp_path: Path) -> None:
    for split, count in (("train", 24), ("test", 2)):
        for i in range(count):
            (tmp_path / "images" / split / "thing").mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), 9 * i).save(tmp_path / "images" / split / "thing" / f"{i}.png")
    picture = draw(f"data={{name: image_folder, path: {tmp_path / 'images'}, size: 16}}")
    assert picture.size == (width(1), 108 + 2 * 100 + 4 + 52)
    assert frames(picture) == 0


def test_networks_that_have_diverged_are_not_drawn(
    tiny_spec: Callable, execute: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = execute(tiny_spec("train.epochs=1", "evaluators=[]")).folder
    data = open_run(folder, registry, CPU).data
    monkeypatch.setattr(
        "dino_lab.evaluation.encoder.Encoder.__call__", lambda self, x: torch.full((len(x), 2), torch.nan)
    )
    with pytest.raises(UserError, match="diverged"):
        write_learned(folder, registry, CPU, data)
    assert not (Path(folder) / "learned.png").exists()


def test_a_map_of_one_cell_is_left_out(draw: Callable) -> None:
    assert draw("backbone={name: timm, model: resnet10t}").width == width(0)
