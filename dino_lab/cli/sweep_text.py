"""What a sweep says before and after its trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dino_lab.reports.study.tables import Line
    from dino_lab.runs.study import Study
    from dino_lab.sweeps.plan.forecast import Forecast
    from dino_lab.sweeps.plan.plan import Plan, Trial


def print_plan(
    plan: Plan,
    packs: list[list[Trial]],
    alone: dict[str, int],
    chosen: int,
    at_once: int,
    expected: Forecast | None,
    folder: Path,
) -> None:
    """Every arm that is known, how many trials there will be, and how long they will take.

    `chosen` trials come later; `alone` says how many are in no pack, and why; where nothing is left to do,
    nothing is `expected`.
    """
    from dino_lab.cli.console import print_table
    from dino_lab.cli.formatting import duration

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
        if not resources.gpu:
            print("  on a CPU a pack takes longer than its trials one by one; pack: 1 is faster")
    if expected is not None:
        unit, first = "pack" if packed else "trial", packs[0] if packs else [plan.trials[0]]
        shortest, longest = duration(min(expected.each)), duration(max(expected.each))
        each = shortest if shortest == longest else f"{shortest} to {longest}"
        beside = f" and {len(first) - 1} more" if len(first) > 1 else ""
        of = f"{first[0].label}{beside}" if expected.kinds == 1 else f"{expected.kinds} kinds of {unit}s"
        print(f"about {each} a {unit} and {duration(expected.whole)} in all, by a few steps of {of}")
    print(f"metric: {study.metric}; tables and pictures will lie in {folder}", flush=True)


def print_result(
    study: Study, found: list[Line], left: int, total: int, folder: Path, seconds: float
) -> None:
    """The table, how to read it, and where everything lies."""
    from dino_lab.cli.console import print_table
    from dino_lab.cli.formatting import duration
    from dino_lab.reports.study.tables import HEADERS, notes

    print()
    print_table(HEADERS, [line.cells() for line in found], headed=True)
    for note in notes(study, found):
        print(note)
    print(f"\n{total - left} of {total} trials, {duration(seconds)}; everything lies in {folder}")
    for path in sorted(folder.iterdir()):
        print(f"  {path.name}")
