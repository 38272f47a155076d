"""How a trial of a sweep ended, as its run folder keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

FILE = "ending.json"
EndingStatus = Literal["finished", "collapsed", "stopped", "interrupted", "failed", "not run"]


@dataclass(frozen=True)
class Ending:
    """How a run ended; `seconds` is of all its sessions. "stopped": by a scheduler, as one of the weaker."""

    status: EndingStatus
    step: int = 0
    total: int = 0
    verdict: str = ""
    reason: str = ""
    seconds: float = 0.0


def write_ending(folder: Path, ending: Ending) -> None:
    """Keep an ending; the seconds of earlier sessions are added."""
    before = _kept(folder)
    if before is not None:
        ending = replace(ending, seconds=ending.seconds + before.seconds)
    from dino_lab.runs.folder import RunFolder  # brings torch, which a worker of Ray does without

    folder.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).write_text(FILE, json.dumps(asdict(ending), indent=2) + "\n")


def read_ending(folder: Path) -> Ending:
    """How the run of a folder ended; "not run" if it has not."""
    from dino_lab.runs.folder import RunFolder

    kept, result = _kept(folder), RunFolder(folder).result()
    if result is None:
        return kept or Ending("not run")
    verdict = result["verdict"]["name"]
    seconds = kept.seconds if kept is not None and kept.status == "finished" else result["seconds"]
    return Ending("finished", result["step"], result["total"], verdict, "", seconds)


def _kept(folder: Path) -> Ending | None:
    try:
        return Ending(**json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        return None
