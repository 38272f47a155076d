"""One run from start to end: the rows of the loop are shown, written and watched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

from dino_lab.protocols import SharedData
from dino_lab.registry import Registry
from dino_lab.spec.file import dump_yaml
from dino_lab.spec.model import Spec
from dino_lab.training.build import Run, build
from dino_lab.training.diagnostics import Reader, Verdict
from dino_lab.training.environment import environment
from dino_lab.training.evaluate import write_files
from dino_lab.training.export import write_backbone
from dino_lab.training.loop import NonFinite, Row, train
from dino_lab.training.rows import scores
from dino_lab.training.run_dir import RunFolder
from dino_lab.training.tensorboard import Events

LEAST_WARM_UP = 0.05  # share of a run in which nothing is called a collapse, whatever the schedules say


class Listener(Protocol):
    """Whoever wants to know how a run goes on."""

    def started(self, run: Run, folder: Path, step: int) -> None:
        """The parts are built; `step` is above 0 where a checkpoint was found."""
        ...

    def row(self, row: Row, verdict: Verdict) -> None:
        """A row was written."""
        ...

    def progressed(self, step: int, total: int) -> None:
        """A step was made."""
        ...

    def saved(self, step: int) -> None:
        """A checkpoint was written."""
        ...


Status = Literal["finished", "already finished", "interrupted", "collapsed", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: Status
    folder: Path
    step: int
    total: int
    verdict: Verdict
    seconds: float = 0.0  # of this process
    scores_before: dict[str, float] = field(default_factory=dict)
    scores_after: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def execute(
    spec: Spec,
    registry: Registry,
    *,
    runs: Path,
    device: torch.device,
    checkpoint_every: float,
    listeners: Sequence[Listener] = (),
    stop: Callable[[], bool] = lambda: False,
    shared: SharedData | None = None,
) -> Outcome:
    """Train a spec to its end, or on from where it stopped; `checkpoint_every` is in seconds.

    `shared` is what the spec's own data part would give, where it is in memory already.
    """
    folder = RunFolder(runs / spec.name / spec.hash)
    with folder.locked():
        result = folder.result()
        if result is not None:
            verdict = Verdict(**result.pop("verdict"))
            return Outcome("already finished", folder.path, verdict=verdict, **result)
        return _Execution(spec, registry, folder, device, checkpoint_every, listeners, stop, shared).outcome()


class _Execution:
    """What one call of `execute` knows while it goes on."""

    def __init__(
        self,
        spec: Spec,
        registry: Registry,
        folder: RunFolder,
        device: torch.device,
        checkpoint_every: float,
        listeners: Sequence[Listener],
        stop: Callable[[], bool],
        shared: SharedData | None,
    ) -> None:
        self.folder, self.listeners, self.stop = folder, listeners, stop
        self.checkpoint_every = checkpoint_every
        self.began = time.monotonic()
        self.run = build(spec, registry, device, shared)
        self.reader = Reader(max(LEAST_WARM_UP, spec.optim.lr.warmup))
        self.step = self._resume()
        self.clock = _Clock(self.step, spec.train.batch_size)
        self.saved_at = time.monotonic()

    def outcome(self) -> Outcome:
        """Train, and say how it ended."""
        for listener in self.listeners:
            listener.started(self.run, self.folder.path, self.step)
        with Events(self.folder.path, self.step) as self.events:
            if self.step == 0:
                self._write(Row(0, self.run.total_steps, 0.0, self._evaluate()))
            try:
                status = self._train()
            except NonFinite as error:
                return self._end("failed", str(error))
        return self._end(status)

    def _train(self) -> Status:
        self.clock.start(self.step)
        for row in train(self.run, self.step):
            self.step = row.step
            for listener in self.listeners:
                listener.progressed(row.step, row.total)
            self.clock.waited += row.waited
            if row.numbers:
                row.numbers.update(self.clock.read(row.step))
                if self.run.device.type == "cuda":
                    row.numbers["peak_memory"] = float(torch.cuda.max_memory_allocated(self.run.device))
                row.numbers.update(self._evaluate())
                self._write(row)
                if self.run.spec.train.on_collapse == "stop" and self.reader.verdict.collapsed:
                    self._save()
                    return "collapsed"
                if time.monotonic() - self.saved_at >= self.checkpoint_every:
                    self._save()
                self.clock.start(row.step)
            if self.stop() and row.step < row.total:
                self._save()
                return "interrupted"
        self._save()
        return "finished"

    def _resume(self) -> int:
        run, folder = self.run, self.folder
        state = folder.load(run.spec.hash, run.device)
        step = 0
        if state is not None:
            run.load_state_dict(state)
            step = int(state["step"])
        for row in folder.keep_rows(step if state is not None else -1):
            self.reader.read(row, row["step"] / run.total_steps)
        folder.write_text("spec.yaml", dump_yaml(run.spec))
        folder.write_text("env.json", json.dumps(environment(run.device), indent=2) + "\n")
        return step

    def _evaluate(self) -> dict[str, float]:
        """Scores of the evaluators that are due, whose files are written."""
        found = self.run.evaluate_after(self.step)
        write_files(found, self.folder, self.step)
        return {name: value for scored in found for name, value in scored.named_scores.items()}

    def _write(self, row: Row) -> None:
        verdict = self.reader.read(row.numbers, row.step / row.total)
        self.folder.append_row({"step": row.step, "epoch": row.epoch, **row.numbers})
        self.events.write(row)
        for listener in self.listeners:
            listener.row(row, verdict)

    def _save(self) -> None:
        self.folder.save(self.run.spec.hash, self.step, self.run.state_dict())
        self.saved_at = time.monotonic()
        for listener in self.listeners:
            listener.saved(self.step)

    def _end(self, status: Status, reason: str = "") -> Outcome:
        scored = [found for row in self.folder.rows() if (found := scores(row))]
        outcome = Outcome(
            status,
            self.folder.path,
            self.step,
            self.run.total_steps,
            self.reader.verdict,
            seconds=time.monotonic() - self.began,
            scores_before=scored[0] if scored else {},
            scores_after=scored[-1] if scored else {},
            reason=reason,
        )
        if status == "finished":
            if hasattr(self.run.network("teacher").backbone, "as_timm"):
                write_backbone(self.run, self.folder.backbone, "teacher")
            result = {k: v for k, v in asdict(outcome).items() if k not in ("status", "folder")}
            self.folder.write_text("result.json", json.dumps(result, indent=2) + "\n")
        return outcome


class _Clock:
    """Speed of the steps since `start`; what happens between two starts is not counted."""

    def __init__(self, step: int, batch_size: int) -> None:
        self.batch_size = batch_size
        self.start(step)

    def start(self, step: int) -> None:
        self.step, self.time, self.waited = step, time.perf_counter(), 0.0

    def read(self, step: int) -> dict[str, float]:
        """Images per second, and the share of the time that images were waited for."""
        seconds = time.perf_counter() - self.time
        images = (step - self.step) * self.batch_size
        return {"images_per_second": images / seconds, "data_wait": self.waited / seconds}
