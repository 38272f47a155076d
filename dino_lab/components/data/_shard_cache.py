"""A folder of bounded size with copies of remote shards, shared by all processes of a machine.

The copy that was used longest ago makes room for the next one. A copy gets its name when it is whole; until
then its length is reserved under another name, which a process holds by a lock that goes with it.

Locks are given back before their file is closed: a process that was forked meanwhile, to decode images, has
the file open too, and closing it here alone would leave the lock with that process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dino_lab.components.data._shard_index import name_of

FOLDER = "DINO_LAB_CACHE"  # the environment variable that names the folder
PART = ".part"
LEFT_FREE = 1 << 30  # bytes of the disk that are never taken
logger = logging.getLogger("dino_lab")


def cache_folder() -> Path:
    """Where indexes and copies are kept: `DINO_LAB_CACHE`, or a folder of the user's cache; not made yet."""
    given, cache = os.environ.get(FOLDER), os.environ.get("XDG_CACHE_HOME")
    folder = Path(given) if given else (Path(cache) if cache else Path.home() / ".cache") / "dino-lab"
    there = next(its for its in (folder, *folder.absolute().parents) if its.exists())
    can_be_written = there.is_dir() and os.access(there, os.W_OK)
    return folder if can_be_written else Path(tempfile.gettempdir(), f"dino-lab-{os.getuid()}")


class ShardCache:
    """Copies of at most `limit` bytes together."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder / "copies", limit

    def path(self, address: str, stamp: str, part: str = "") -> Path:
        """Where the copy of a file, or of a part of it, is or would be."""
        text = "\0".join((address, stamp, part))
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:20]
        return self.folder / f"{digest}-{name_of(address)[-100:]}"

    def use(self, file: Path) -> bool:
        """Whether a copy is there; it is then the one used last."""
        try:
            os.utime(file)
        except OSError:
            return False
        return True

    def fill(
        self, file: Path, size: int, write: Callable[[BinaryIO], None], needed: Iterable[Path] = ()
    ) -> bool:
        """Make a copy of up to `size` bytes; False where there is no room, or another process is at it.

        Copies that are `needed` stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + PART)
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "rb+") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            try:
                if file.exists() or not part.exists():
                    return file.exists()
                if not self._reserve(opened, size, {file, *needed}):
                    return False
                opened.seek(0)
                write(opened)
                opened.truncate(opened.tell())
                opened.flush()
                os.fsync(opened.fileno())
                part.replace(file)
                return True
            except OSError as error:  # the disk is full, or breaks
                logger.warning("no copy of %s is kept: %s", file.name, error.strerror or error)
                return False
            finally:
                part.unlink(missing_ok=True)
                fcntl.flock(opened, fcntl.LOCK_UN)

    def _reserve(self, opened: BinaryIO, size: int, needed: set[Path]) -> bool:
        with self._locked():
            there = {}
            for other in self.folder.iterdir():
                with contextlib.suppress(OSError):  # gone meanwhile
                    if other.suffix != PART or not self._is_left(other):
                        there[other] = other.stat()
            total = sum(status.st_size for status in there.values())
            last_used = sorted(there, key=lambda its: there[its].st_mtime)
            goes = [other for other in last_used if other.suffix != PART and other not in needed]
            free = shutil.disk_usage(self.folder).free - LEFT_FREE
            removable = sum(there[other].st_size for other in goes)
            if total - removable + size > self.limit or free + removable < size:
                return False
            for other in goes:
                if total + size <= self.limit and free >= size:
                    break
                other.unlink(missing_ok=True)
                total, free = total - there[other].st_size, free + there[other].st_size
            opened.truncate(0)
            opened.truncate(size)
            return True

    def _is_left(self, part: Path) -> bool:
        """Whether the process that wrote here is gone; its part is then removed."""
        with part.open("rb+") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            part.unlink(missing_ok=True)
            return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder.parent / "copies.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)
