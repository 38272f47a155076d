"""Retrieval of images by the cosine of features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from dino_lab.components.evaluators import _class_search, _place_search
from dino_lab.components.evaluators._benchmark import BenchmarkLayout, read_layout
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.protocols import Data
from dino_lab.registry import EvaluatorOptions, Flat, register

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
            return _class_search.scores(encode, data, self.database, self.k)
        return _place_search.scores(*self._places(encode, self.benchmark), self.k)

    def files(self, encode: Encoder, data: Data) -> dict[str, bytes]:
        """`results.png`: some queries and their first results."""
        if self.benchmark is None:
            return {"results.png": _class_search.picture(encode, data, self.database)}
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
