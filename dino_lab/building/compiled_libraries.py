"""The folder in which torch.compile keeps what it builds, after a run was killed while it was building."""

from __future__ import annotations

import struct
from pathlib import Path

import psutil


def remove_unfinished(folder: Path) -> list[Path]:
    """Delete libraries below the folder that were begun and that nobody builds now; which they were.

    The compiler writes a library where it will lie, and torch takes what lies there for whole, so that one
    that was cut would stop every later run that needs it.
    """
    cut = [file for file in folder.glob("**/*.so") if not _is_whole(file)]
    if not cut:
        return []
    commands = [part for process in psutil.process_iter() for part in _command(process)]
    removed = [file for file in cut if not any(file.name in part for part in commands)]
    for file in removed:
        file.unlink(missing_ok=True)
    return removed


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []


def _is_whole(file: Path) -> bool:
    """Whether an ELF file reaches to the end of its table of sections, which comes last.

    Of ELF64 (System V ABI, chapter 4): the table's offset is at byte 40, the size and number of its entries
    at bytes 58 and 60.
    """
    try:
        with file.open("rb") as opened:
            header = opened.read(64)
        size = file.stat().st_size
    except OSError:
        return True
    if header[:4] != b"\x7fELF":
        return size > 0
    if len(header) < 64:
        return False
    order = "<" if header[5] == 1 else ">"
    (table,) = struct.unpack_from(f"{order}Q", header, 40)
    length, entries = struct.unpack_from(f"{order}HH", header, 58)
    return size >= table + length * entries > 0
