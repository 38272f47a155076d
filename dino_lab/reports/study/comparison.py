"""A study made of folders: runs whose specs differ in the seed alone are one arm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dino_lab.errors import UserError
from dino_lab.registry import Registry
from dino_lab.reports.study.estimate import POWER, Estimate, paired
from dino_lab.reports.study.floors import floor_lines, gain, is_better
from dino_lab.reports.study.results import ArmResult
from dino_lab.reports.study.table import percent, reading
from dino_lab.runs.files import SPEC
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.rows import main_score, scores
from dino_lab.runs.study import FILE, Arm, Study, read_study
from dino_lab.schedule import Schedule
from dino_lab.spec.literal import inline
from dino_lab.spec.merge import compose_root, read
from dino_lab.spec.model import After
from dino_lab.spec.nodes import data

_SHOWN = 3  # settings that a label names
_NOT_COMPARED = ("name", "seed")  # of a spec


def study_of(
    paths: Sequence[Path], registry: Registry, metric: str | None, mode: Literal["max", "min"] = "max"
) -> Study:
    """The arms of all sweeps among the folders, and the runs by spec; the first arm is the baseline."""
    studies = [read_study(path) for path in paths if (path / FILE).exists()]
    runs = [path for path in paths if not (path / FILE).exists()]
    if len(studies) == 1 and not runs:
        return replace(studies[0], metric=metric or studies[0].metric)
    if len(studies) > 1:
        names = [study.name for study in studies]
        studies = [
            _named(study, study.name if names.count(study.name) == 1 else f"{study.name} {path.name}")
            for study, path in zip(studies, [path for path in paths if path not in runs], strict=True)
        ]
    arms = [arm for study in studies for arm in study.arms] + _arms(runs, registry)
    names = [arm.label for arm in arms]
    arms = [
        arm if names.count(arm.label) == 1 else replace(arm, label=f"{arm.label} ({_hash(arm)})")
        for arm in arms
    ]
    axes = tuple(dict.fromkeys(axis for arm in arms for axis in arm.settings))
    wanted = metric or (studies[0].metric if studies else _main_score(runs))
    known = {arm.label for arm in arms}
    expect = tuple(claim for study in studies for claim in study.expect if known.issuperset(claim.labels))
    return Study("comparison", wanted, mode, arms[0].label, axes, tuple(arms), expect)


def _named(study: Study, title: str) -> Study:
    """The study with a title before the label of each arm."""
    arms = tuple(replace(arm, label=f"{title}: {arm.label}") for arm in study.arms)
    expect = tuple(claim.renamed(lambda label: f"{title}: {label}") for claim in study.expect)
    return replace(study, arms=arms, expect=expect)


def best(study: Study, results: Sequence[ArmResult]) -> list[ArmResult]:
    """The arms that have a score, the best mean first; UserError if there are none."""
    scored = [result for result in results if result.scores]
    if not scored:
        raise UserError(f"{study.name}: no run has a {study.metric} yet")
    sign = -1 if study.mode == "max" else 1
    return sorted(scored, key=lambda result: sign * _mean(result))


def doubts(study: Study, ranked: Sequence[ArmResult]) -> list[str]:
    """How the best arm compares with the baseline and with the next best one, a sentence each."""
    first = ranked[0]
    others = [("the next best", result) for result in ranked[1:2]]
    others += [("the baseline", result) for result in ranked[1:] if result.arm.label == study.baseline]
    sentences = {}
    for role, other in reversed(others):
        difference = paired(first.scores, other.scores)
        half = "" if difference is None or difference.half is None else f" ± {difference.half:.4f}"
        number = "" if difference is None else f" {difference.mean:+.4f}{half}"
        sentences[other.arm.label] = f"to {role}, {other.arm.label}:{number}, {reading(study, difference)}"
    return list(sentences.values())


def warnings(study: Study, ranked: Sequence[ArmResult]) -> list[str]:
    """Why the best arm may be no choice at all: not told from the baseline, or no better than a floor."""
    first = ranked[0]
    said = []
    for other in ranked[1:]:
        difference = paired(first.scores, other.scores)
        if other.arm.label == study.baseline and (difference is None or not difference.excludes_zero):
            power = "" if difference is None or difference.detectable is None else _power(difference)
            said.append(f"it cannot be told from the baseline, {study.baseline}{power}")
    for floor in floor_lines(study, [first]):
        above = gain(study, first, floor.label)
        if above is not None and not is_better(study, above):
            score = f"{floor.score.mean:.4f}" if floor.score is not None else ""
            said.append(f"it is not better than {floor.label}, {study.metric} {score}")
    return said


def _power(difference: Estimate) -> str:
    return (
        f"; with {percent(POWER)} power {difference.n} seeds show a difference of {difference.detectable:.4f}"
    )


def _mean(result: ArmResult) -> float:
    return sum(result.scores.values()) / len(result.scores)


def _arms(runs: Sequence[Path], registry: Registry) -> list[Arm]:
    specs = [(path, _settings(path, registry)) for path in runs]
    groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path, spec in specs:
        compared = _without_seed(spec)
        groups.setdefault(json.dumps([spec.get("name"), compared], sort_keys=True), []).append((path, spec))
    arms = []
    for members in groups.values():
        first, mine = specs[0][1], members[0][1]
        settings = {key: value for key, value in _changes(first, mine) if key not in _NOT_COMPARED}
        texts = [f"{key}={value}" for key, value in settings.items()]
        more = ["..."] if len(texts) > _SHOWN else []
        label = " ".join([str(mine.get("name")), *texts[:_SHOWN], *more])
        arms.append(Arm(label, settings, {int(spec.get("seed", 0)): path for path, spec in members}))
    return arms


def _without_seed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of one arm have in common, and the runs that they begin with."""
    compared = {key: value for key, value in spec.items() if key not in _NOT_COMPARED}
    if (after := spec.get("after")) is not None:
        compared["after"] = [after["epoch"], _without_seed(after["spec"])]
    return compared


def _settings(path: Path, registry: Registry) -> dict[str, Any]:
    """The spec of a run as plain data; as its file has it, where a component is not installed."""
    try:
        return RunFolder(path).spec(registry).dump()
    except UserError:
        file = path / SPEC
        plain: dict[str, Any] = data(compose_root(read(file), file, []))
        return plain


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys whose values differ, and the new value as YAML in one line."""
    for key in dict.fromkeys([*old, *new]):
        before, after = _simple(old.get(key)), _simple(new.get(key))
        if before == after:
            continue
        if isinstance(before, list) and isinstance(after, list) and _are_components(before + after):
            before, after = ({str(i): item for i, item in enumerate(items)} for items in (before, after))
        if isinstance(before, dict) and isinstance(after, dict) and before.get("name") == after.get("name"):
            yield from _changes(before, after, f"{prefix}{key}.")
        elif isinstance(after, dict) and "name" in after:
            known = before if isinstance(before, dict) else {}
            rest = {
                inner: _simple(value) for inner, value in after.items() if known.get(inner, value) != value
            }
            rest.pop("name", None)
            yield f"{prefix}{key}", f"{after['name']}{inline(rest) if rest else ''}"
        else:
            yield f"{prefix}{key}", "-" if key not in new else inline(after)


def _are_components(items: Sequence[Any]) -> bool:
    return all(isinstance(item, dict) and "name" in item for item in items)


def _simple(value: Any) -> Any:
    """A schedule that does not change is its number; the run that another begins with is where it lies."""
    if isinstance(value, dict) and value.keys() == After.model_fields.keys():
        return After.model_validate(value).in_words
    if isinstance(value, dict) and {"start", "end"} <= value.keys() <= Schedule.model_fields.keys():
        constant = Schedule(start=value["start"], end=value["start"]).model_dump()
        return value["start"] if value == {key: constant[key] for key in value} else value
    return value


def _main_score(runs: Sequence[Path]) -> str:
    """The main score of the first run."""
    name = main_score([name for row in RunFolder(runs[0]).rows() for name in scores(row)])
    if name is None:
        raise UserError(f"{runs[0]}: no row has a score; --metric names the number to compare")
    return name


def _hash(arm: Arm) -> str:
    return next(iter(arm.folders.values())).name
