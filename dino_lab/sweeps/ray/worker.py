"""A Ray worker: it hands trials to a trial server, and their rows to Tune. It imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dino_lab.runs.status import Status
from dino_lab.sweeps.processes.trial import Task
from dino_lab.sweeps.processes.trial_client import TrialClient

_client: TrialClient | None = None  # of this process, in which Ray runs one trial after the other


def run(texts: Sequence[str], metric: str, address: str | None) -> None:
    """Run one trial, or a stack. Raises only if its process died: Ray starts such a trial again."""
    from ray import tune

    global _client
    _client = _client or TrialClient(address)
    last: dict[str, Any] = {}

    def row(name: str, numbers: Mapping[str, Any]) -> None:
        last.update({key: numbers[key] for key in ("epoch", metric) if key in numbers})
        tune.report({**last, "of": name, "row": dict(numbers)})

    def ended(name: str, ending: Status) -> None:
        tune.report({**last, "of": name, "ending": asdict(ending)})

    def waiting(name: str) -> None:
        tune.report({**last, "of": name, "waiting": True})

    _client.run([Task.of(text) for text in texts], row, ended, waiting)
