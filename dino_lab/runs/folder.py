"""The folder of a run, `runs/<name>/<hash>/`, and the files in it.

identity.json        what decides the weights: settings, plugin code, facts of the data (see spec/identity.py)
spec.yaml            the resolved spec, every default written out
env.json             versions, plugins, git commit, hardware, what was found in the data
rows.jsonl           one row of numbers a line
events.out.*         the same for TensorBoard
last.pt              step and state of every part, with a checksum; previous.pt is the one before
epoch_N.pt           the same after an epoch of `train.keep`
backbone.safetensors the trained backbone, for plain timm
evaluations/<step>/  pictures and other files of the evaluators
learned.png          test images, where the network looks and their neighbours, before and after training
status.json          how the run ended
lock                 held by the process that trains
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from dino_lab.errors import UserError, first_line
from dino_lab.registry import Registry
from dino_lab.runs.checkpoint import has_checkpoint
from dino_lab.runs.files import BACKBONE, ENVIRONMENT, EVALUATIONS, IDENTITY, ROWS, SPEC, replace_file
from dino_lab.runs.lock import Lock, locked
from dino_lab.runs.rows import scores
from dino_lab.runs.status import Status, read_status
from dino_lab.spec import former
from dino_lab.spec.file import dump_yaml, load_text
from dino_lab.spec.identity import RunIdentity, decisive
from dino_lab.spec.model import Spec


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.backbone = path / BACKBONE

    @property
    def hash(self) -> str:
        """The hash of the run's identity, as recorded; of a run of 0.1.0 the folder's name."""
        recorded = _identity(self.path)
        return str(recorded["hash"]) if recorded is not None else self.path.resolve().name

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to be read."""
        return has_checkpoint(self.path)

    def locked(self) -> AbstractContextManager[Lock]:
        """Make the folder and hold its lock."""
        return locked(self.path)

    def spec(self, registry: Registry) -> Spec:
        """The spec as run, in the words of today."""
        text = self._read(SPEC)
        return load_text(text, str(self.path / SPEC), former.changes(text), registry).spec

    def settings(self) -> dict[str, Any]:
        """The spec as run, as plain data, so that a component that is not installed does no harm."""
        try:
            plain = yaml.safe_load(self._read(SPEC))
        except yaml.YAMLError as error:
            raise UserError(f"{self.path / SPEC}: cannot be read ({first_line(error)})") from None
        if not isinstance(plain, dict):
            raise UserError(f"{self.path / SPEC}: not the spec of a run")
        return plain

    def write_spec(self, spec: Spec) -> None:
        """Write spec.yaml."""
        self.write_text(SPEC, dump_yaml(spec))

    def unseen_evaluators(self, spec: Spec) -> list[int]:
        """Positions of a spec's evaluators that spec.yaml lacks, or has with other settings or data."""
        if not (self.path / SPEC).exists():
            return []
        seen, asked = self.settings().get("evaluators"), spec.dump()["evaluators"]
        if self.evaluated_elsewhere(spec):
            seen = []
        assert isinstance(asked, list)
        return [i for i, evaluator in enumerate(asked) if evaluator not in (seen or [])]

    def evaluated_elsewhere(self, spec: Spec) -> bool:
        """Whether spec.yaml names other data to evaluate on than a spec does."""
        if not (self.path / SPEC).exists():
            return False
        return bool(self.settings().get("evaluate_on") != spec.dump()["evaluate_on"])

    def recorded_data(self) -> dict[str, Any] | None:
        """What was recorded of the data, or None: of a run of 0.1.0, or one that has not begun."""
        recorded = _identity(self.path)
        return recorded["data"] if recorded is not None else None

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the weights, by dotted key, as recorded; empty where nothing has begun."""
        recorded = _identity(self.path)
        return dict(recorded["settings"]) if recorded is not None else {}

    def write_identity(self, identity: RunIdentity, data: Mapping[str, Any]) -> None:
        """Record what decides the weights, and what the data were."""
        content = {
            "hash": self.hash,
            "settings": identity.settings,
            "code": identity.code,
            "data": dict(data),
        }
        self.write_text(IDENTITY, json.dumps(content, indent=1) + "\n")

    def accept_data(self, now: Mapping[str, Any]) -> None:
        """Record other data than those that were recorded."""
        recorded = _identity(self.path)
        if recorded is not None:
            recorded["data"] |= now
            self.write_text(IDENTITY, json.dumps(recorded, indent=1) + "\n")

    def environment(self) -> dict[str, Any]:
        """What env.json holds; empty where there is none."""
        file = self.path / ENVIRONMENT
        facts = _read_json(file) or {}
        if not isinstance(facts.get("command", []), list) or not isinstance(
            facts.get("directory"), str | None
        ):
            raise UserError(f"{file}: not what a run writes; remove it")
        return facts

    def write_environment(self, facts: Mapping[str, Any]) -> None:
        """Write env.json."""
        self.write_text(ENVIRONMENT, json.dumps(facts, indent=2) + "\n")

    def status(self) -> Status:
        """How the run ended."""
        return read_status(self.path)

    def rows(self) -> list[dict[str, float]]:
        """Every whole line of rows.jsonl; a line that a kill cut in half is left out.

        A UserError where another line is no row.
        """
        file = self.path / ROWS
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
        return [_row(file, i, line) for i, line in enumerate(lines, 1) if line.endswith("\n")]

    def append_row(self, row: Mapping[str, float]) -> None:
        """Add one line to rows.jsonl."""
        with (self.path / ROWS).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def sync_rows(self) -> None:
        """Put rows.jsonl on the disk, before a checkpoint that comes after its rows."""
        if (self.path / ROWS).exists():
            with (self.path / ROWS).open("a") as file:
                os.fsync(file.fileno())

    def keep_rows(self, step: int) -> list[dict[str, float]]:
        """Remove rows after `step`, which a resumed run will write again; return those that stay."""
        rows = [row for row in self.rows() if row["step"] <= step]
        self.write_rows(rows)
        return rows

    def add_to_row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers to the row of a step that was written before."""
        rows = self.rows()
        self.write_rows([{**row, **numbers} if row["step"] == step else row for row in rows])

    def drop_scores(self) -> None:
        """Remove what evaluators found from all rows."""
        rows = self.rows()
        self.write_rows([{key: row[key] for key in row.keys() - scores(row).keys()} for row in rows])

    def write_rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Replace all rows."""
        self.write_text(ROWS, "".join(json.dumps(row) + "\n" for row in rows))

    def write_text(self, name: str, text: str) -> None:
        """Write a file as a whole or not at all."""
        replace_file(self.path / name, text.encode())

    def write_evaluation(self, step: int, name: str, content: bytes) -> None:
        """Write a file of an evaluator after so many steps."""
        folder = self.path / EVALUATIONS / f"{step:06}"
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, content)

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: no run lies here ({name}: {error.strerror})") from None
        except UnicodeDecodeError:
            raise UserError(f"{self.path / name}: cannot be read (not UTF-8 text)") from None


def locate(runs: Path, identity: RunIdentity, name: str) -> RunFolder:
    """The folder of a spec with this name and identity: the one that was trained, or the one to be made.

    Usually `runs/<name>/<hash>`. A run that was named by other rules (0.1.0), or when a default was another,
    is found by what it recorded, so a default that has changed is never taken for the one of then.
    """
    parent = runs / name
    usual = parent / identity.hash
    if _matches(usual, identity):
        return RunFolder(usual)
    found = [path for path in _folders_in(parent) if _matches(path, identity)]
    if found:
        return RunFolder(min(found, key=lambda path: (read_status(path).state != "finished", path.name)))
    return RunFolder(parent / identity.full_hash if _recorded(usual) is not None else usual)


def folder_of(runs: Path, spec: Spec) -> RunFolder:
    """The folder of a spec."""
    from dino_lab.spec.identity import identity_of

    return locate(runs, identity_of(spec), spec.name)


def _matches(path: Path, identity: RunIdentity) -> bool:
    recorded = _recorded(path)
    return recorded is not None and identity.same_as(*recorded)


def _folders_in(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from (path for path in sorted(parent.iterdir()) if path.is_dir())


def _recorded(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str] | None] | None:
    """Settings and code that a folder records; None where nothing has begun there."""
    for name in (IDENTITY, SPEC):
        try:
            return _recorded_in(path / name, (path / name).stat().st_mtime_ns)
        except OSError:
            continue
    return None


@lru_cache(maxsize=4096)
def _recorded_in(file: Path, changed: int) -> tuple[Mapping[str, Any], Mapping[str, str] | None] | None:
    if file.name == IDENTITY:
        recorded = _identity(file.parent)
        return None if recorded is None else (recorded["settings"], recorded["code"])
    try:
        return decisive(RunFolder(file.parent).settings()), None
    except UserError:
        return None


def _identity(path: Path) -> dict[str, Any] | None:
    recorded = _read_json(path / IDENTITY)
    if recorded is not None and not (
        isinstance(recorded.get("hash"), str)
        and all(isinstance(recorded.get(key), dict) for key in ("settings", "code", "data"))
    ):
        raise UserError(
            f"{path / IDENTITY}: not what a run records; move the folder away to train this spec anew"
        )
    return recorded


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
    if not isinstance(plain, dict):
        raise UserError(f"{file}: not what a run writes")
    return plain


_LEAST_EPOCH = 1e-12  # one step of any data set


def _row(file: Path, line: int, text: str) -> dict[str, float]:
    try:
        row = json.loads(text)
        sum(map(float, row.values()))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        row = None
    if (
        isinstance(row, dict)
        and {"step", "epoch"} <= row.keys()
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in row.values())
        and isinstance(row["step"], int)
        and (row["epoch"] == 0 or _LEAST_EPOCH < row["epoch"] < math.inf)  # a loss may be no number
    ):
        return row
    raise UserError(f"{file}:{line}: not a row of numbers; remove the line, or the file")
