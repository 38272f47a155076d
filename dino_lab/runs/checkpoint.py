"""The checkpoint of a run: step and state of every part, with a checksum, and the one before it."""

from __future__ import annotations

import copy
import io
import pickle
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dino_lab.errors import UserError, first_line
from dino_lab.runs.files import BEST, KEPT, LAST, PREVIOUS, SPEC, replace_file

FORMAT = 1
_MARK = b"crc32 "  # begins the comment of the zip archive that torch writes
_COMMENT = len(_MARK) + 8
_END = 22  # bytes of a zip archive's end record, whose last two are the length of the comment


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read."""

    run: str  # the hash in the folder's identity
    step: int
    seconds: float  # of training, all sessions up to here
    state: dict[str, Any]  # by part
    warning: str = ""  # where it is the one before the last


def has_checkpoint(folder: Path) -> bool:
    """Whether there is one to be read."""
    return (folder / LAST).exists() or (folder / PREVIOUS).exists()


def save_checkpoint(folder: Path, run: str, step: int, seconds: float, state: dict[str, Any]) -> None:
    """Write last.pt as a whole or not at all, and keep what it was as previous.pt."""
    buffer = _sealed(run, step, seconds, state)
    last, temporary = folder / LAST, folder / f"{LAST}.new"
    try:
        replace_file(temporary, buffer.getbuffer())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if last.exists():
        last.replace(folder / PREVIOUS)
    temporary.replace(last)


def keep_checkpoint(file: Path, run: str, step: int, seconds: float, state: dict[str, Any]) -> None:
    """Write a checkpoint that stays when others follow."""
    replace_file(file, _sealed(run, step, seconds, state).getbuffer())


def kept_epochs(folder: Path) -> list[int]:
    """The epochs whose checkpoints are kept, in order."""
    found = (re.fullmatch(KEPT.format(r"(\d+)"), file.name) for file in folder.glob(KEPT.format("*")))
    return sorted(int(match[1]) for match in found if match is not None)


def is_checkpoint(file: Path) -> bool:
    """Whether a file is a checkpoint in the folder of a run, the last one or one that is kept."""
    known = file.name in (LAST, PREVIOUS, BEST) or re.fullmatch(KEPT.format(r"\d+"), file.name)
    beside = (file.parent / SPEC).exists() or has_checkpoint(file.parent)
    return bool(known) and beside and file.is_file()


def folder_of_run(path: Path) -> Path:
    """The folder of a run that is named by it, or by one of its checkpoints."""
    return path.parent if is_checkpoint(path) else path


def read_checkpoint(path: Path, run: str | None, device: torch.device, *, mapped: bool = False) -> Checkpoint:
    """The checkpoint of a file that is kept; of a folder, or of its last.pt, the last one that is whole.

    A UserError where there is none, or none that is whole, or it is another run's.
    """
    if not is_checkpoint(path) or path.name in (LAST, PREVIOUS):
        folder = folder_of_run(path)
        found = load_checkpoint(folder, run, device, mapped=mapped)
        if found is None:
            raise UserError(f"{folder}: there is no checkpoint yet ({LAST})")
        return found
    try:
        found = _read(path, device, mapped)
    except _Damaged as error:
        raise UserError(f"{path}: not a whole checkpoint ({error})") from None
    if run is not None and found.run != run:
        raise UserError(f"{path}: belongs to run {found.run}, not to {run}")
    return found


def forget_previous(folder: Path) -> None:
    """Remove previous.pt, which a finished run does not need."""
    (folder / PREVIOUS).unlink(missing_ok=True)


def load_checkpoint(
    folder: Path, run: str | None, device: torch.device, *, mapped: bool = False
) -> Checkpoint | None:
    """The last checkpoint that is whole, or None where there is none.

    `mapped` reads of the file only what is used of its tensors. Nothing in the file is run. A UserError where
    none is whole, or it belongs to another run than `run`.
    """
    problems = []
    for name in (LAST, PREVIOUS):
        file = folder / name
        if not file.exists():
            continue
        try:
            found = _read(file, device, mapped)
        except _Damaged as error:
            problems.append(f"{file}: not a whole checkpoint ({error})")
            continue
        if run is not None and found.run != run:
            raise UserError(
                f"{file}: belongs to run {found.run}, not to {run}; move it away to start this run anew"
            )
        warning = f"{problems[0]}; {name} of step {found.step} is used" if problems else ""
        return Checkpoint(found.run, found.step, found.seconds, found.state, warning)
    if problems:
        raise UserError(f"{problems[0]}; delete it to start this run anew")
    return None


class _Damaged(Exception):
    """A file that is no whole checkpoint."""


def _read(file: Path, device: torch.device, mapped: bool) -> Checkpoint:
    _check(file)
    try:
        state = torch.load(file, map_location=device, weights_only=True, mmap=mapped)
        head = {key: state.pop(key) for key in ("format", "spec", "step")}
        seconds = float(state.pop("seconds", 0.0))
    except pickle.UnpicklingError:
        raise _Damaged(
            "it holds something else than tensors, texts and numbers, and none of it was run"
        ) from None
    except Exception as error:
        raise _Damaged(first_line(error)) from error
    if head["format"] != FORMAT:
        raise UserError(f"{file}: written by another version of dino-lab (format {head['format']})")
    return Checkpoint(head["spec"], int(head["step"]), seconds, state)


def _sealed(run: str, step: int, seconds: float, state: dict[str, Any]) -> io.BytesIO:
    """The content of a checkpoint's file."""
    buffer = io.BytesIO()
    head = {"format": FORMAT, "spec": run, "step": step, "seconds": seconds}
    torch.save({**head, **_own(state)}, buffer)
    _seal(buffer)
    return buffer


def _seal(buffer: io.BytesIO) -> None:
    """Put the checksum of the whole file into the comment of the archive."""
    with buffer.getbuffer() as content:
        if bytes(content[-_END : -_END + 4]) != b"PK\x05\x06":
            raise RuntimeError("torch wrote an archive with a comment of its own")
        content[-2:] = struct.pack("<H", _COMMENT)
        checksum = zlib.crc32(content)
    buffer.seek(0, io.SEEK_END)
    buffer.write(_MARK + f"{checksum:08x}".encode())


def _check(file: Path) -> None:
    """The checksum of the file, or where there is none (0.1.0) those of the archive's members."""
    try:
        checksum, rest = _checksum(file)
    except OSError as error:
        raise _Damaged(error.strerror) from None
    if rest.startswith(_MARK):
        if rest != _MARK + f"{checksum:08x}".encode():
            raise _Damaged("its checksum is another")
        return
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                raise _Damaged("its checksum is another")
            if archive.comment:
                raise _Damaged("its checksum is missing")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise _Damaged(first_line(error)) from None


def _checksum(file: Path) -> tuple[int, bytes]:
    """Of all but the bytes in which it would stand, and those bytes."""
    checksum, rest = 0, b""
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            block = rest + block
            checksum, rest = zlib.crc32(block[:-_COMMENT], checksum), block[-_COMMENT:]
    return checksum, rest


def _own(state: Any) -> Any:
    """The same without what lies beside a tensor: torch writes all that a view is a part of."""
    if isinstance(state, torch.Tensor):
        return state.clone() if state.untyped_storage().nbytes() > state.nbytes else state
    if not isinstance(state, dict | list):
        return state
    own = copy.copy(state)  # with what a module notes beside its state
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        own[key] = _own(value)
    return own
