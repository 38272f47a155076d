"""What a worker of Ray does: it hands trials to its server, and rows to Tune. It imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dino_lab.runs.status import Ending
from dino_lab.sweeps.processes.client import Server
from dino_lab.sweeps.processes.trial import Task

_server: Server | None = None  # of this process, which Ray uses for one trial after the other


def run(texts: Sequence[str], metric: str, address: str | None) -> None:
    """One trial, or a pack; raises only where its process died, so that Ray starts only such again."""
    from ray import tune

    global _server
    _server = _server or Server(address)
    last: dict[str, Any] = {}

    def row(name: str, numbers: Mapping[str, Any]) -> None:
        last.update({key: numbers[key] for key in ("epoch", metric) if key in numbers})
        tune.report({**last, "of": name, "row": dict(numbers)})

    def ended(name: str, ending: Ending) -> None:
        tune.report({**last, "of": name, "ending": asdict(ending)})

    _server.run([Task.of(text) for text in texts], row, ended)
