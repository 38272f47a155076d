"""Signs of life between machines, so that a cut connection ends a run in words.

A process that dies closes its connections, and the others notice at once. A machine that loses its power, or
a cable, closes nothing: the others would wait for half an hour. So every process counts upwards in the store
where they met, and ends when another's count, or the store, does not answer for a minute.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as distributed
from torch.distributed import Store  # type: ignore[attr-defined]

PATIENCE = "DINO_LAB_PATIENCE"  # environment variable: seconds without a sign of life
SECONDS = 60.0


@contextmanager
def heartbeat(store: Store, rank: int, size: int) -> Iterator[None]:
    """Within it, the process ends with 1 once another one, or the store, gives no sign of life."""
    patience = float(os.environ.get(PATIENCE, SECONDS))
    over = threading.Event()
    signs = Signs(rank, size)
    beating = threading.Thread(
        target=_beat, args=(store.clone(), signs, over, patience / 20), daemon=True, name="heartbeat"
    )
    watching = threading.Thread(target=_watch, args=(signs, over, patience), daemon=True, name="watch")
    beating.start()
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


class Signs:
    """When each process was last heard of, and the store."""

    def __init__(self, rank: int, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rank, self._clock = rank, clock
        self.others = [other for other in range(size) if other != rank]
        now = clock()
        self._counts = dict.fromkeys(self.others, "")
        self._heard = dict.fromkeys(self.others, now)
        self._answered = now

    def take(self, counts: list[str]) -> None:
        """The store has answered, with the counts of the others."""
        now = self._answered = self._clock()
        for other, count in zip(self.others, counts, strict=True):
            if count != self._counts[other]:
                self._counts[other], self._heard[other] = count, now

    def silent(self, patience: float) -> str:
        """Who has not been heard of for longer than `patience` seconds; an empty text where nobody is."""
        now = self._clock()
        if now - self._answered > patience:
            return "the first process's machine"
        lost = [other for other in self.others if now - self._heard[other] > patience]
        return f"process {lost[0]}" if lost else ""


def _beat(store: Store, signs: Signs, over: threading.Event, every: float) -> None:
    names, count = [f"beat/{other}" for other in signs.others], 0
    store.set(f"beat/{signs.rank}", "0")
    while not over.is_set():
        try:
            store.set(f"beat/{signs.rank}", str(count := count + 1))
            signs.take([value.decode() for value in store.multi_get(names)])
        except distributed.DistError:
            return  # the watch notices
        over.wait(every)


def _watch(signs: Signs, over: threading.Event, patience: float) -> None:
    while not over.wait(min(1.0, patience / 10)):
        if lost := signs.silent(patience):
            print(
                f"{lost} has not been heard of for {patience:.0f} s: its connection is cut, or it is down; "
                "the same command continues from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)  # the main thread waits for an answer that does not come
