"""The lock of a folder: one process at a time trains a run, or runs a sweep, in it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dino_lab.errors import UserError

FILE = "lock"
BUSY = "another process is running this spec; wait for it, or change the spec"
# What a file system answers that has no locks, such as some network file systems.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class Busy(UserError):
    """Another process holds the folder."""


_held: set[tuple[int, int] | None] = (
    set()
)  # device and inode: the kernel's locks do not keep a process from itself


class Lock:
    """A folder's lock that this process holds; `warning` says where the file system has none."""

    def __init__(self, folder: Path, file: int, warning: str) -> None:
        self._folder, self._file, self.warning = folder, file, warning

    def check(self) -> None:
        """A UserError where the folder was removed or replaced, so that it may be somebody else's."""
        if not _is_at(self._file, self._folder / FILE):
            raise UserError(f"{self._folder}: was removed or replaced while this run was training in it")


@contextmanager
def locked(folder: Path, *, busy: str = BUSY) -> Iterator[Lock]:
    """Make a folder and hold its lock; a Busy, whose text ends in `busy`, where another process holds it.

    The kernel releases the lock with the process, however that ends. It is a lock of POSIX, which the
    processes that this one starts do not inherit: a decoder that outlives a killed run holds nothing.
    """
    if _key(folder / FILE) in _held:  # asked first: closing a file of this process would release its lock
        raise Busy(f"{folder}: {busy}")
    file, warning = _locked_file(folder, f"{folder}: {busy}")
    key = _key(file)
    _held.add(key)
    try:
        yield Lock(folder, file, warning)
    finally:
        _held.discard(key)
        os.close(file)


def _key(file: Path | int) -> tuple[int, int] | None:
    """Device and inode."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _locked_file(folder: Path, busy: str) -> tuple[int, str]:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            warning = _lock(file, folder, busy)
        except BaseException:
            os.close(file)
            raise
        if _is_at(file, folder / FILE):
            return file, warning
        os.close(file)  # the folder was removed between the two calls


def _lock(file: int, folder: Path, busy: str) -> str:
    """Lock, or say why that cannot be."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise Busy(busy) from None
        if error.errno not in NO_LOCKS:
            raise
        return (
            f"{folder}: its file system has no locks ({error.strerror}); make sure that no other process "
            "uses this folder"
        )
    return ""


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
