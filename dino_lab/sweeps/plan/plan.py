"""A sweep file in, every trial of it as a whole Spec or every mistake out."""

from __future__ import annotations

import hashlib
import json
import random
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
from dino_lab.spec.file import Document, read_nodes, with_seed
from dino_lab.spec.file_kinds import refuse_other_kinds
from dino_lab.spec.merge import apply_settings, compose_all, compose_root, parse_setting, read
from dino_lab.spec.messages import in_words
from dino_lab.spec.model import Spec
from dino_lab.spec.nodes import child, data, mark_at
from dino_lab.spec.problems import Problem, report
from dino_lab.sweeps.plan.arms import (
    VARIANT,
    Base,
    Point,
    count,
    label,
    overrides_in,
    point_of,
)
from dino_lab.sweeps.plan.checks import (
    evaluation_problems,
    metric_problems,
    replaced_values,
    seed_problems,
    unused_overrides,
)
from dino_lab.sweeps.plan.expected import KnownArm, expected
from dino_lab.sweeps.plan.model import Sweep
from dino_lab.sweeps.plan.space import Space, drawn_points

MANY = 1000  # trials, above which a plan has to be confirmed
SWEEPS = "_sweeps"  # no spec may have this name, so no run folder has


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
    runs: Path
    study: Study
    root: yaml.MappingNode  # of the sweep file
    space: Space

    def line(self, loc: Loc, message: str) -> str:
        """`file:line:column: dotted.key: message`, for a mistake that is found after planning."""
        return str(Problem(mark_at(self.root, loc), loc, message))

    def folder(self, runs: Path) -> Path:
        """Where the tables lie: the same plan has the same folder, however `runs` is spelled."""
        study = self.study
        names = {
            arm.label: sorted(str(path.relative_to(self.runs)) for path in arm.folders.values())
            for arm in study.arms
        }
        arms = [[its, folders] for its, folders in names.items()]
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

    A setting whose first step is a key of a sweep file changes the sweep, any other one the base. UserError
    for more than 1,000 trials, unless `many`.
    """
    problems: list[Problem] = []
    root = compose_root(read(path), path, problems)
    refuse_other_kinds(root, path, "sweep")
    own = [s for s in settings if s.partition("=")[0].strip().split(".")[0] in Sweep.model_fields]
    root = apply_settings(root, own, problems)
    sweep, root = _sweep_in(root, problems)
    base = _base_of(path, root, [s for s in settings if s not in own], problems)
    if sweep is None or base is None:
        if base is not None:
            _validated([Point()], base, registry, problems)
        raise report(_once(problems))
    planned = (count(sweep) + 1) * (len(sweep.seeds) if isinstance(sweep.seeds, list) else sweep.seeds)
    if planned > MANY and not many:
        raise UserError(f"{path}: about {planned} trials, more than {MANY}; --yes confirms them")
    space = Space(sweep, root, base, registry)
    conditions = space.check()
    problems += conditions
    source = random.Random(sweep.random.seed if sweep.random else 0).random
    drawn = [] if sweep.search or conditions else list(drawn_points(sweep, space, source, problems))
    points = [*drawn, _baseline(sweep, root, problems)]
    documents = _validated(points, base, registry, problems)
    if sweep.search is not None:
        _validated(list(space.corners()), base, registry, problems)
    specs = [document.spec for document in documents]
    problems += metric_problems(sweep, root, specs) + seed_problems(sweep, root, specs)
    problems += evaluation_problems(root, specs)
    problems += [] if problems else unused_overrides(base, documents)
    if problems:
        raise report(_once(problems))
    return _plan(path.stem, sweep, root, space, points, specs, runs, registry)


def trial_at(plan: Plan, point: Point, registry: Registry) -> PlannedTrial:
    """The trial of a point of the space; SpecError if its spec is none."""
    problems: list[Problem] = []
    documents = _validated([point], plan.space.base, registry, problems)
    if problems:
        raise report(_once(problems))
    spec = documents[0].spec
    seed = plan.sweep.seeds[0] if isinstance(plan.sweep.seeds, list) else spec.seed
    return PlannedTrial(with_seed(spec, seed, registry), label(point.settings, plan.study.axes))


def _sweep_in(root: yaml.MappingNode, problems: list[Problem]) -> tuple[Sweep | None, yaml.MappingNode]:
    """The sweep of a file; of a file with mistakes, what remains without the sections that have some.

    So the mistakes of the other sections are found in the same round.
    """
    try:
        return Sweep.model_validate_json(json.dumps(data(root)), strict=True), root
    except ValidationError as error:
        found = in_words(error, Sweep, root)
    # Of a number or a list, a wrong item of the list says enough.
    inner = {problem.loc[:i] for problem in found for i in range(1, len(problem.loc))}
    problems += [problem for problem in found if problem.loc not in inner]
    wrong = {problem.loc[0] for problem in found if problem.loc}
    kept = [(key, value) for key, value in root.value if key.value in Sweep.model_fields.keys() - wrong]
    if not {"random", "search"} & {key.value for key, _ in kept}:
        kept = [(key, value) for key, value in kept if key.value != "space"]
    if "space" not in {key.value for key, _ in kept}:
        kept = [(key, value) for key, value in kept if key.value not in ("random", "search")]
    root = yaml.MappingNode(root.tag, kept, root.start_mark, root.end_mark)
    needed = (
        {"metric": "loss", "variants": {"base": {}}} if "search" not in data(root) else {"metric": "loss"}
    )
    try:
        return Sweep.model_validate_json(json.dumps(needed | data(root)), strict=True), root
    except ValidationError:
        return None, root


def _base_of(
    path: Path, root: yaml.MappingNode, settings: Sequence[str], problems: list[Problem]
) -> Base | None:
    """The base, with what `set` and settings change of it; None, and a problem, if it cannot be read."""
    named = child(root, "base")
    if named is None:
        return None
    file = path.parent / str(data(named[1]))
    common = child(root, "set")
    overrides = list(overrides_in(common[1] if common else None, problems))
    overrides += [one for setting in settings if (one := parse_setting(setting, problems)) is not None]
    try:
        text = read(file)
    except SpecError as error:
        problems.append(Problem(named[0].start_mark, ("base",), str(error)))
        return None
    try:
        nodes = compose_all(text, file, problems)
    except SpecError as error:  # lines with places of their own
        raise SpecError("\n".join([*([str(report(problems))] if problems else []), str(error)])) from None
    if child(nodes, "base") is not None:
        problem = f"{file} is a sweep itself; a base is a spec"
        problems.append(Problem(named[0].start_mark, ("base",), problem))
        return None
    return Base(nodes, file, tuple(overrides))


def _baseline(sweep: Sweep, root: yaml.MappingNode, problems: list[Problem]) -> Point:
    """What arms are compared with: a variant, changes of the base, or the base as it is."""
    given = child(root, "baseline")
    if not isinstance(sweep.baseline, str) or given is None:
        return point_of(given[1] if given else None, problems)
    variants = child(root, "variants")
    found = child(variants[1], sweep.baseline) if variants else None
    if found is None:
        hint = suggest(sweep.baseline, list(sweep.variants))
        there = ", ".join(sweep.variants) or "none"
        message = f"no variant is called {sweep.baseline!r}{hint} (there are: {there})"
        problems.append(Problem(given[0].start_mark, ("baseline",), message))
        return Point()
    return Point(overrides_in(found[1], problems), {VARIANT: sweep.baseline})


def _validated(
    points: Sequence[Point], base: Base, registry: Registry, problems: list[Problem]
) -> list[Document]:
    """The spec of each arm under the base's seed; problems of all of them."""
    documents: list[Document] = []
    checked: set[str] = set()
    for point in points:
        mine: list[Problem] = []
        root = base.with_point(point, mine)
        document = read_nodes(root, base.file, mine, registry)
        problems += mine
        if document is None:
            continue
        problems += replaced_values(point, root)
        documents.append(document)
        for stage in document.stages:
            key = json.dumps(stage.spec.dump(), sort_keys=True)
            if key in checked:
                continue
            checked.add(key)
            try:
                check(stage.spec, registry)
            except Misfit as misfit:
                mark = mark_at(stage.own, misfit.loc)
                problems.append(Problem(mark, misfit.loc, f"{misfit.message}{_where(point)}"))
    return documents


def _where(point: Point) -> str:
    """Which arm has the mistake; its line may be one of the base."""
    return f" (in {label(point.settings, tuple(point.settings))})" if point.settings else ""


def _once(problems: list[Problem]) -> list[Problem]:
    """Each message about a key once: an unknown key is unknown with every value."""
    first: dict[tuple[object, ...], Problem] = {}
    for problem in problems:
        first.setdefault((problem.mark.name, problem.loc, problem.message), problem)
    return list(first.values())


def _plan(
    name: str,
    sweep: Sweep,
    root: yaml.MappingNode,
    space: Space,
    points: Sequence[Point],
    specs: Sequence[Spec],
    runs: Path,
    registry: Registry,
) -> Plan:
    """Arms with their runs, and claims about them; the last point is the baseline, which may be another's.

    SpecError for a claim about what is no arm.
    """
    axes = (*([VARIANT] if sweep.variants else []), *sweep.grid, *sweep.space)
    named: dict[str, tuple[Point, Spec]] = {}
    for point, spec in zip(points[:-1], specs[:-1], strict=True):
        its = label(point.settings, axes)
        if its in named and named[its][1] != spec:
            its = f"{its} {PlannedTrial(spec, its).key}"
        named.setdefault(its, (point, spec))
    baseline = next((its for its, (_, spec) in named.items() if spec == specs[-1]), None)
    if baseline is None:
        baseline = label(points[-1].settings, axes)
        named = {baseline: (points[-1], specs[-1]), **named}
    trials, folders = _trials(sweep, {its: spec for its, (_, spec) in named.items()}, runs, registry)
    arms = tuple(Arm(its, point.settings, folders[its]) for its, (point, _) in named.items())
    joined = sum(map(len, folders.values())) - len(trials)
    problems: list[Problem] = []
    known = {its: KnownArm(point.settings, spec) for its, (point, spec) in named.items()}
    expect = expected(sweep, root, known, problems)
    if problems:
        raise report(problems)
    study = Study(name, sweep.metric, sweep.mode, baseline, axes, arms, expect)
    return Plan(name, sweep, tuple(trials), joined, runs, study, root, space)


def _trials(
    sweep: Sweep, arms: dict[str, Spec], runs: Path, registry: Registry
) -> tuple[list[PlannedTrial], dict[str, dict[int, Path]]]:
    """Each spec once, all arms under the first seed first; and the run folders of each arm by seed."""
    trials: dict[str, PlannedTrial] = {}
    folders: dict[str, dict[int, Path]] = {its: {} for its in arms}
    for i in range(len(sweep.seeds) if isinstance(sweep.seeds, list) else sweep.seeds):
        for its, spec in arms.items():
            seed = sweep.seeds[i] if isinstance(sweep.seeds, list) else spec.seed + i
            trial = PlannedTrial(with_seed(spec, seed, registry), f"{its} seed {seed}")
            trials.setdefault(trial.key, trial)
            folders[its][seed] = trial.folder(runs)
    return list(trials.values()), folders
