"""Which runs of a study begin with other runs, or with weights that were there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dino_lab.runs.folder import RunFolder
from dino_lab.runs.study import Study, listed
from dino_lab.spec.identity import INIT_FROM

_FORK = "forked"


def ancestry_notes(study: Study) -> list[str]:
    """A sentence for all arms that begin alike, and what `untrained` means of them."""
    label_of = {path.name: arm.label for arm in study.arms for path in arm.folders.values()}
    found: dict[str, list[str]] = {}
    for arm in study.arms:
        if words := _beginning(arm.folders, label_of):
            found.setdefault(words, []).append(arm.label)
    notes = [f"{listed(labels)}: {words}" for words, labels in found.items()]
    if any(not words.startswith(_FORK) for words in found):
        notes.append("untrained: of these the score of the weights that they begin with")
    return notes


def _beginning(folders: Mapping[int, Path], label_of: Mapping[str, str]) -> str:
    """What the runs of an arm begin with, in words that are the same for runs that begin with one arm."""
    found: dict[str, list[str]] = {}
    for path in folders.values():
        settings = RunFolder(path).decisive()
        run, epoch = settings.get("after.run"), settings.get("after.epoch")
        if run is not None:
            how = "a stage after" if epoch is None else f"{_FORK} after epoch {epoch} from"
            found.setdefault(how, []).append(label_of.get(str(run), f"run {run}"))
        elif settings.get(INIT_FROM) is not None:
            found.setdefault("begins with the weights of", []).append(str(settings[INIT_FROM]))
    return "; ".join(f"{how} {' and '.join(dict.fromkeys(what))}" for how, what in found.items())
