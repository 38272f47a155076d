from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dino_lab.runs.claims import Claim
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import Status, write_status
from dino_lab.runs.study import Arm, Study

METRIC = "knn.5nn"
Ending = float | Status | tuple[float, Status]


@pytest.fixture
def make_arm(tmp_path: Path) -> Callable[..., Arm]:
    """An arm with a run for each seed: its score, or how it ended, or both."""

    def make(label: str, *endings: Ending, settings: dict[str, object] | None = None, **more: float) -> Arm:
        folders = {seed: tmp_path / "runs" / label / str(seed) for seed in range(len(endings))}
        for folder, ending in zip(folders.values(), endings, strict=True):
            score, status = ending if isinstance(ending, tuple) else (ending, ending)
            done = Status("finished", 4, 4, "learning", scores_before={METRIC: 0.1})
            write_status(folder, status if isinstance(status, Status) else done)
            if not isinstance(score, Status):
                RunFolder(folder).append_row({"step": 4, "epoch": 1.0, METRIC: score, **more})
        return Arm(label, settings or {}, folders)

    return make


@pytest.fixture
def make_study() -> Callable[..., Study]:
    """A study of arms, of which the first is the baseline, and claims as a sweep file has them."""

    def make(arms: Sequence[Arm], *claims: dict[str, object], **changes: object) -> Study:
        axes = tuple(dict.fromkeys(axis for arm in arms for axis in arm.settings))
        expect = tuple(Claim.model_validate({"metric": METRIC, "mode": "max", **claim}) for claim in claims)
        content = {"metric": METRIC, "mode": "max", "baseline": arms[0].label, **changes}
        return Study("s", axes=axes, arms=tuple(arms), expect=expect, **content)  # type: ignore[arg-type]

    return make
