"""What a sweep says before and after its trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dino_lab.errors import SpecError, UserError

if TYPE_CHECKING:
    from dino_lab.protocols import SharedData
    from dino_lab.reports.study import Study
    from dino_lab.reports.tables import Line
    from dino_lab.sweeps.plan import Plan, Trial


def measured(plan: Plan, first: list[Trial], device: str, shared: SharedData | None) -> float:
    """Seconds of a trial, or pack, of average length; a UserError if its rows will not have the metric."""
    import torch

    from dino_lab.errors import Misfit
    from dino_lab.registry import registry, suggest
    from dino_lab.sweeps.measure import measure

    try:
        specs = [trial.spec for trial in first]
        found = measure(specs, registry, torch.device(device), plan.sweep.resources.cpu, shared)
    except Misfit as misfit:
        raise UserError(f"{first[0].label}: {misfit}") from misfit
    scheduler = plan.sweep.scheduler
    for loc, metric in (
        (("metric",), plan.sweep.metric),
        (("scheduler", "metric"), scheduler.metric if scheduler else None),
    ):
        if metric is not None and metric not in found.numbers:
            there = ", ".join(name for name in found.numbers if ("." in name) == ("." in metric))
            hint = suggest(metric, list(found.numbers))
            raise SpecError(plan.line(loc, f"no evaluator reports {metric!r}{hint} (there are: {there})"))
    epochs = [trial.spec.train.epochs for trial in plan.trials]
    return found.seconds * sum(epochs) / len(epochs) / specs[0].train.epochs


def print_plan(
    plan: Plan,
    packs: list[list[Trial]],
    alone: dict[str, int],
    chosen: int,
    at_once: int,
    seconds: float,
    folder: Path,
) -> None:
    """Every arm that is known, how many trials there will be, and how long they will take.

    `chosen` trials come later; `alone` says how many are in no pack, and why.
    """
    from dino_lab.cli.console import print_table
    from dino_lab.cli.words import duration

    study, resources = plan.study, plan.sweep.resources
    todo = [trial for pack in packs for trial in pack]
    waiting = {trial.spec.hash for trial in todo}
    rows = []
    for arm in study.arms:
        here = sum(path.name in waiting for path in arm.folders.values())
        kept = len(arm.folders) - here
        rows.append(
            [
                arm.label,
                ", ".join(map(str, arm.folders)),
                "baseline" if arm.label == study.baseline else "",
                f"{kept} done" if kept else "",
            ]
        )
    print_table(["arm", "seeds", "", ""], rows, headed=True)
    joined = f", {plan.joined} more are the same spec as another" if plan.joined else ""
    done = len(plan.trials) - len(todo)
    before = f", {done} of them done before" if done else ""
    share = f"{resources.cpu} core(s)" + (f" and {resources.gpu:g} GPU" if resources.gpu else "")
    more = f" and {chosen} that optuna chooses" if plan.sweep.search else ""
    packed = plan.sweep.pack > 1
    units = f"{at_once} pack(s)" if packed else f"{at_once}"
    print(f"{len(plan.trials)} trials{before}{joined}{more}; {units} at once, {share} each")
    if packed and packs:
        print(f"{len(todo)} trials in {len(packs)} pack(s) of at most {plan.sweep.pack}")
        for reason, count in alone.items():
            print(f"  {count} of them alone: {reason}")
    if packs or chosen:
        rounds = -(-(len(packs) + chosen) // at_once)
        first = packs[0] if packs else [plan.trials[0]]
        beside = f" and {len(first) - 1} more" if len(first) > 1 else ""
        each, whole = duration(seconds), duration(seconds * rounds)
        unit = "pack" if packed else "trial"
        print(f"about {each} a {unit} and {whole} in all, by a few steps of {first[0].label}{beside}")
    print(f"metric: {study.metric}; tables and pictures will lie in {folder}", flush=True)


def print_result(
    study: Study, found: list[Line], left: int, total: int, folder: Path, seconds: float
) -> None:
    """The table, how to read it, and where everything lies."""
    from dino_lab.cli.console import print_table
    from dino_lab.cli.words import duration
    from dino_lab.reports.tables import HEADERS, notes

    print()
    print_table(HEADERS, [line.cells() for line in found], headed=True)
    for note in notes(study, found):
        print(note)
    print(f"\n{total - left} of {total} trials, {duration(seconds)}; everything lies in {folder}")
    for path in sorted(folder.iterdir()):
        print(f"  {path.name}")
