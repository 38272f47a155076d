"""Which runs are compared: arms, and of each arm one run for each seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino_lab.errors import UserError

FILE = "study.json"
FORMAT = 1


@dataclass(frozen=True)
class Arm:
    """One row of the table: what it changes, and its run folder by seed."""

    label: str
    settings: Mapping[str, Any]  # axis to value, as plain data
    folders: Mapping[int, Path]


@dataclass(frozen=True)
class Study:
    """Arms that are compared by one metric with one of them."""

    name: str
    metric: str
    mode: Literal["max", "min"]
    baseline: str | None
    axes: tuple[str, ...]
    arms: tuple[Arm, ...]

    def write(self, folder: Path) -> None:
        """Leave the study in a folder; run folders are remembered from there."""
        arms = [
            {
                "label": arm.label,
                "settings": dict(arm.settings),
                "runs": {str(seed): str(path.resolve()) for seed, path in arm.folders.items()},
            }
            for arm in self.arms
        ]
        plain = {**vars(self), "axes": list(self.axes), "arms": arms, "format": FORMAT}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(plain, indent=1) + "\n")


def read_study(folder: Path) -> Study:
    """The study that `write` left."""
    try:
        plain = json.loads((folder / FILE).read_text())
        if plain.pop("format") != FORMAT:
            raise UserError(f"{folder / FILE}: written by another version of dino-lab")
        arms = tuple(
            Arm(arm["label"], arm["settings"], {int(s): Path(p) for s, p in arm["runs"].items()})
            for arm in plain.pop("arms")
        )
        return Study(**{**plain, "axes": tuple(plain["axes"])}, arms=arms)
    except OSError as error:
        raise UserError(f"{folder}: no sweep lies here ({FILE}: {error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / FILE}: not the file of a sweep") from None
