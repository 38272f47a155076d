"""Points of a space that Optuna chooses, each by the scores of those before (`optuna` is an extra).

The run folders stay the truth: what was asked is kept in the sweep's folder, a line a point, and a sweep that
goes on asks the same again and reads the scores from the runs.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dino_lab.errors import SpecError, UserError
from dino_lab.registry import Registry
from dino_lab.reports.study.results import read_result
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import read_status
from dino_lab.runs.study import Arm, Study
from dino_lab.sweeps.plan.arms import place_of, point_at
from dino_lab.sweeps.plan.plan import Plan, PlannedTrial, trial_at

FILE = "search.jsonl"


class OptunaSearch:
    """What was asked, what is known of it, and what comes next; writes nothing before the first new point."""

    def __init__(self, plan: Plan, registry: Registry, runs: Path) -> None:
        assert plan.sweep.search is not None
        self.plan, self.runs, self._registry = plan, runs, registry
        self._samples = plan.sweep.search.samples
        self._folder = plan.folder(runs)
        self._arms: dict[str, Arm] = {}  # by hash
        self._waiting: dict[str, Any] = {}  # what Optuna calls a trial, by hash, until its score is known
        self._scores: dict[str, float | None] = {}  # by hash, None where there is none
        self.refused: list[str] = []  # why a point is no spec
        self._kept = self._read()
        self._before = self._kept[: self._samples]
        self._asked = 0
        self._failed = 0
        self._study = _study(plan, len(self._before))
        self._again = [trial for _ in self._before if (trial := self._ask()) is not None]

    @property
    def study(self) -> Study:
        """The plan's, with an arm for each point."""
        return dataclasses.replace(self.plan.study, arms=(*self.plan.study.arms, *self._arms.values()))

    @property
    def left(self) -> int:
        """How many points are not over, or have failed."""
        return self._samples - self._asked + len(self._waiting) + self._failed

    def next(self) -> PlannedTrial | None:
        """The next trial that is to be run; None once there are enough."""
        if self._again:
            return self._again.pop(0)
        while self._asked < self._samples:
            trial = self._ask()
            if trial is not None:
                return trial
        return None

    def over(self, spec_hash: str) -> None:
        """A trial has ended, and its folder says how."""
        asked = self._waiting.get(spec_hash)
        folder = self._arms[spec_hash].folders if asked is not None else {}
        for path in folder.values():
            status = read_status(path).state
            self._failed += status == "failed"
            if status not in ("interrupted", "not run"):
                score = self._scores[spec_hash] = read_result(path, self.plan.study.metric).score
                _tell(self._study, self._waiting.pop(spec_hash), score)

    def _ask(self) -> PlannedTrial | None:
        """One more point; None where it has no trial of its own to run."""
        import optuna

        if self._asked < len(self._before):
            self._study.enqueue_trial(self._before[self._asked])
        asked = self._study.ask()
        self._asked += 1

        def place(key: str) -> float:
            choices = self.plan.sweep.space[key].choice
            if choices is None:
                return asked.suggest_float(key, 0.0, 1.0)
            return place_of(self.plan.sweep, key, asked.suggest_categorical(key, range(len(choices))))

        point = point_at(self.plan.sweep, self.plan.root, self.plan.base, place)
        if self._asked > len(self._before):
            self._keep(asked.params)
        try:
            trial = trial_at(self.plan, point, self._registry)
        except SpecError as error:
            self.refused.append(" ".join(str(error).split()))
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
            return None
        folder, key = trial.folder(self.runs), trial.key
        if key in self._arms:  # the same spec was asked before
            _tell(self._study, asked, self._scores.get(key))
            return None
        self._arms[key] = Arm(trial.label, point.settings, {trial.spec.seed: folder})
        self._waiting[key] = asked
        if read_status(folder).state in ("finished", "collapsed", "stopped"):
            self.over(key)
            return None
        return trial

    def _read(self) -> list[dict[str, Any]]:
        file = self._folder / FILE
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def _keep(self, places: dict[str, Any]) -> None:
        self._kept.append(places)
        self._folder.mkdir(parents=True, exist_ok=True)
        RunFolder(self._folder).write_text(FILE, "".join(json.dumps(kept) + "\n" for kept in self._kept))


def check_optuna() -> None:
    """A UserError in one line if it is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("search: optuna is not installed; pip install 'dino-lab[optuna]'") from None


def _study(plan: Plan, before: int) -> Any:
    """A study whose random numbers are not those that were drawn before."""
    import optuna

    assert plan.sweep.search is not None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=(plan.sweep.search.seed + before * 2**16) % 2**32)
    maximize = plan.study.mode == "max"
    return optuna.create_study(sampler=sampler, direction="maximize" if maximize else "minimize")


def _tell(study: Any, asked: Any, score: float | None) -> None:
    import optuna

    if score is None or score != score:
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(asked, score)
