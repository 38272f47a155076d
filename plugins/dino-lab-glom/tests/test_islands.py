"""The evaluator on token maps whose islands are known."""

from __future__ import annotations

import io
import itertools
import math
from contextlib import nullcontext
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from dino_lab.components.data.shapes import Shapes
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.registry import EvaluatorOptions
from dino_lab_glom import _agreement, _picture
from dino_lab_glom.glom import Glom
from dino_lab_glom.islands import Islands

SIZE = 8  # of the images; a column is one of 2 x 2 pixels
# 0 background, 1 and 2 two parts of one object, as columns of a grid of 4 x 4; and one with a third part.
PARTS = torch.tensor(
    [
        [[0, 1, 1, 0], [0, 1, 1, 0], [0, 2, 2, 0], [0, 2, 2, 0]],
        [[1, 1, 0, 0], [2, 2, 2, 0], [3, 3, 0, 0], [0, 0, 0, 0]],
    ]
)


class Drawn:
    """Images whose grey is 50 times the number of the part."""

    test_images = 2

    def __init__(self, parts: Tensor = PARTS) -> None:
        self.parts = parts.repeat_interleave(2, 1).repeat_interleave(2, 2)  # [N, 8, 8]

    def annotated(self, split: str, indices: Tensor) -> tuple[Tensor, ...]:
        assert split == "test"
        parts = self.parts[indices]
        images = (50 * parts)[:, None].repeat(1, 3, 1, 1).to(torch.uint8)
        return (
            images,
            torch.zeros(len(indices)),
            parts > 0,
            parts.to(torch.uint8),
            torch.zeros(len(indices), 4),
        )


class Known(nn.Module):
    """Level 1 knows the part, level 2 the object, level 3 nothing, level 4 every column by itself."""

    dim = 16

    def levels(self, images: Tensor) -> Tensor:
        part = (images[:, 0, ::2, ::2] * 255 / 50).round().long()  # [N, 4, 4]
        alone = torch.arange(16).view(1, 4, 4).expand(len(images), -1, -1)
        maps = [part, (part > 0).long(), torch.zeros_like(part), alone]
        return torch.stack([F.one_hot(m, 16).movedim(-1, 1).float() for m in maps], 1)  # [N, 4, 16, 4, 4]

    def tokens(self, images: Tensor) -> Tensor:
        return self.levels(images)[:, 0]


def encoder(backbone: nn.Module, size: int = SIZE) -> Encoder:
    return Encoder(Network(backbone, nn.Identity()), size, nullcontext)


def test_scores_of_known_maps() -> None:
    scores = Islands(images=2).forward(encoder(Known()), Drawn())
    assert list(scores)[:6] == [
        "level1_part_gap", "level1_object_gap", "level1_part_ari", "level1_object_ari", "level1_islands",
        "level2_part_gap",
    ]  # fmt: skip
    assert len(scores) == 4 * 5
    # Columns of one part agree, of two parts do not.
    assert scores["level1_part_gap"] == pytest.approx(1)
    # The background of the first image lies in two halves, which are two islands.
    first, second = [0, 1, 1, 2] * 2 + [0, 3, 3, 2] * 2, [1, 1, 0, 0, 2, 2, 2, 0, 3, 3, 0, 0, 0, 0, 0, 0]
    expected = [
        adjusted_rand_score(PARTS[i].flatten().tolist(), mine) for i, mine in enumerate((first, second))
    ]
    assert scores["level1_part_ari"] == pytest.approx(sum(expected) / 2)
    assert scores["level1_islands"] == 4
    # In 12 of the 28 pairs of the first object two columns are of the same part, in 5 of 21 of the second.
    assert scores["level1_object_gap"] == pytest.approx((12 / 28 + 5 / 21) / 2)
    assert (scores["level2_part_gap"], scores["level2_object_gap"]) == pytest.approx((0, 1))
    assert scores["level2_islands"] == pytest.approx((3 + 2) / 2)
    assert scores["level2_object_ari"] == pytest.approx(
        (adjusted_rand_score((PARTS[0] > 0).flatten().tolist(), [0, 1, 1, 2] * 4) + 1) / 2
    )
    # One island of everything, or as many as columns, tell nothing.
    for level, islands in (("level3", 1), ("level4", 16)):
        assert scores[f"{level}_islands"] == islands
        for name in ("part_gap", "object_gap", "part_ari", "object_ari"):
            assert scores[f"{level}_{name}"] == pytest.approx(0, abs=1e-12)


def test_patch_tokens_are_a_single_level() -> None:
    tokens = Islands(images=2, map="tokens")
    levels = Islands(images=2).forward(encoder(Known()), Drawn())
    assert tokens.forward(encoder(Known()), Drawn()) == {
        key: value for key, value in levels.items() if key.startswith("level1_")
    }
    assert (tokens.needs, Islands().needs) == (
        ("backbone.tokens", "data.annotated"),
        ("backbone.levels", "data.annotated"),
    )


def test_scores_of_glom_on_shapes_are_those_of_loops() -> None:
    torch.manual_seed(0)
    backbone = Glom(3, 16, width=16, levels=2, patch=4, iterations=2)
    data = Shapes(torch.device("cpu"), size=16, train_images=1, test_images=60)
    found = Islands(images=60, threshold=0.7).forward(encoder(backbone, 16), data)
    images, _, _, parts, _ = data.annotated("test", torch.arange(60))
    levels = encoder(backbone, 16).ask("levels", images)
    for level in range(2):
        each = [naive(levels[n, level], parts[n], 0.7) for n in range(60)]
        for i, name in enumerate(("part_gap", "object_gap", "part_ari", "object_ari", "islands")):
            known = [one[i] for one in each if not math.isnan(one[i])]
            assert found[f"level{level + 1}_{name}"] == pytest.approx(sum(known) / len(known), rel=1e-4), name


def naive(embeddings: Tensor, parts: Tensor, threshold: float) -> tuple[float, ...]:
    """Scores of one image, from embeddings [D, h, w] and parts [H, W], a pair at a time."""
    _, height, width = embeddings.shape
    size = parts.shape[0] // height
    columns = list(itertools.product(range(height), range(width)))
    vectors = [embeddings[:, y, x].double().numpy() for y, x in columns]
    truth = []
    for y, x in columns:
        shown = parts[y * size : (y + 1) * size, x * size : (x + 1) * size].flatten().tolist()
        truth.append(max(sorted(set(shown)), key=shown.count))

    def cosine(i: int, j: int) -> float:
        a, b = vectors[i], vectors[j]
        return float(a @ b / numpy.sqrt(a @ a) / numpy.sqrt(b @ b))

    pairs = list(itertools.combinations(range(len(columns)), 2))
    kinds: dict[str, list[float]] = {"same": [], "other": [], "inside": [], "edge": []}
    for i, j in pairs:
        if truth[i] and truth[j]:
            kinds["inside"].append(cosine(i, j))
            kinds["same" if truth[i] == truth[j] else "other"].append(cosine(i, j))
        elif truth[i] or truth[j]:
            kinds["edge"].append(cosine(i, j))
    mean = {kind: sum(found) / len(found) if found else math.nan for kind, found in kinds.items()}

    names = list(range(len(columns)))
    for i, j in pairs * len(columns):  # as often as the longest path needs
        if math.dist(columns[i], columns[j]) == 1 and cosine(i, j) > threshold:
            names[i] = names[j] = min(names[i], names[j])
    return (
        mean["same"] - mean["other"],
        mean["inside"] - mean["edge"],
        adjusted_rand_score(truth, names),
        adjusted_rand_score([part > 0 for part in truth], names),
        len(set(names)),
    )


@pytest.mark.parametrize(("classes", "columns"), [((1, 1), 5), ((3, 4), 30), ((30, 30), 30), ((2, 9), 2)])
def test_adjusted_rand_is_that_of_scikit_learn(classes: tuple[int, int], columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    one, other = (torch.randint(k, (4, 2, columns), generator=generator) for k in classes)
    one[0, 0] = other[0, 0] = torch.arange(columns)
    found = _agreement.adjusted_rand(one, other)
    for place in itertools.product(range(4), range(2)):
        assert found[place].item() == pytest.approx(
            adjusted_rand_score(one[place].tolist(), other[place].tolist())
        )


def test_islands_follow_long_and_crooked_paths() -> None:
    """A spiral of agreeing columns in a sea of others is one island."""
    spiral = torch.tensor(
        [
            [1, 1, 1, 1, 1, 1],
            [0, 0, 0, 0, 0, 1],
            [1, 1, 1, 1, 0, 1],
            [1, 0, 0, 1, 0, 1],
            [1, 0, 1, 1, 0, 1],
            [1, 0, 0, 0, 0, 1],
            [1, 1, 1, 1, 1, 1],
        ]
    )
    one_hot = F.one_hot(spiral, 2).movedim(-1, 0).float()
    names = _agreement.islands(_agreement.cosines(one_hot), (7, 6), 0.9).view(7, 6)
    assert names[spiral == 1].unique().tolist() == [0]
    assert names[spiral == 0].unique().tolist() == [6]


def test_a_column_belongs_to_what_most_of_its_pixels_show() -> None:
    masks = torch.zeros(1, 6, 6, dtype=torch.uint8)
    masks[0, :2, :3] = 2  # 6 of the 9 pixels of the first of 2 x 2 columns
    masks[0, 3:, 3:5] = 1  # 6 of 9
    masks[0, 4:, :2] = 3  # 4 of 9
    assert _agreement.regions(masks, (2, 2)).tolist() == [[2, 0, 0, 1]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (torch.ones(2, 4, 4, dtype=torch.long), "in none of the 2 images two parts and the background"),
        (PARTS[:, :1].expand(-1, 4, -1) * 0, "in none of the 2 images"),
    ],
)
def test_images_without_regions_are_one_line(parts: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Islands(images=2).forward(encoder(Known()), Drawn(parts))


def test_more_images_than_there_are_is_one_line() -> None:
    with pytest.raises(UserError, match="images = 3 is more than the 2 test images"):
        Islands(images=3).forward(encoder(Known()), Drawn())


def test_embeddings_that_are_no_numbers_are_one_line() -> None:
    class Diverged(Known):
        def levels(self, images: Tensor) -> Tensor:
            return super().levels(images) * math.nan

    with pytest.raises(UserError, match="not finite"):
        Islands(images=2).forward(encoder(Diverged()), Drawn())


def test_a_backbone_without_levels_is_one_line() -> None:
    with pytest.raises(UserError, match="the backbone, Identity, gives no levels"):
        Islands(images=2).forward(encoder(nn.Identity()), Drawn())


def test_protocol_names_every_constant() -> None:
    protocol = Islands(
        images=7, threshold=0.25, options=EvaluatorOptions(of="student"), map="tokens"
    ).protocol
    for part in ("islands/1:", "tokens", "0.25", "student", "first 7 images", "test split"):
        assert part in protocol
    assert "\n" not in protocol


def picture(**settings: Any) -> Image.Image:
    files = Islands(images=2, **settings).files(encoder(Known()), Drawn())
    assert list(files) == ["levels.png"]
    image = Image.open(io.BytesIO(files["levels.png"]))
    image.load()
    return image


def test_the_picture_shows_images_parts_and_levels() -> None:
    image = picture()
    tile, margin, title = _picture.TILE, _picture.MARGIN, _picture.TITLE
    assert image.format == "PNG"
    assert image.size == (margin + 6 * (tile + margin), title + 2 * (tile + margin))
    assert picture(pictures=1).size[1] == title + tile + margin
    pixels = numpy.asarray(image)
    cell = tile // 4

    def colour(row: int, column: int, y: int, x: int) -> list[int]:
        """Of the middle of a cell of a tile."""
        top, left = title + row * (tile + margin), margin + column * (tile + margin)
        return pixels[top + y * cell + cell // 2, left + x * cell + cell // 2].tolist()

    assert colour(0, 0, 0, 1) == [50, 50, 50]
    assert colour(0, 0, 3, 1) == [100, 100, 100]
    for row in range(2):
        for column in (1, 2):  # the parts, and level 1, which knows them
            seen = {
                int(PARTS[row, y, x]): colour(row, column, y, x)
                for y, x in itertools.product(range(4), repeat=2)
            }
            for y, x in itertools.product(range(4), repeat=2):
                assert colour(row, column, y, x) == seen[int(PARTS[row, y, x])]
            assert len({tuple(value) for value in seen.values()}) == len(seen)
    # A line between part 1 and part 2 of the first image, and none inside part 1.
    top, left = title, margin + 2 * (tile + margin)
    assert pixels[top + 2 * cell, left + cell + cell // 2].tolist() == [0, 0, 0]
    assert pixels[top + cell, left + cell + cell // 2].tolist() == colour(0, 2, 0, 1)


def test_the_picture_is_the_same_every_time() -> None:
    assert picture().tobytes() == picture().tobytes()


@pytest.mark.parametrize("dim", [2, 3, 20])
def test_colours_are_principal_components(dim: int) -> None:
    x = torch.randn(2, dim, 3, 3, generator=torch.Generator().manual_seed(0))
    found = _picture.colours(x)
    assert found.shape == (2, 3, 3, 3)
    flat = x.movedim(1, -1).reshape(-1, dim).double().numpy()
    _, _, axes = numpy.linalg.svd(flat - flat.mean(0))
    kept = min(3, dim)
    projected = (flat - flat.mean(0)) @ axes[:kept].T
    scaled = (projected - projected.min(0)) / (projected.max(0) - projected.min(0))
    for i in range(kept):
        mine = found[:, i].flatten().numpy()
        assert min(abs(mine - scaled[:, i]).max(), abs(mine - (1 - scaled[:, i])).max()) < 1e-5
    assert (found[:, kept:] == 0).all()
