"""Retrieval of images by the cosine of features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from dino_lab.components.evaluators import _place_search
from dino_lab.components.evaluators._average_precision import (
    average_precision,
    mean_of_queries,
    precision_at,
)
from dino_lab.components.evaluators._benchmark import BenchmarkLayout, read_layout
from dino_lab.components.evaluators._chance import CHANCE, PIXELS, average_precision_by_chance
from dino_lab.components.evaluators._picture import Found, draw, of_split, spread
from dino_lab.components.evaluators._search import rankings
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.protocols import Data, class_names
from dino_lab.registry import EvaluatorOptions, Flat, register

QUERIES = RESULTS = 8  # of a picture
Database = Literal["train", "test"]
SPLITS: dict[Database, Literal["bank", "test"]] = {"train": "bank", "test": "test"}


def scores(encode: Encoder, data: Any, database: Database, k: tuple[int, ...]) -> dict[str, float]:
    """`mAP` and `mP_at_k` of the test images as queries."""
    test, bank = encode.split(data, "test"), encode.split(data, SPLITS[database])
    without_itself = database == "test"
    if max(k) > len(bank.labels) - without_itself:
        rest = " that remain without the query" if without_itself else ""
        raise UserError(
            f"evaluator retrieval: k = {max(k)} is more than the {len(bank.labels) - without_itself} images "
            f"of the database{rest}"
        )
    averages = []
    precisions: dict[int, list[torch.Tensor]] = {at: [] for at in k}
    for rows, order in rankings(test.features, bank.features, without_itself=without_itself):
        relevant = bank.labels[order] == test.labels[rows, None]  # [B, M]
        relevant = relevant[relevant.any(1)]
        averages.append(average_precision(relevant))
        for at, values in precisions.items():
            values.append(precision_at(relevant, at))
    if not sum(map(len, averages)):
        raise UserError("evaluator retrieval: no test image has another image of its class in the database")
    return {"mAP": mean_of_queries(averages)} | {
        f"mP_at_{at}": mean_of_queries(values) for at, values in precisions.items()
    }


def by_chance(encode: Encoder, data: Any, database: Database, k: tuple[int, ...]) -> dict[str, float]:
    """The same scores, expected of rankings in random order."""
    test, bank = encode.split(data, "test").labels, encode.split(data, SPLITS[database]).labels
    without_itself = int(database == "test")
    images = len(bank) - without_itself
    relevant = bank.bincount(minlength=data.classes)[test] - without_itself
    relevant = relevant[relevant > 0]
    precision = relevant.double().mean().item() / images
    return {"mAP": average_precision_by_chance(relevant.cpu(), images).mean().item()} | {
        f"mP_at_{at}": precision for at in k
    }


def picture(encode: Encoder, data: Any, database: Database) -> bytes:
    """Some test images and their first results."""
    test, bank = encode.split(data, "test"), encode.split(data, SPLITS[database])
    queries = spread(QUERIES, len(test.labels))
    ranked = torch.cat([order for _, order in rankings(test.features[queries], bank.features)])
    if database == "test":
        ranked = torch.stack([row[row != query] for row, query in zip(ranked, queries, strict=True)])
    ranked = ranked[:, :RESULTS].cpu()
    shown = of_split(data.test(256), queries)
    batches = data.bank(256) if database == "train" else data.test(256)
    found = of_split(batches, ranked.flatten().tolist())
    names = class_names(data)
    rows = []
    for query, results in zip(queries, ranked.tolist(), strict=True):
        label, labels = int(test.labels[query]), bank.labels[results].tolist()
        rows.append(
            Found(
                [(shown[query], names[label])],
                [(found[row], its == label) for row, its in zip(results, labels, strict=True)],
                [names[its] for its in labels],
            )
        )
    return draw(
        rows, f"test images, and the nearest of the {'training' if database == 'train' else 'test'} split"
    )


Positive = Annotated[int, Field(gt=0)]


class Benchmark(BaseModel, frozen=True, extra="forbid"):
    """A folder laid out as the revisited Oxford and Paris benchmarks: `jpg/` and `gnd_*.pkl` or `gnd_*.json`.

    A pickle may hold plain values and arrays of numbers; one that names anything else is refused, unread.
    """

    path: str = Field(description="folder that holds `jpg/` and the ground truth")
    pixels: Positive | None = Field(
        None,
        description="longest side that an image is reduced to; null: the side of the teacher's crops",
    )
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0,),
        min_length=1,
        description="sizes, relative to `pixels`, whose features are averaged; DINO: [1, 0.7071, 0.5]",
    )
    crop_queries: bool = Field(
        True, description="cut queries out at their boxes, as the benchmark does; DINO's script does not"
    )


@register("evaluator", "retrieval")
class Retrieval:
    """Mean average precision (`mAP`) and mean precision at k (`mP_at_k`) of rankings by cosine.

    Without `benchmark`, test images look for images of their class in the training split, or in the rest of
    the test split; queries of whose class there is no other image are left out. With it, queries look for
    their place: easy, medium and hard, junk passed over, average precision by the trapezoid rule and k as the
    benchmark has them (Radenović et al., arXiv 1803.11285, Sec. 3.3; DINO, arXiv 2104.14294, Sec. 4.2.1).
    """

    def __init__(
        self,
        *,
        k: Annotated[
            tuple[Positive, ...],
            Field(min_length=1, description="places of the ranking at which precision is measured"),
        ] = (1, 5, 10),
        database: Annotated[
            Literal["train", "test"], Field(description="split that test images are looked for in")
        ] = "train",
        benchmark: Annotated[
            Benchmark | None, Field(description="revisited Oxford or Paris instead of the run's data")
        ] = None,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        if len(set(k)) < len(k):
            raise ValueError(f"k names a number twice: {', '.join(map(str, k))}")
        if benchmark is not None and database != "train":
            raise ValueError(
                "database and benchmark: a benchmark has its own images; leave out one of the two"
            )
        self.k, self.database, self.benchmark = k, database, benchmark
        self.every, self.of = options.every, options.of

    @property
    def compares_labels(self) -> tuple[Literal["train", "test"], ...]:
        """Of which splits; a benchmark has its own truth."""
        if self.benchmark is not None:
            return ()
        return ("test",) if self.database == "test" else ("train", "test")

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        k = ",".join(map(str, self.k))
        if self.benchmark is None:
            database = "training split" if self.database == "train" else "test split without the query"
            what = (
                f"test split as queries, {database} as database, relevant: same class, AP: sum of precisions"
            )
        else:
            what = _place_search.protocol(**self.benchmark.model_dump(exclude={"path"}))
        return f"retrieval/1: k={k}, {what}, cosine, of the {self.of} in evaluation mode"

    def forward(self, encode: Encoder, data: Data) -> dict[str, float]:
        """Scores; of a benchmark, each after its difficulty, such as `medium.mAP`."""
        if self.benchmark is None:
            return scores(encode, data, self.database, self.k)
        return _place_search.scores(*self._places(encode, self.benchmark), self.k)

    def floors(self, pixels: Encoder, data: Data) -> dict[str, dict[str, float]]:
        """Chance, and rankings by pixels; of a benchmark none."""
        if self.benchmark is not None:
            return {}
        found = scores(pixels, data, self.database, self.k)
        chance = by_chance(pixels, data, self.database, self.k)
        return {name: {CHANCE: chance[name], PIXELS: value} for name, value in found.items()}

    def files(self, encode: Encoder, data: Data) -> dict[str, bytes]:
        """`results.png`: some queries and their first results."""
        if self.benchmark is None:
            return {"results.png": picture(encode, data, self.database)}
        crop = self.benchmark.crop_queries
        return {"results.png": _place_search.picture(*self._places(encode, self.benchmark), crop)}

    def _places(self, encode: Encoder, benchmark: Benchmark) -> tuple[BenchmarkLayout, Tensor]:
        """The layout, and rankings [N, M] of its images for its queries."""
        layout = read_layout(Path(benchmark.path).expanduser())
        if max(self.k) > len(layout.images):
            raise UserError(
                f"evaluator retrieval: k = {max(self.k)} is more than the {len(layout.images)} images of "
                f"{benchmark.path}"
            )
        pixels = benchmark.pixels or encode.size

        def rank() -> Tensor:
            return _place_search.rank(encode, layout, pixels, benchmark.scales, benchmark.crop_queries)

        return layout, encode.once(("retrieval", benchmark), rank)
