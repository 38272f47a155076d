"""Texts around a sweep: its plan before, its table afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dino_lab.cli.console import console, print_table
from dino_lab.cli.formatting import duration

if TYPE_CHECKING:
    from dino_lab.reports.study.findings import Findings
    from dino_lab.sweeps.run import SweepResult
    from dino_lab.sweeps.session import Overview

_GAP, _FRAME = 3, 2  # columns of the terminal between two cells, and at both ends of a row
# Columns that a narrow terminal goes without, the first of them first.
_DISPENSABLE = ("median", "hours", "images/s", "sd", "seeds", "ended")


def print_plan(overview: Overview) -> None:
    """Print every known arm, the number of trials, and how long they will take."""
    plan, study, stacks = overview.plan, overview.plan.study, overview.stacks
    resources, stacked = plan.sweep.resources, plan.sweep.stack > 1
    _print_arms(overview)
    for claim in study.expect:
        print(f"expected: {claim.statement(study.metric)}")
    left = sum(map(len, stacks))
    joined = f", {plan.joined} more are the same spec as another" if plan.joined else ""
    done = len(plan.trials) - left
    before = f", {done} of them done before" if done else ""
    share = f"{resources.cores} core(s)" + (f" and {resources.gpu:g} GPU" if resources.gpu else "")
    share += f" in {resources.ranks} processes" if resources.ranks > 1 else ""
    share += " on several machines" if overview.spread else ""
    more = f" and {overview.chosen} that optuna chooses" if plan.sweep.search else ""
    units = f"{overview.at_once} stack(s)" if stacked else f"{overview.at_once}"
    print(f"{len(plan.trials)} trials{before}{joined}{more}; {units} at once, {share} each")
    if stacked and stacks:
        print(f"{left} trials in {len(stacks)} stack(s) of at most {plan.sweep.stack}")
        for reason, count in overview.alone.items():
            print(f"  {count} of them alone: {reason}")
        if not resources.gpu:
            print("  on a CPU a stack takes longer than its trials one by one; stack: 1 is faster")
    _print_forecast(overview)
    print(f"metric: {study.metric}; tables and pictures: {overview.folder}", flush=True)


def _print_arms(overview: Overview) -> None:
    study = overview.plan.study
    waiting = {trial.folder(overview.runs) for stack in overview.stacks for trial in stack}
    rows = []
    for arm in study.arms:
        done = sum(path not in waiting for path in arm.folders.values())
        role = "baseline" if arm.label == study.baseline else ""
        rows.append([arm.label, ", ".join(map(str, arm.folders)), role, f"{done} done" if done else ""])
    _print_columns(["arm", "seeds", "", ""], rows)


def _print_forecast(overview: Overview) -> None:
    expected, stacks, plan = overview.expected, overview.stacks, overview.plan
    if expected is None:
        return
    unit, first = "stack" if plan.sweep.stack > 1 else "trial", stacks[0] if stacks else [plan.trials[0]]
    shortest, longest = duration(min(expected.each)), duration(max(expected.each))
    each = shortest if shortest == longest else f"{shortest} to {longest}"
    beside = f" and {len(first) - 1} more" if len(first) > 1 else ""
    of = f"{first[0].label}{beside}" if expected.kinds == 1 else f"{expected.kinds} kinds of {unit}s"
    print(f"about {each} a {unit} and {duration(expected.whole)} in all, by a few steps of {of}")


def print_result(result: SweepResult, seconds: float) -> None:
    """Print the table, its explanation, and the files."""
    print()
    print_study(result.findings)
    done = result.total - result.left
    print(f"\n{done} of {result.total} trials, {duration(seconds)}; files in {result.folder}")
    for path in sorted(result.folder.iterdir()):
        print(f"  {path.name}")
    if result.refused:
        print(f"{len(result.refused)} points were no spec; the first: {result.refused[0]}")


def print_study(found: Findings) -> None:
    """Print the tables of a study, each with its explanation."""
    from dino_lab.reports.study.claims import CLAIM_HEADERS
    from dino_lab.reports.study.effects import EFFECT_HEADERS
    from dino_lab.reports.study.table import HEADERS, filled

    for warning in found.warnings:
        print(warning)
    rows = [line.cells() for line in (*found.lines, *found.floors)]
    _print_section(HEADERS, rows, _DISPENSABLE, found.notes)
    if found.effect_notes:
        print()
        _print_section(EFFECT_HEADERS, found.effect_rows, (), found.effect_notes)
    if found.claims:
        print()
        headers, claims = filled(CLAIM_HEADERS, [claim.cells() for claim in found.claims])
        _print_section(headers, claims, (), found.claim_notes)


def _print_section(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    dispensable: Sequence[str],
    notes: Sequence[str],
) -> None:
    left_out = _print_columns(headers, rows, dispensable) if rows else []
    if left_out:
        print(f"not shown, for want of width: {', '.join(left_out)}")
    for note in notes:
        print(note)


def _print_columns(
    headers: Sequence[str], rows: Sequence[Sequence[str]], dispensable: Sequence[str] = ()
) -> list[str]:
    """Print a table whose cells are never cut; returns the columns that a terminal has no room for.

    On a terminal that is too narrow, `dispensable` columns go first, then texts wrap, and at last every row
    is a list of lines.
    """
    out = console()
    if not out.is_terminal:
        print_table(headers, rows, headed=True)
        return []
    kept, left_out = list(range(len(headers))), []
    columns = [[row[i] for row in (headers, *rows)] for i in kept]
    room = out.width - _FRAME - _GAP * (len(kept) - 1)
    for name in dispensable:
        if sum(_widest(columns[i]) for i in kept) <= room:
            break
        if name in headers:
            kept.remove(headers.index(name))
            left_out.append(name)
            room += _GAP
    shown = [columns[i] for i in kept]
    if sum(map(_narrowest, shown)) <= room:
        _print_wrapped(out, shown, _fitted(shown, room))
    else:
        _print_as_lines(out, shown)
    return left_out


def _widest(column: Sequence[str]) -> int:
    """The width of a column whose cells do not wrap."""
    return max(map(cell_len, column))


def _narrowest(column: Sequence[str]) -> int:
    """The width of a column whose cells wrap between words; a number and its interval stay together."""
    words = [word for cell in column for word in ([cell] if "±" in cell else cell.split())]
    return max(map(cell_len, words), default=0)


def _fitted(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths that fit into `room`; the widest column that can wrap becomes narrower first."""
    widths, least = list(map(_widest, columns)), list(map(_narrowest, columns))
    while sum(widths) > room:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        widths[widest] -= 1
    return widths


def _print_wrapped(out: Console, columns: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column[0], width=width)
    for row in list(zip(*columns, strict=True))[1:]:
        table.add_row(Text(row[0], "cyan"), Text(row[1], "bold"), *map(Text, row[2:]))
    out.print(table)


def _print_as_lines(out: Console, columns: Sequence[Sequence[str]]) -> None:
    headers, *rows = zip(*columns, strict=True)
    for row in rows:
        out.print(Text(row[0], "cyan"), overflow="fold")
        for header, cell in zip(headers[1:], row[1:], strict=True):
            if cell:
                out.print(Text(f"  {header} {cell}"), overflow="fold")
