"""Copy detection: the original of an altered image comes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor

from dino_lab.components.evaluators import _copy_search as search
from dino_lab.components.evaluators import _image_sets
from dino_lab.components.evaluators._copies import KINDS
from dino_lab.components.evaluators._copydays import read_layout
from dino_lab.components.evaluators._whitening import LEAST, Whitening
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.outputs import GEM_POWER, Representation
from dino_lab.protocols import Data
from dino_lab.registry import EvaluatorOptions, Flat, register

Kind = Literal["crop", "jpeg", "blur", "overlay", "rotation", "colour"]


class Generate(BaseModel, frozen=True, extra="forbid"):
    """Copies that are made of images."""

    kinds: tuple[Kind, ...] = Field(
        ("crop", "jpeg", "blur", "overlay", "rotation", "colour"),
        min_length=1,
        description="changes that turn an image into a copy, one score each",
    )
    images: int = Field(
        100, gt=0, description="images that are copied, at equal distances in the order; all are searched"
    )
    seed: int = Field(0, ge=0, description="of the strengths and places of the changes")


class Whiten(BaseModel, frozen=True, extra="forbid"):
    """Whitening by principal components of the features of other images."""

    path: str = Field(description="folder of images that the components are computed from")
    power: float = Field(
        0.5, gt=0, le=1, description="power of the eigenvalues to divide by; 0.5 whitens completely"
    )
    centred: bool = Field(True, description="subtract the mean of the features first; DINO's script does not")


def in_words(whitening: Whiten | None) -> str:
    """The whitening, in the words of a protocol."""
    if whitening is None:
        return "not whitened"
    moments = "covariance" if whitening.centred else "second moments"
    return (
        f"whitened with power {whitening.power:g} by {moments} of a folder (eigenvalues at least {LEAST:g} "
        "of the largest)"
    )


@dataclass(frozen=True)
class Searched:
    """Descriptions of everything, whitened."""

    database: Tensor  # [M, 2 D]
    queries: dict[str, Tensor]  # [N, 2 D]
    copies: dict[str, search.Copies]
    show: Callable[[list[int]], dict[int, Image.Image]]


GENERATE = Generate()


@register("evaluator", "copy_detection")
class CopyDetection:
    """Mean average precision (`mAP`) and share of first places (`top1`) of the originals of altered copies.

    An image is stretched to a square, described by its features and the generalised mean of its patch tokens,
    side by side, and compared by cosine (DINO, arXiv 2104.14294, Sec. 4.2.1; MultiGrain, arXiv 1902.05509).
    `copies: generate` alters the test images, or those of the folder `path`. `copies: copydays` takes `path`
    for a folder with originals in `original/` and copies in other folders, whose names begin alike. Average
    precision is that of the trapezoid rule; an original behind the first `top` is not found. Scores are given
    for every kind of copy, and their means.
    """

    def __init__(
        self,
        *,
        copies: Annotated[
            Literal["generate", "copydays"],
            Field(description="generate: make copies of images; copydays: those of the folder `path`"),
        ] = "generate",
        path: Annotated[
            str | None,
            Field(description="folder of originals and copies, or of images to copy; null: the test split"),
        ] = None,
        generate: Annotated[
            Generate, Field(description="which copies are made, of how many images")
        ] = GENERATE,
        prefix: Annotated[
            int,
            Field(gt=0, description="first characters that copydays' names of one image share"),
        ] = 4,
        pixels: Annotated[
            int | None,
            Field(gt=0, description="side of the square; null: that of the teacher's crops. DINO: 320"),
        ] = None,
        top: Annotated[
            int | None,
            Field(gt=0, description="places of a ranking that count; null: all. DINO's script: 20"),
        ] = 20,
        distractors: Annotated[
            str | None, Field(description="folder of images that are searched beside the originals")
        ] = None,
        whitening: Annotated[
            Whiten | None, Field(description="whiten the features before they are compared; null: do not")
        ] = None,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        if copies == "copydays" and path is None:
            raise ValueError("copies: copydays needs a path, the folder of originals and copies")
        if copies == "copydays" and generate != Generate():
            raise ValueError("copies: copydays takes the copies that are there; leave generate out")
        if len(set(generate.kinds)) < len(generate.kinds):
            raise ValueError(f"generate.kinds names a kind twice: {', '.join(generate.kinds)}")
        self.copies, self.path, self.generate, self.prefix = copies, path, generate, prefix
        self.pixels, self.top, self.distractors, self.whitening = pixels, top, distractors, whitening
        self.every, self.of = options.every, options.of

    @property
    def wants(self) -> tuple[Representation, ...]:
        """What is asked of the test split."""
        split = self.path is None and self.pixels is None
        return ("features", "gem_tokens") if split else ("features",)

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        side = "the teacher's crop" if self.pixels is None else f"{self.pixels} px"
        where = "the whole ranking" if self.top is None else f"the top {self.top}"
        return ", ".join(
            (
                f"copy_detection/1: {self._what()}",
                f"square of {side}",
                f"features and GeM(p={GEM_POWER:g}) of patch tokens",
                in_words(self.whitening),
                f"distractors: {'none' if self.distractors is None else 'a folder'}",
                f"cosine, AP by trapezoids among {where}",
                f"of the {self.of} in evaluation mode",
            )
        )

    def forward(self, encode: Encoder, data: Data) -> dict[str, float]:
        """`crop.mAP`, `crop.top1` and so on for each kind, and `mAP` and `top1`, the means of the kinds."""
        searched = self._searched(encode, data)
        if self.top is not None and self.top > len(searched.database):
            raise UserError(
                f"evaluator copy_detection: top = {self.top} is more than the {len(searched.database)} "
                "images that are searched"
            )
        found: dict[str, float] = {}
        for kind, queries in searched.queries.items():
            found[f"{kind}.mAP"], found[f"{kind}.top1"] = search.scores(
                searched.database, queries, searched.copies[kind].rows, self.top
            )
        for score in ("mAP", "top1"):
            values = [found[f"{kind}.{score}"] for kind in searched.queries]
            found[score] = sum(values) / len(values)
        return found

    def files(self, encode: Encoder, data: Data) -> dict[str, bytes]:
        """`results.png`: some copies of each kind and what comes first."""
        searched = self._searched(encode, data)
        drawn = search.picture(searched.database, searched.queries, searched.copies, searched.show)
        return {"results.png": drawn}

    def _what(self) -> str:
        if self.copies == "copydays":
            return f"copies and originals of a folder, names alike in {self.prefix} characters"
        made = "; ".join(KINDS[kind][1] for kind in self.generate.kinds)
        of = "test images" if self.path is None else "images of a folder"
        return f"copies of at most {self.generate.images} {of} (seed {self.generate.seed}: {made})"

    def _searched(self, encode: Encoder, data: Data) -> Searched:
        keys = (
            self.copies,
            self.path,
            self.generate,
            self.prefix,
            self.pixels,
            self.distractors,
            self.whitening,
        )
        return encode.once(("copy_detection", *keys), lambda: self._search(encode, data))

    def _search(self, encode: Encoder, data: Data) -> Searched:
        side = self.pixels or encode.size
        originals, copies = self._originals_and_copies(data, side)
        eye = encode.at(self.pixels, data.channels)
        parts = [originals.describe(eye)]
        others: list[Path] = []
        if self.distractors is not None:
            others = _image_sets.files_below(self.distractors)
            parts.append(_image_sets.of_files(others, side).describe(eye).to(parts[0].device))
        database = torch.cat(parts)
        queries = {
            kind: _image_sets.describe_images(eye, map(some.open, range(len(some.rows))), originals.side)
            for kind, some in copies.items()
        }
        if self.whitening is not None:
            files = _image_sets.files_below(self.whitening.path)
            learned = Whitening.learned(
                _image_sets.of_files(files, side).describe(eye),
                self.whitening.power,
                centred=self.whitening.centred,
            )
            database = learned(database)
            queries = {kind: learned(described) for kind, described in queries.items()}
        show = search.shown(originals, others)
        return Searched(database, queries, copies, show)

    def _originals_and_copies(self, data: Any, side: int) -> tuple[_image_sets.Set, dict[str, search.Copies]]:
        if self.copies == "copydays":
            assert self.path is not None, "the constructor refuses that"
            layout = read_layout(Path(self.path).expanduser(), self.prefix)
            return _image_sets.of_files(layout.originals, side), search.found_in(layout)
        if self.path is None:
            images = _image_sets.of_split(data, self.pixels)
        else:
            images = _image_sets.of_files(_image_sets.files_below(self.path), side)
        return images, search.generated(images, self.generate.kinds, self.generate.images, self.generate.seed)
