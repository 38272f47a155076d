"""The crops that are shown are those of the run, and the picture has them pixel by pixel."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_lab.cli import app as cli
from dino_lab.registry import registry
from dino_lab.reports.crop_picture import _partners, draw_crops
from dino_lab.training.build import build
from dino_lab.training.crops import first_crops
from dino_lab.training.loop import train
from dino_lab.types import Views

CPU = torch.device("cpu")
AUGMENTATIONS = {
    "multicrop": [],
    "in parts": ["train.accumulate=3"],
    "one way": ["augment={name: asymmetric, size: 16, one_way: true, local_views: 2, local_size: 8}"],
    "listed": [
        "augment={name: views, groups: [{views: 2, size: 12, ops: [crop, {kornia.RandomErasing: {p: 0.5}}]}]}"
    ],
    "triplet": [
        "augment={name: triplet, size: 8}",
        "loss={name: info_nce, in_batch: false}",
        "targets={name: identity}",
    ],
}


@pytest.mark.parametrize("settings", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())
@pytest.mark.parametrize("images", [1, 10, 99])
def test_they_are_those_of_the_first_step(settings: list[str], images: int, tiny_spec: Callable) -> None:
    spec = tiny_spec(*settings, "evaluators=[]")
    run = build(spec, registry, CPU)
    seen: list[tuple[torch.Tensor, Views]] = []
    real = run.augment.forward

    def watched(batch: torch.Tensor, generator: torch.Generator) -> Views:
        seen.append((batch, real(batch, generator)))
        return seen[-1][1]

    run.augment.forward = watched
    next(train(run))
    shown, views = first_crops(spec, registry, CPU, images)
    count = min(images, 24)
    assert torch.equal(shown, torch.cat([batch for batch, _ in seen])[:count])
    assert len(views.crops) == len(seen[0][1].crops)
    for group, crops in enumerate(views.crops):
        assert torch.equal(crops, torch.cat([v.crops[group] for _, v in seen], dim=1)[:, :count])
    assert torch.equal(views.pairs, seen[0][1].pairs)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_picture_is_drawn_once_and_whole(channels: int) -> None:
    """Each has a colour of its own, which is looked for in the picture."""
    steps = iter(torch.linspace(0.1, 0.9, 12))

    def flat(*shape: int) -> torch.Tensor:
        value = next(steps)
        colour = torch.tensor([value, 1 - value, 0.5]) if channels == 3 else value.view(1)
        return colour.view(channels, 1, 1).expand(*shape, channels, 16, 16)

    images = torch.stack([(flat(1)[0] * 255).round().to(torch.uint8) for _ in range(2)])
    large = torch.stack([torch.stack([flat(1)[0] for _ in range(2)]) for _ in range(2)])  # [V, N, C, h, w]
    small = torch.stack([torch.stack([flat(1)[0] for _ in range(2)]) for _ in range(3)])[..., :8, :8]
    pairs = 1 - torch.eye(5, 2, dtype=torch.int8)
    content = draw_crops(images, Views([large, small], pairs), "title")
    assert content.startswith(b"\x89PNG")
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    whole = [images.float() / 255, *large, *small]
    for pictures in whole:
        for one in pictures:
            colour = (one[:, 0, 0].expand(3) * 255).round().numpy()
            area = (np.abs(picture - colour).max(-1) <= 1).sum()
            side = 1.25 * 150 * (1.0 if one.shape[-1] == 16 else 0.55)
            assert area == pytest.approx((side - 4) ** 2, rel=0.03)  # within its frame


def test_partners_in_words() -> None:
    assert [_partners(row) for row in torch.tensor([[0, 1, -1], [1, 1, 0], [0, 0, 0]])] == [
        "+2 −3",  # noqa: RUF001
        "+1 +2",
        "·",
    ]


def test_the_verb_writes_a_picture_or_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["show-crops", str(tiny), "--images", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "wrote tiny.crops.png: 3 images, 4 crops of each\n"
    with Image.open(tmp_path / "tiny.crops.png") as picture:
        assert picture.width > 500
    for arguments, words in [
        (["--to", "a.jpg"], "should end in .png"),
        (["--to", "no/a.png"], "there is no folder no"),
        (["--set", "train.batch_size=97"], "train.batch_size: 97 is more than"),
        (["--set", "augment.local_size=9"], "9 is not a multiple of patch 4"),
    ]:
        assert cli.main(["show-crops", str(tiny), "--device", "cpu", *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"tiny.yaml", "tiny.crops.png"}
