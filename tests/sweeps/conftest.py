from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest


@pytest.fixture
def interrupted_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """While it is entered, SIGTERM comes with the row of a step."""
    from dino_lab.sweeps import session

    original = session.run_trials

    @contextmanager
    def at(step: int) -> Iterator[None]:
        def interrupt(tasks: Any, specs: Any, report: Any, ended: Any, **options: Any) -> None:
            def once(task: Any, row: Any) -> None:
                report(task, row)
                if row["step"] == step:
                    os.kill(os.getpid(), signal.SIGTERM)

            original(tasks, specs, once, ended, **options)

        with monkeypatch.context() as patch:
            patch.setattr(session, "run_trials", interrupt)
            yield

    return at
