"""Batches from the processes that decode images, and what is done where such a process gives nothing."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

import psutil

from dino_lab.errors import UserError, first_line

LOOK = 1.0  # seconds between two looks at the decoders
STOPPED = 10  # looks in a row at a stopped decoder (SIGSTOP) until it is ended
END = 1.0  # seconds in which a process that is gone is seen to be gone
SLOW = 120.0  # seconds without a batch until a line says so; again after twice as many
Item = TypeVar("Item")
logger = logging.getLogger("dino_lab")


def watched(loader: Iterable[Item]) -> Iterator[Item]:
    """What a `DataLoader` gives; a UserError where one of its processes was killed, or stays stopped.

    A process that is only slow is waited for.
    """
    before = active_children()
    items = _start(loader)
    watch = _Watch([child for child in active_children() if child not in before])
    try:
        while (item := watch.next(items)) is not None:
            yield item
    finally:
        watch.close()


def _start(loader: Iterable[Item]) -> Iterator[Item]:
    """The iterator, without torch's handler of SIGCHLD.

    The handler raises the death of a decoder in whatever line the main thread has come to, which may be in
    the middle of a step. Without it the next batch tells.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return items


class _Watch:
    """A thread that looks at the decoders while a batch is waited for.

    Torch waits without a limit for the tensors of a decoder that is stopped; the wait ends with the decoder.
    """

    def __init__(self, decoders: Sequence[BaseProcess]) -> None:
        self._decoders = decoders
        self._since: float | None = None  # when the wait for a batch began
        self._ended = ""  # what was done to a stopped decoder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="decoders")
        self._thread.start()

    def next(self, items: Iterator[Item]) -> Item | None:
        """The next item, None at the end; a UserError where a decoder has ended."""
        self._since = time.monotonic()
        try:
            return next(items, None)
        except (RuntimeError, OSError, EOFError) as error:
            raise UserError(f"{self._why(error)}; run the same command again to continue") from error
        finally:
            self._since = None

    def close(self) -> None:
        """Look no more, and end stopped decoders, whose end would be waited for without a limit."""
        self._over.set()
        self._thread.join()
        for decoder in self._stopped():
            decoder.kill()

    def _look(self) -> None:
        before, looks, limit = None, 0, SLOW
        while not self._over.wait(LOOK):
            since = self._since
            if since is None or since != before:
                before, looks, limit = since, 0, SLOW
                continue
            # Looks are counted, not seconds: whoever stops the whole run (Ctrl-Z) stops this thread, too.
            stopped = self._stopped()
            looks = looks + 1 if stopped else 0
            if looks >= STOPPED:
                self._ended = (
                    f"a process that decodes images (process {stopped[0].pid}) stayed stopped for "
                    f"{STOPPED * LOOK:.0f} s and was ended"
                )
                for decoder in stopped:
                    decoder.kill()
            elif time.monotonic() - since >= limit:
                logger.warning("no images for %.0f s; still waiting for them", limit)
                limit *= 2

    def _why(self, error: Exception) -> str:
        """What became of a decoder, as the reason of what torch raised."""
        if self._ended:
            return self._ended
        wait([decoder.sentinel for decoder in self._decoders], END)
        codes = [decoder.exitcode for decoder in self._decoders if decoder.exitcode]
        if not codes:
            return f"no images from the processes that decode them ({first_line(error)})"
        if codes[0] == -signal.SIGKILL:
            return (
                "a process that decodes images was killed (signal 9); unless somebody did it, the machine "
                "ran out of memory"
            )
        how = f"by signal {-codes[0]}" if codes[0] < 0 else f"with {codes[0]}"
        return f"a process that decodes images ended {how}"

    def _stopped(self) -> list[BaseProcess]:
        found = []
        for decoder in self._decoders:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(decoder.pid).status() == psutil.STATUS_STOPPED:
                    found.append(decoder)
        return found
