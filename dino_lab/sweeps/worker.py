"""What a worker of Ray does: it hands trials to its server, and rows to Tune. It imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dino_lab.sweeps.client import Server
from dino_lab.sweeps.trial import Task

_server: Server | None = None  # of this process, which Ray uses for one trial after the other


def run(text: str, metric: str, address: str | None) -> None:
    """One trial; raises only where its process died, so that Ray starts only such a trial again."""
    from ray import tune

    global _server
    _server = _server or Server(address)
    last: dict[str, Any] = {}

    def row(numbers: Mapping[str, Any]) -> None:
        last.update({key: numbers[key] for key in ("epoch", metric) if key in numbers})
        tune.report({**last, "row": dict(numbers)})

    ending = _server.run(Task.of(text), row)
    tune.report({**last, "ending": asdict(ending)})
