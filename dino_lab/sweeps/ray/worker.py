"""A Ray worker: it hands trials to a trial server, and their rows to Tune. It imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dino_lab.runs.status import Status
from dino_lab.sweeps.processes.trial import Task
from dino_lab.sweeps.processes.trial_client import TrialClient
from dino_lab.sweeps.ray.spread_trial import SpreadTrials

# Of this process, in which Ray runs one trial after the other.
_client: TrialClient | None = None
_spread: SpreadTrials | None = None


def run(texts: Sequence[str], metric: str, address: str | None, spread: bool) -> None:
    """Run one trial, or a stack. Raises only if its process died: Ray starts such a trial again.

    The processes of a trial that is `spread` are on several machines, and this one leads them.
    """
    from ray import tune

    global _client, _spread
    _client = _client or TrialClient(address)
    last: dict[str, Any] = {}

    def row(name: str, numbers: Mapping[str, Any]) -> None:
        last.update({key: numbers[key] for key in ("epoch", metric) if key in numbers})
        tune.report({**last, "of": name, "row": dict(numbers)})

    def ended(name: str, ending: Status) -> None:
        tune.report({**last, "of": name, "ending": asdict(ending)})

    def waiting(name: str) -> None:
        tune.report({**last, "of": name, "waiting": True})

    tasks = [Task.of(text) for text in texts]
    if spread:
        _spread = _spread or SpreadTrials(_client)
        _spread.run(tasks[0], row, ended, waiting)
    else:
        _client.run(tasks, row, ended, waiting)
