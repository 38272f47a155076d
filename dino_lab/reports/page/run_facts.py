"""The facts about a run that its files hold, without its network."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino_lab.errors import UserError, first_line
from dino_lab.registry import Registry
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.rows import scores
from dino_lab.runs.status import read_ending
from dino_lab.spec.literal import inline
from dino_lab.spec.model import Spec
from dino_lab.training.diagnostics import Reader, Verdict
from dino_lab.training.execution import LEAST_WARM_UP


@dataclass(frozen=True)
class ScoreChange:
    """One score, at its first and its last evaluation."""

    name: str
    before: float
    after: float


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
        return f"{self.spec.name} {self.spec.hash}"

    @property
    def tone(self) -> Literal["good", "doubtful", "bad", "waiting"]:
        """How the verdict is coloured; only a run that learns without doubt is good."""
        if self.failed or self.verdict.collapsed:
            return "bad"
        if self.verdict.doubtful:
            return "doubtful"
        return "good" if self.verdict.name == "learning" else "waiting"


def read_facts(path: Path, registry: Registry) -> RunFacts:
    """Everything but pictures; a UserError where a file is not what a run writes."""
    folder = RunFolder(path)
    spec = folder.spec(registry)
    try:
        rows, result = folder.rows(), folder.result()
        file = path / "env.json"
        environment = json.loads(file.read_text()) if file.exists() else {}
        # Not by result.json alone: a run may be unfinished.
        verdict = Verdict(**result["verdict"]) if result else _verdict(rows, spec)
        ending = read_ending(path)
        reason = f": {ending.reason}" if ending.reason else ""
        status = f"{ending.status}{reason}" if ending.status != "not run" else "not finished"
        _check(rows, environment, verdict)
        found = _scores(rows)
        steps, seconds = _steps(rows, spec), float(ending.seconds) if result else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(
            f"{path}: its rows.jsonl, env.json, result.json or ending.json is damaged ({first_line(error)})"
        ) from None
    return RunFacts(
        path,
        spec,
        rows,
        environment,
        verdict,
        f"{status}, {steps}",
        seconds,
        found,
        failed=ending.status == "failed",
    )


def check_rows(rows: Sequence[Mapping[str, float]]) -> None:
    """A ValueError for rows that no run has written."""
    for number, row in enumerate(rows, 1):
        if not {"step", "epoch"} <= set(row):
            raise ValueError(f"row {number} has no step or no epoch")
        if not all(isinstance(value, (int, float)) for value in row.values()):
            raise ValueError(f"row {number} holds something that is no number")
        map(float, row.values())


def _check(rows: Sequence[Mapping[str, float]], environment: Mapping[str, Any], verdict: Verdict) -> None:
    """A ValueError for content that no run has written."""
    check_rows(rows)
    command, folder = environment.get("command", []), environment.get("directory")
    if not isinstance(command, list) or not isinstance(folder, str | None):
        raise ValueError("its command should be a list, and its directory a path")
    if not isinstance(verdict.name, str) or not isinstance(verdict.sentence, str):
        raise ValueError("its verdict should be a name and a sentence")


def protocols(spec: Spec, registry: Registry) -> list[str]:
    """The protocols of the evaluators of a spec."""
    return [registry.build("evaluator", params).protocol for params in spec.evaluators]


def environment_rows(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The content of env.json, one line a key."""
    for key, value in environment.items():
        if key == "command":
            yield key, shlex.join(map(str, value))
        elif isinstance(value, dict):
            yield key, ", ".join(f"{name} {inline(item)}" for name, item in value.items()) or "none"
        else:
            yield key.replace("_", " "), "none" if value is None else str(value)


def _verdict(rows: Sequence[Mapping[str, float]], spec: Spec) -> Verdict:
    reader = Reader(max(LEAST_WARM_UP, spec.optim.lr.warmup))
    for row in rows:
        reader.read(row, row["epoch"] / spec.train.epochs)
    return reader.verdict


def _steps(rows: Sequence[Mapping[str, float]], spec: Spec) -> str:
    last = max(rows, key=lambda row: row["step"], default=None)
    if last is None or not last["epoch"]:
        return "no step yet"
    total = round(last["step"] / last["epoch"] * spec.train.epochs)
    return f"{last['step']} of {total} steps"


def _scores(rows: Sequence[Mapping[str, float]]) -> list[ScoreChange]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in scores(row).items():
            values.setdefault(name, []).append(value)
    return [ScoreChange(name, found[0], found[-1]) for name, found in values.items()]
