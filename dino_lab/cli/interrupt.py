"""What Ctrl-C and a polite kill do to a run."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

STOPPING = "stopping after this step, then saving; Ctrl-C ends at once"


class Interrupt:
    """Within it, the first SIGINT, SIGTERM or SIGHUP asks the run to stop; a second SIGINT ends it.

    Not so if it is `patient`: where whoever started this process passes on a SIGINT that has reached it too.
    """

    def __init__(self, *, announce: bool) -> None:
        self.asked = False
        self.announce, self.patient = announce, False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether the run should stop now."""
        return self.asked

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT and not self.patient:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked = True
            if self.announce:
                # Not print(): the signal may have come in the middle of one.
                os.write(2, f"{STOPPING}\n".encode())
