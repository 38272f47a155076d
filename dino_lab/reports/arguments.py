"""Folders of runs and sweeps, as arguments of a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dino_lab.errors import UserError
from dino_lab.runs.checkpoint import is_checkpoint
from dino_lab.runs.files import SPEC
from dino_lab.runs.study import FILE


def sorted_out(paths: Sequence[Path]) -> list[Path]:
    """The folders, each once; a UserError for one that is neither a run nor a sweep.

    One by itself may be a checkpoint in the folder of a run.
    """
    once = list({path.resolve(): path for path in reversed(paths)}.values())[::-1]
    for path in once:
        if len(once) > 1 or not is_checkpoint(path):
            _check(path)
    return once


def with_runs_below(paths: Sequence[Path]) -> list[Path]:
    """The folders; in place of one that is neither a run nor a sweep, the runs below it.

    So `runs/<name>` and `runs` stand for all their runs. UserError as for `sorted_out`.
    """
    found: list[Path] = []
    for path in paths:
        is_one = (path / SPEC).exists() or (path / FILE).exists()
        below = (
            [] if is_one else [file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/{SPEC}")]
        )
        found += sorted(below) or [path]
    return sorted_out(found)


def one_run(paths: Sequence[Path]) -> bool:
    """Whether it is a single run that is asked about."""
    return len(paths) == 1 and not (paths[0] / FILE).exists()


def _check(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such folder")
    if not path.is_dir():
        raise UserError(f"{path}: a file; give the folder of a run or of a sweep")
    if (path / SPEC).exists() or (path / FILE).exists():
        return
    if not any(path.iterdir()):
        raise UserError(f"{path}: the folder is empty; a run has a {SPEC}, a sweep a {FILE}")
    below = sorted(file.parent for name in (SPEC, FILE) for file in path.glob(f"*/{name}"))
    hint = f"; there is one below it: {below[0]}" if below else ""
    raise UserError(f"{path}: neither a run ({SPEC}) nor a sweep ({FILE}){hint}")
