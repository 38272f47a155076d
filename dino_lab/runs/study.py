"""Which runs are compared: arms, and of each arm one run for each seed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino_lab.errors import UserError
from dino_lab.runs.claims import Claim
from dino_lab.spec.literal import inline

FILE = "study.json"
FORMAT = 1
_SHOWN = 12  # arms that one line names


@dataclass(frozen=True)
class Arm:
    """One row of the table: what it changes, and its run folder by seed."""

    label: str
    settings: Mapping[str, Any]  # axis to value, as plain data
    folders: Mapping[int, Path]


@dataclass(frozen=True)
class Study:
    """Arms that are compared by one metric with one of them, and what is expected of them."""

    name: str
    metric: str
    mode: Literal["max", "min"]
    baseline: str | None
    axes: tuple[str, ...]
    arms: tuple[Arm, ...]
    expect: tuple[Claim, ...] = ()  # each names its arms by label, and its metric

    def write(self, folder: Path) -> None:
        """Write study.json; run folders are kept relative to it, so that both can be moved together."""
        here = folder.resolve()
        arms = [
            {
                "label": arm.label,
                "settings": dict(arm.settings),
                "runs": {
                    str(seed): os.path.relpath(path.resolve(), here) for seed, path in arm.folders.items()
                },
            }
            for arm in self.arms
        ]
        expect = [claim.model_dump(exclude_none=True) for claim in self.expect]
        plain = {**vars(self), "axes": list(self.axes), "arms": arms, "expect": expect, "format": FORMAT}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(plain, indent=1) + "\n")


def listed(labels: Sequence[str]) -> str:
    """Labels of arms in one line; of many the first, and how many more there are."""
    more = f", and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return f"{', '.join(labels[:_SHOWN])}{more}"


def short_key(key: str, axes: Sequence[str]) -> str:
    """The last steps of a dotted key, as many as no other axis ends with; never a number first."""
    steps = key.split(".")
    for start in range(len(steps) - 1, 0, -1):
        end = steps[start:]
        shared = any(axis != key and axis.split(".")[-len(end) :] == end for axis in axes)
        if not shared and not end[0].isdecimal():
            return ".".join(end)
    return key


def short_value(value: Any) -> str:
    """A value as YAML; of a component its name, and its other values."""
    if isinstance(value, dict) and "name" in value:
        rest = {key: inner for key, inner in value.items() if key != "name"}
        return f"{value['name']}{inline(rest) if rest else ''}"
    return inline(value)


def read_study(folder: Path) -> Study:
    """The study that `write` wrote; UserError where there is none, or it is damaged."""
    here = folder.resolve()
    try:
        plain = json.loads((folder / FILE).read_text())
        if plain.pop("format") != FORMAT:
            raise UserError(f"{folder / FILE}: written by another version of dino-lab")
        arms = tuple(
            Arm(arm["label"], arm["settings"], {int(s): _run_folder(here, p) for s, p in arm["runs"].items()})
            for arm in plain.pop("arms")
        )
        expect = tuple(Claim.model_validate_json(json.dumps(claim)) for claim in plain.pop("expect", ()))
        return Study(**{**plain, "axes": tuple(plain["axes"])}, arms=arms, expect=expect)
    except OSError as error:
        raise UserError(f"{folder}: no sweep lies here ({FILE}: {error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / FILE}: not the file of a sweep") from None


def _run_folder(here: Path, path: str) -> Path:
    """A run folder of the study in `here`.

    If it is not there, `<name>/<hash>` is looked for in `<runs>`, where `<runs>/_sweeps/<name>/<hash>` is the
    study's folder: version 0.1.0 wrote absolute paths, and the runs may have been moved.
    """
    folder = Path(os.path.normpath(here / path))
    if folder.exists() or len(here.parents) < 3:
        return folder
    moved = here.parents[2].joinpath(*folder.parts[-2:])
    return moved if moved.exists() else folder
