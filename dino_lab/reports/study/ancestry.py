"""Which runs of a study begin with other runs: stages after one, and forks of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dino_lab.runs.folder import RunFolder
from dino_lab.runs.study import Study, listed


def ancestry_notes(study: Study) -> list[str]:
    """A sentence for each run, or arm, that others of the study begin with."""
    label_of = {path.name: arm.label for arm in study.arms for path in arm.folders.values()}
    found: dict[str, list[str]] = {}
    for arm in study.arms:
        begun = list(dict.fromkeys(_beginning(arm.folders, label_of)))
        if begun:
            found.setdefault("; ".join(begun), []).append(arm.label)
    return [f"{listed(labels)}: {words}" for words, labels in found.items()]


def _beginning(folders: Mapping[int, Path], label_of: Mapping[str, str]) -> Iterator[str]:
    """What the runs of an arm begin with, in words, the same ones for runs that begin with one arm."""
    for path in folders.values():
        settings = RunFolder(path).decisive()
        if (run := settings.get("after.run")) is not None:
            epoch = settings.get("after.epoch")
            parent = label_of.get(str(run), f"run {run}")
            yield f"a stage after {parent}" if epoch is None else f"forked from {parent} after epoch {epoch}"
