"""How a run ended: status.json in its folder, for a run of `run` and a trial of a sweep alike."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from dino_lab.errors import UserError
from dino_lab.runs.files import STATUS, replace_file

RESULT, ENDING = "result.json", "ending.json"  # what 0.1.0 wrote: of a finished run, of a sweep's trial
State = Literal["finished", "collapsed", "stopped", "interrupted", "failed", "not run"]


@dataclass(frozen=True)
class Status:
    """How a run ended; "stopped": by a sweep's scheduler, as one of the weaker."""

    state: State = "not run"
    step: int = 0
    total: int = 0
    verdict: str = ""  # the name of a Verdict, and its sentence
    sentence: str = ""
    reason: str = ""  # of a failure
    seconds: float = 0.0  # of all sessions together
    scores_before: dict[str, float] = field(default_factory=dict)
    scores_after: dict[str, float] = field(default_factory=dict)
    # What needs no learning, by score: {"knn.20nn": {"chance": 0.1, "raw pixels": 0.39}}.
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    doubtful: bool = False  # of the verdict: it learned, but with signs that speak against it

    @property
    def is_result(self) -> bool:
        """Whether the last score counts: the run was trained to its end, or its end is a result."""
        return self.state in ("finished", "collapsed", "stopped")


def write_status(folder: Path, status: Status) -> None:
    """Replace the status of a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / STATUS, (json.dumps(asdict(status), indent=2) + "\n").encode())
    for old in (RESULT, ENDING):
        (folder / old).unlink(missing_ok=True)


def read_status(folder: Path) -> Status:
    """How the run of a folder ended, "not run" if it has not; a UserError where the file is damaged."""
    for name, read in ((STATUS, _read), (RESULT, _read_result), (ENDING, _read_ending)):
        try:
            text = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            break
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{folder / name}: cannot be read ({error})") from None
        try:
            return read(json.loads(text), folder)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{folder / name}: not what a run writes ({type(error).__name__}); remove it, and run the "
                "spec again"
            ) from None
    return Status()


def _read(plain: dict[str, Any], folder: Path) -> Status:
    known = {f.name for f in fields(Status)}
    status = Status(**{key: value for key, value in plain.items() if key in known})
    if status.state not in State.__args__ or not all(  # type: ignore[attr-defined]
        isinstance(value, (int, float)) for value in (status.step, status.total, status.seconds)
    ):
        raise ValueError
    if not all(
        isinstance(value, (int, float)) for floors in status.floors.values() for value in floors.values()
    ):
        raise ValueError
    if not all(isinstance(text, str) for text in (status.verdict, status.sentence, status.reason)):
        raise ValueError
    return status


def _read_result(plain: dict[str, Any], folder: Path) -> Status:
    """Of a finished run of 0.1.0; a sweep kept the seconds of all sessions beside it."""
    seconds = float(plain["seconds"])
    if (folder / ENDING).exists():
        kept = json.loads((folder / ENDING).read_text())
        seconds = kept["seconds"] if kept["status"] == "finished" else seconds
    return Status(
        "finished",
        plain["step"],
        plain["total"],
        plain["verdict"]["name"],
        plain["verdict"]["sentence"],
        seconds=seconds,
        scores_before=dict(plain["scores_before"]),
        scores_after=dict(plain["scores_after"]),
    )


def _read_ending(plain: dict[str, Any], folder: Path) -> Status:
    """Of a trial of 0.1.0 that did not finish."""
    state = plain.pop("status")
    return _read({**plain, "state": state, "sentence": plain["verdict"]}, folder)
