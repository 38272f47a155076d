"""A study out of folders: runs that are one spec but for the seed are one arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dino_lab.errors import UserError
from dino_lab.registry import Registry
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.rows import main_score, scores
from dino_lab.runs.study import FILE, Arm, Study, read_study
from dino_lab.spec.difference import difference
from dino_lab.spec.model import Spec

_SHOWN = 3  # changes that a label names


def study_of(
    paths: Sequence[Path], registry: Registry, metric: str | None, mode: Literal["max", "min"] = "max"
) -> Study:
    """The arms of all sweeps among the folders, and the runs by spec; the first arm is the baseline."""
    studies = [read_study(path) for path in paths if (path / FILE).exists()]
    runs = [path for path in paths if not (path / FILE).exists()]
    if len(studies) == 1 and not runs:
        return replace(studies[0], metric=metric or studies[0].metric)
    arms = [
        replace(arm, label=f"{study.name}: {arm.label}" if len(studies) > 1 else arm.label)
        for study in studies
        for arm in study.arms
    ]
    arms += _arms(runs, registry)
    names = [arm.label for arm in arms]
    arms = [
        arm if names.count(arm.label) == 1 else replace(arm, label=f"{arm.label} ({_hash(arm)})")
        for arm in arms
    ]
    axes = tuple(dict.fromkeys(axis for arm in arms for axis in arm.settings))
    wanted = metric or (studies[0].metric if studies else _main_score(runs))
    return Study("comparison", wanted, mode, arms[0].label, axes, tuple(arms))


def best(study: Study, found: Sequence[tuple[str, float]]) -> Arm:
    """The arm with the best of the mean scores, by label."""
    if not found:
        raise UserError(f"{study.name}: no run has a {study.metric} yet")
    pick = max if study.mode == "max" else min
    label, _ = pick(found, key=lambda pair: pair[1])
    return next(arm for arm in study.arms if arm.label == label)


def _arms(runs: Sequence[Path], registry: Registry) -> list[Arm]:
    specs = [(path, RunFolder(path).spec(registry)) for path in runs]
    groups: dict[str, list[tuple[Path, Spec]]] = {}
    for path, spec in specs:
        groups.setdefault(spec.model_copy(update={"seed": 0}).hash, []).append((path, spec))
    arms = []
    for members in groups.values():
        first, mine = specs[0][1], members[0][1]
        changes = [change for change in difference(first, mine) if change.key != "seed"]
        words = [f"{change.key}={change.new}" for change in changes[:_SHOWN]]
        label = " ".join([mine.name, *words, *(["..."] if len(changes) > _SHOWN else [])])
        settings = {change.key: change.new for change in changes}
        arms.append(Arm(label, settings, {spec.seed: path for path, spec in members}))
    return arms


def _main_score(runs: Sequence[Path]) -> str:
    """That of the first run."""
    name = main_score([name for row in RunFolder(runs[0]).rows() for name in scores(row)])
    if name is None:
        raise UserError(f"{runs[0]}: no row has a score; say with --metric which number is meant")
    return name


def _hash(arm: Arm) -> str:
    return next(iter(arm.folders.values())).name
