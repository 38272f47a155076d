"""MLflow: a file beside the runs, unless MLFLOW_TRACKING_URI names another store."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from dino_lab.extras import want
from dino_lab.loggers.logger import PROJECT, About

TAG = "spec_hash"
MOST_PARAMS = 100  # in one request
LONGEST_PARAM = 500  # of older servers
STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}


class MlflowLogger:
    """A run of MLflow, found again by the tag `spec_hash`; MLFLOW_EXPERIMENT_NAME names its experiment."""

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it tells of every table that it makes
        self._mlflow: Any = want("mlflow", "mlflow", "--log mlflow")
        want("sqlalchemy", "mlflow", "--log mlflow")
        self._sent = -1  # the last step that is there already

    def start(self, about: About) -> str:
        """Begin, or go on after the rows that are there already."""
        beside = about.folder.resolve().parent.parent
        store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{beside / 'mlflow.db'}")
        self._client = self._mlflow.MlflowClient(tracking_uri=store)
        experiment = self._experiment(beside.as_uri() if store.startswith("sqlite") else None)
        found = self._client.search_runs([experiment], f"tags.{TAG} = '{about.hash}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            history = self._client.get_metric_history(self._id, "epoch")
            self._sent = max((metric.step for metric in history), default=-1)
        else:
            tags = {TAG: about.hash, "group": about.group, "folder": str(about.folder)}
            self._id = self._client.create_run(experiment, tags=tags, run_name=about.name).info.run_id
            self._log_params(about)
        return f"{store}, run {self._id}"

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """All numbers in one request."""
        if step <= self._sent:
            return
        now = int(time.time() * 1000)
        metrics = [self._mlflow.entities.Metric(key, value, now, step) for key, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, status: str) -> None:
        """Close the run."""
        self._client.set_tag(self._id, "status", status)
        self._client.set_terminated(self._id, STATUS.get(status, "FAILED"))

    def _experiment(self, files: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        there = self._client.get_experiment_by_name(name)
        # MLflow would put files into the folder that it is run in.
        place = None if files is None else f"{files}/mlflow"
        return there.experiment_id if there else self._client.create_experiment(name, artifact_location=place)

    def _log_params(self, about: About) -> None:
        params = [
            self._mlflow.entities.Param(key, str(value)[:LONGEST_PARAM]) for key, value in _flat(about.spec)
        ]
        for i in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._id, params=params[i : i + MOST_PARAMS])


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, those of lists by their number."""
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        parts = list(enumerate(value))
    else:
        yield key, value
        return
    for name, part in parts:
        yield from _flat(part, f"{key}.{name}" if key else str(name))
