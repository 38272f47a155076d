"""A sweep file in, every trial of it as a whole Spec or every mistake out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dino_lab.building.check import check
from dino_lab.errors import Loc, Misfit, SpecError, UserError
from dino_lab.registry import Registry, suggest
from dino_lab.runs.folder import folder_of
from dino_lab.runs.study import Arm, Study
from dino_lab.spec.file import read_nodes
from dino_lab.spec.merge import apply_setting, compose_all, compose_root, read
from dino_lab.spec.messages import in_words
from dino_lab.spec.model import Spec
from dino_lab.spec.nodes import child, data, mark_at
from dino_lab.spec.problems import Problem, report
from dino_lab.sweeps.plan.arms import VARIANT, Point, corners, count, label, overrides, points
from dino_lab.sweeps.plan.model import Sweep

MANY = 1000  # trials, above which a plan has to be confirmed
SWEEPS = "_sweeps"  # no spec may have this name, so no run folder has
# Numbers of the rows that any method may have; which there are is seen once a step was measured.
ROW_NUMBERS = (
    *("loss", "entropy", "kl", "effective_rank", "feature_spread", "outputs_in_use", "center_norm"),
    *("accuracy", "gradient_norm", "images_per_second", "data_wait"),
)


@dataclass(frozen=True)
class PlannedTrial:
    """One spec of the sweep, and what it is called in the table."""

    spec: Spec
    label: str

    def folder(self, runs: Path) -> Path:
        """The run's folder: the same as for `dino-lab run`."""
        return folder_of(runs, self.spec).path

    @property
    def key(self) -> str:
        """The hash that names the spec."""
        return self.spec.hash


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep will do."""

    name: str
    sweep: Sweep
    trials: tuple[PlannedTrial, ...]  # each spec once; all arms under the first seed, then under the second
    joined: int  # trials that are the same spec as another
    study: Study
    root: yaml.MappingNode
    base: yaml.MappingNode
    base_file: Path

    def line(self, loc: Loc, message: str) -> str:
        """`file:line:column: dotted.key: message`, for a mistake that is found after planning."""
        return str(Problem(mark_at(self.root, loc), loc, message))

    def folder(self, runs: Path) -> Path:
        """Where the tables lie: the same plan has the same folder."""
        study = self.study
        arms = [[arm.label, sorted(str(path) for path in arm.folders.values())] for arm in study.arms]
        said: list[Any] = [arms, study.metric, study.mode, study.baseline]
        if self.sweep.search is not None:
            # What it finds is not known yet; more samples continue it.
            said += [self.sweep.model_dump(include={"space"}), self.sweep.search.name, self.sweep.search.seed]
        text = json.dumps(said)
        return runs / SWEEPS / self.name / hashlib.sha256(text.encode()).hexdigest()[:12]


def load_plan(
    path: Path, settings: Sequence[str], registry: Registry, *, runs: Path, many: bool = False
) -> Plan:
    """The plan of a sweep file; SpecError with one line for each mistake of every trial.

    A setting whose first step is a key of a sweep file changes the sweep, any other one the base.
    """
    root, base, sweep = _read(path, settings)
    planned = (count(sweep) + 1) * (len(sweep.seeds) if isinstance(sweep.seeds, list) else sweep.seeds)
    if planned > MANY and not many:
        raise UserError(f"{path}: about {planned} trials, more than {MANY}; --yes confirms them")
    problems: list[Problem] = []
    file = path.parent / sweep.base
    arms = [*points(sweep, root, base), _baseline(sweep, root, problems)]
    specs = _validated(arms, base, file, registry, problems)
    if sweep.search is not None:
        _validated(list(corners(sweep, root, base)), base, file, registry, problems)
    if not problems:
        problems += _metric_problems(sweep, root, specs)
    if problems:
        raise report(_once(problems))
    return _plan(path.stem, sweep, root, base, file, arms, specs, runs)


def trial_at(plan: Plan, point: Point, registry: Registry) -> PlannedTrial:
    """The trial of a point of the space; SpecError if its spec is none."""
    problems: list[Problem] = []
    specs = _validated([point], plan.base, plan.base_file, registry, problems)
    if problems:
        raise report(_once(problems))
    seed = plan.sweep.seeds[0] if isinstance(plan.sweep.seeds, list) else specs[0].seed
    return PlannedTrial(specs[0].model_copy(update={"seed": seed}), label(point.settings, plan.study.axes))


def _read(path: Path, settings: Sequence[str]) -> tuple[yaml.MappingNode, yaml.MappingNode, Sweep]:
    """The nodes of the sweep file and of its base, settings laid over both."""
    problems: list[Problem] = []
    root = compose_root(read(path), path, problems)
    own = [s for s in settings if s.partition("=")[0].strip().split(".")[0] in Sweep.model_fields]
    for setting in own:
        root = apply_setting(root, setting, problems)
    try:
        sweep = Sweep.model_validate_json(json.dumps(data(root)), strict=True)
    except ValidationError as error:
        raise report([*problems, *in_words(error, Sweep, root)]) from None
    if problems:
        raise report(problems)
    base = _read_base(path.parent / sweep.base, mark_at(root, ("base",)))
    common = child(root, "set")
    base = overrides(common[1] if common else None).over(base, problems)
    for setting in settings:
        if setting not in own:
            base = apply_setting(base, setting, problems)
    if problems:
        raise report(problems)
    return root, base, sweep


def _read_base(file: Path, mark: yaml.Mark) -> yaml.MappingNode:
    try:
        text = read(file)
    except SpecError as error:
        raise report([Problem(mark, ("base",), str(error))]) from None
    problems: list[Problem] = []
    base = compose_all(text, file, problems)
    if child(base, "base") is not None:
        problem = f"{file} is a sweep itself; a base is a spec"
        raise report([Problem(mark, ("base",), problem)])
    if problems:
        raise report(problems)
    return base


def _baseline(sweep: Sweep, root: yaml.MappingNode, problems: list[Problem]) -> Point:
    """What differences are told to: a variant, changes of the base, or the base as it is."""
    given = child(root, "baseline")
    if not isinstance(sweep.baseline, str) or given is None:
        return overrides(given[1] if given else None)
    variants = child(root, "variants")
    found = child(variants[1], sweep.baseline) if variants else None
    if found is None:
        hint = suggest(sweep.baseline, list(sweep.variants))
        there = ", ".join(sweep.variants) or "none"
        message = f"no variant is called {sweep.baseline!r}{hint} (there are: {there})"
        problems.append(Problem(given[0].start_mark, ("baseline",), message))
        return Point()
    return Point(overrides(found[1]).changes, {VARIANT: sweep.baseline})


def _validated(
    arms: list[Point], base: yaml.MappingNode, file: Path, registry: Registry, problems: list[Problem]
) -> list[Spec]:
    """The spec of each arm under the base's seed; problems of all of them."""
    specs: list[Spec] = []
    checked: set[str] = set()
    for point in arms:
        mine: list[Problem] = []
        document = read_nodes(point.over(base, mine), file, mine, registry)
        problems += mine
        if document is None:
            continue
        specs.append(document.spec)
        if document.spec.hash in checked:
            continue
        checked.add(document.spec.hash)
        try:
            check(document.spec, registry)
        except Misfit as misfit:
            mark = mark_at(document.root, misfit.loc)
            problems.append(Problem(mark, misfit.loc, f"{misfit.message}{_where(point)}"))
    return specs


def _where(point: Point) -> str:
    """Which arm it is that does not go together; its line may be one of the base."""
    return f" (in {label(point.settings, tuple(point.settings))})" if point.settings else ""


def _once(problems: list[Problem]) -> list[Problem]:
    """Each message about a key once: an unknown key is unknown with every value."""
    first: dict[tuple[object, ...], Problem] = {}
    for problem in problems:
        first.setdefault((problem.mark.name, problem.loc, problem.message), problem)
    return list(first.values())


def _metric_problems(sweep: Sweep, root: yaml.MappingNode, specs: list[Spec]) -> list[Problem]:
    asked: list[tuple[Loc, str]] = [(("metric",), sweep.metric)]
    if sweep.scheduler is not None and sweep.scheduler.metric is not None:
        asked.append((("scheduler", "metric"), sweep.scheduler.metric))
    problems = []
    for loc, metric in asked:
        evaluator, dot, _ = metric.partition(".")
        for spec in specs:
            names = [params.name for params in spec.evaluators]
            there = ", ".join(names) or "none"
            if evaluator in names if dot else metric in ROW_NUMBERS:
                continue
            message = (
                f"no evaluator of {spec.name} is called {evaluator!r} (there are: {there})"
                if dot
                else f"no row has the number {metric!r}{suggest(metric, list(ROW_NUMBERS))}; a score is "
                f"written as evaluator.score, and the evaluators are: {there}"
            )
            problems.append(Problem(mark_at(root, loc), loc, message))
            break
    return problems


def _plan(
    name: str,
    sweep: Sweep,
    root: yaml.MappingNode,
    base: yaml.MappingNode,
    base_file: Path,
    points: list[Point],
    specs: list[Spec],
    runs: Path,
) -> Plan:
    """Arms with their runs; the last point is the baseline, which may be one of the others."""
    axes = (*([VARIANT] if sweep.variants else []), *sweep.grid, *sweep.space)
    named: dict[str, tuple[Point, Spec]] = {}
    for point, spec in zip(points[:-1], specs[:-1], strict=True):
        its = label(point.settings, axes)
        if its in named and named[its][1] != spec:
            its = f"{its} {spec.hash}"
        named.setdefault(its, (point, spec))
    baseline = next((its for its, (_, spec) in named.items() if spec == specs[-1]), None)
    if baseline is None:
        baseline = label(points[-1].settings, axes)
        named = {baseline: (points[-1], specs[-1]), **named}
    trials: dict[str, PlannedTrial] = {}
    folders: dict[str, dict[int, Path]] = {its: {} for its in named}
    for i in range(len(sweep.seeds) if isinstance(sweep.seeds, list) else sweep.seeds):
        for its, (_, spec) in named.items():
            seed = sweep.seeds[i] if isinstance(sweep.seeds, list) else spec.seed + i
            trial = PlannedTrial(spec.model_copy(update={"seed": seed}), f"{its} seed {seed}")
            trials.setdefault(trial.key, trial)
            folders[its][seed] = trial.folder(runs)
    arms = tuple(Arm(its, point.settings, folders[its]) for its, (point, _) in named.items())
    joined = sum(map(len, folders.values())) - len(trials)
    study = Study(name, sweep.metric, sweep.mode, baseline, axes, arms)
    return Plan(name, sweep, tuple(trials.values()), joined, study, root, base, base_file)
