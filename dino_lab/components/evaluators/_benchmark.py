"""The layout of the revisited Oxford and Paris benchmarks (Radenović et al., arXiv 1803.11285).

A folder with images in `jpg/` and the ground truth in one `gnd_*.pkl` or `gnd_*.json`: names of the images
(`imlist`) and queries (`qimlist`), without `.jpg`, and for each query its box and the rows of `imlist` that
show the same place: `easy`, `hard`, and `junk`, which is neither right nor wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from dino_lab.components.evaluators._average_precision import trapezoid_average_precision
from dino_lab.components.evaluators._plain_pickle import Refused, read_plain_pickle
from dino_lab.errors import UserError

# What counts as right and what is passed over, arXiv 1803.11285, Sec. 3.3.
DIFFICULTIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


class Query(BaseModel):
    """The ground truth of one query."""

    bbx: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
    easy: list[int]
    hard: list[int]
    junk: list[int]


class GroundTruth(BaseModel):
    """The content of a ground truth file."""

    imlist: list[str] = Field(min_length=1)
    qimlist: list[str] = Field(min_length=1)
    gnd: list[Query]


@dataclass(frozen=True)
class BenchmarkLayout:
    """Images, queries and the ground truth."""

    images: list[Path]  # M
    queries: list[Path]  # N
    truth: list[Query]  # N

    def masks(self, query: int, difficulty: str) -> tuple[Tensor, Tensor]:
        """Right images and junk, bool [M] each."""
        right, junk = (self._mask(query, names) for names in DIFFICULTIES[difficulty])
        return right, junk

    def _mask(self, query: int, names: tuple[str, ...]) -> Tensor:
        mask = torch.zeros(len(self.images), dtype=torch.bool)
        for name in names:
            mask[getattr(self.truth[query], name)] = True
        return mask


def read_layout(folder: Path) -> BenchmarkLayout:
    """The layout of a folder; a UserError says what is missing or wrong."""
    if not folder.is_dir():
        raise UserError(f"evaluator retrieval: {folder}: there is no such folder")
    file = _truth_file(folder)
    try:
        truth = GroundTruth.model_validate(_read(file))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if len(truth.gnd) != len(truth.qimlist):
        raise UserError(f"{file}: {len(truth.qimlist)} queries, but ground truth of {len(truth.gnd)}")
    for query, name in zip(truth.gnd, truth.qimlist, strict=True):
        rows = [*query.easy, *query.hard, *query.junk]
        if rows and not 0 <= min(rows) <= max(rows) < len(truth.imlist):
            raise UserError(f"{file}: query {name} names an image that is not in 0..{len(truth.imlist) - 1}")
    images, queries = (_files(folder, names) for names in (truth.imlist, truth.qimlist))
    return BenchmarkLayout(images, queries, truth.gnd)


def _truth_file(folder: Path) -> Path:
    found = sorted(file for file in folder.glob("gnd_*") if file.suffix in (".pkl", ".json"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{folder}: needs one gnd_*.pkl or gnd_*.json with the queries; there is: {names}")
    return found[0]


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".json":
            return json.loads(file.read_text(encoding="utf-8"))
        return read_plain_pickle(file)
    except Refused as error:
        raise UserError(f"{file}: refused: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a whole JSON file ({' '.join(str(error).split())})") from error


def _files(folder: Path, names: list[str]) -> list[Path]:
    files = [folder / "jpg" / f"{name}.jpg" for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: there is no such file ({len(missing)} of {len(files)} are missing)")
    return files


def score(order: Tensor, right: Tensor, junk: Tensor, k: tuple[int, ...]) -> tuple[float, list[float]]:
    """Average precision of a ranking int64 [M] and precision at each k; NaN where nothing is right.

    Junk is taken out of the ranking first. Average precision is that of the trapezoid rule. Precision at k is
    among the first k or, where the last right image comes before, among those up to it.
    """
    relevant = right[order[~junk[order]]]
    total = int(relevant.sum())
    if not total:
        return torch.nan, [torch.nan] * len(k)
    average = trapezoid_average_precision(relevant[None], torch.tensor([total]))
    last = int(relevant.nonzero()[-1]) + 1
    precisions = [float(relevant[: min(last, at)].double().mean()) for at in k]
    return float(average), precisions
