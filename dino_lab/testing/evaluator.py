"""How evaluators are tried."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dino_lab.testing.trial import Size, Stateless


class EvaluatorTrial(Stateless):
    """Frozen features and data to scores by name."""

    sizes: ClassVar = [()]
    randomness = "a generator of its own with a fixed seed"

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """Nothing."""
        return ()

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """The scores of the method's network before training, in the order of their names."""
        with self.subject.trying("forward", "it should return scores by name"):
            (scored,) = self.subject.method.evaluate([(self.subject.entry.name, part)])
            scores = scored.scores
        if not isinstance(scores, dict) or not scores:
            self.subject.fail(
                f"forward returns {scores!r}; it should be a dict of at least one score by name"
            )
        for name, score in scores.items():
            self.expect(
                isinstance(name, str) and isinstance(score, (int, float)) and math.isfinite(score),
                f"says {name!r}: {score!r}; a score should be a finite number with a name",
            )
        for file, content in scored.files.items():
            self.expect(
                file == Path(file).name and isinstance(content, bytes),
                f"writes {file!r}: {type(content).__name__}; files should be bytes by a name without folder",
            )
        return [torch.tensor([scores[name] for name in sorted(scores)], dtype=torch.float64)]

    def rules(self) -> None:
        """What it says of itself."""
        part = self.make(self.sizes[0])
        self.expect(part.every >= 1, f"its every is {part.every}; it should be at least 1")
        self.expect(
            part.of in ("teacher", "student"), f"its of is {part.of!r}; it should be 'teacher' or 'student'"
        )
        self.expect(
            bool(part.protocol) and "\n" not in part.protocol,
            f"its protocol is {part.protocol!r}; it should be one line: name/version and every constant",
        )
