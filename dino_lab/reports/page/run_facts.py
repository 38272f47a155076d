"""The facts about a run that its files hold, without its network."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_lab.evaluation.floors import floors_protocol, side_for
from dino_lab.registry import Registry
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.rows import scores
from dino_lab.spec.literal import inline
from dino_lab.spec.model import Spec
from dino_lab.training.diagnostics import Floors, Reader, Tone, Verdict
from dino_lab.training.trainer import verdict_of, warm_up_of


@dataclass(frozen=True)
class ScoreChange:
    """One score, at its first and its last evaluation."""

    name: str
    before: float
    after: float
    floors: Mapping[str, float]  # what needs no learning, by name


@dataclass(frozen=True)
class RunFacts:
    """One run folder, read."""

    path: Path
    spec: Spec
    rows: list[dict[str, float]]
    environment: dict[str, Any]  # empty where there is no env.json
    verdict: Verdict
    status: str  # how it ended, or how far it came
    seconds: float | None
    scores: list[ScoreChange]
    failed: bool

    @property
    def title(self) -> str:
        """Name and hash."""
        return f"{self.spec.name} {RunFolder(self.path).hash}"

    @property
    def tone(self) -> Tone:
        """How the verdict is coloured; only a score above that before training is good."""
        return "bad" if self.failed else self.verdict.tone

    @property
    def floors(self) -> Floors:
        """Of the scores that have some."""
        return {score.name: score.floors for score in self.scores if score.floors}


def read_facts(path: Path, registry: Registry) -> RunFacts:
    """Everything but pictures; a UserError where a file is not what a run writes."""
    folder = RunFolder(path)
    spec = folder.spec(registry)
    status, rows = folder.status(), folder.rows()
    finished = status.state == "finished"  # a run that goes on may have an older status
    verdict = verdict_of(status) if finished else _verdict(rows, spec, status.floors)
    reason = f": {status.reason}" if status.reason else ""
    state = f"{status.state}{reason}" if status.state != "not run" else "not finished"
    return RunFacts(
        path,
        spec,
        rows,
        folder.environment(),
        verdict,
        f"{state}, {_steps(rows, spec)}",
        status.seconds or None,
        _scores(rows, status.floors),
        failed=status.state == "failed",
    )


def protocols(facts: RunFacts, registry: Registry) -> list[str]:
    """The protocols of the evaluators and of the floors."""
    found = [registry.build("evaluator", params).protocol for params in facts.spec.evaluators]
    recorded = RunFolder(facts.path).recorded_data()
    if facts.floors and recorded is not None:
        counts = {key: recorded[key] for key in ("train_images", "test_images", "channels", "size")}
        found.append(floors_protocol(side_for(**counts)))
    return found


def environment_rows(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The content of env.json, one line a key."""
    for key, value in environment.items():
        if key == "command":
            yield key, shlex.join(map(str, value))
        elif isinstance(value, dict):
            yield key, ", ".join(f"{name} {inline(item)}" for name, item in value.items()) or "none"
        else:
            yield key.replace("_", " "), "none" if value is None else str(value)


def _verdict(rows: Sequence[Mapping[str, float]], spec: Spec, floors: Floors) -> Verdict:
    reader = Reader(warm_up_of(spec), floors, begins_trained=spec.begins_trained)
    for row in rows:
        reader.read(row, row["epoch"] / spec.train.epochs)
    return reader.verdict


def _steps(rows: Sequence[Mapping[str, float]], spec: Spec) -> str:
    last = max(rows, key=lambda row: row["step"], default=None)
    if last is None or not last["epoch"]:
        return "no step yet"
    total = round(last["step"] / last["epoch"] * spec.train.epochs)
    return f"{last['step']} of {total} steps"


def _scores(rows: Sequence[Mapping[str, float]], floors: Floors) -> list[ScoreChange]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in scores(row).items():
            values.setdefault(name, []).append(value)
    return [ScoreChange(name, found[0], found[-1], floors.get(name, {})) for name, found in values.items()]
