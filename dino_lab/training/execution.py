"""One run from start to end: the rows of the loop are shown, written and watched."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

from dino_lab.evaluation.subjects import write_files
from dino_lab.runs.backbone_file import write_backbone
from dino_lab.runs.environment import environment
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.rows import scores
from dino_lab.spec.file import dump_yaml
from dino_lab.training.build import Run
from dino_lab.training.diagnostics import Reader, Verdict
from dino_lab.training.loop import Row
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


class Execution:
    """What is known of a run while it goes on, and all that it leaves in its folder, which is locked."""

    def __init__(self, run: Run, folder: RunFolder, listeners: Sequence[Listener]) -> None:
        self.run, self.folder, self._listeners = run, folder, listeners
        self._began = time.monotonic()
        self._reader = Reader(max(LEAST_WARM_UP, run.spec.optim.lr.warmup))
        self.step = self._resume()
        self._events = Events(folder.path, self.step)
        self._clock = _Clock(self.step, run.spec.train.batch_size)
        self.saved_at = time.monotonic()

    def begin(self, beside: Sequence[str] = ()) -> None:
        """Before the first step; `beside` are the hashes of the runs that train with it."""
        facts = environment(self.run.device) | ({"trained_with": list(beside)} if beside else {})
        self.folder.write_text("env.json", json.dumps(facts, indent=2) + "\n")
        for listener in self._listeners:
            listener.started(self.run, self.folder.path, self.step)
        if self.step == 0:
            self._write(Row(0, self.run.total_steps, 0.0, self._evaluate()))

    def start_clock(self) -> None:
        """Steps are timed from here."""
        self._clock.start(self.step)

    def measure(self, row: Row) -> None:
        """A step was made: read the clock, if a row is written."""
        self.step = row.step
        for listener in self._listeners:
            listener.progressed(row.step, row.total)
        self._clock.waited += row.waited
        if row.numbers:
            row.numbers.update(self._clock.read(row.step))
            if self.run.device.type == "cuda":
                row.numbers["peak_memory"] = float(torch.cuda.max_memory_allocated(self.run.device))

    def take(self, row: Row) -> bool:
        """Evaluate what is due and write the row, if there is one; whether training goes on."""
        if row.numbers:
            row.numbers.update(self._evaluate())
            self._write(row)
        return not (self.run.spec.train.on_collapse == "stop" and self._reader.verdict.collapsed)

    def save(self) -> None:
        """Write a checkpoint."""
        self.folder.save(self.run.spec.hash, self.step, self.run.state_dict())
        self.saved_at = time.monotonic()
        for listener in self._listeners:
            listener.saved(self.step)

    def end(self, status: Status, reason: str = "") -> Outcome:
        """How it ended; of a finished run that is kept, with what it has learned."""
        scored = [found for row in self.folder.rows() if (found := scores(row))]
        outcome = Outcome(
            status,
            self.folder.path,
            self.step,
            self.run.total_steps,
            self._reader.verdict,
            seconds=time.monotonic() - self._began,
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

    def close(self) -> None:
        """Nothing more is written."""
        self._events.close()

    def _resume(self) -> int:
        run, folder = self.run, self.folder
        state = folder.load(run.spec.hash, run.device)
        step = 0
        if state is not None:
            run.load_state_dict(state)
            step = int(state["step"])
        for row in folder.keep_rows(step if state is not None else -1):
            self._reader.read(row, row["step"] / run.total_steps)
        folder.write_text("spec.yaml", dump_yaml(run.spec))
        return step

    def _evaluate(self) -> dict[str, float]:
        """Scores of the evaluators that are due, whose files are written."""
        found = self.run.evaluate_after(self.step)
        write_files(found, self.folder, self.step)
        return {name: value for scored in found for name, value in scored.named_scores.items()}

    def _write(self, row: Row) -> None:
        verdict = self._reader.read(row.numbers, row.step / row.total)
        self.folder.append_row({"step": row.step, "epoch": row.epoch, **row.numbers})
        self._events.write(row)
        for listener in self._listeners:
            listener.row(row, verdict)


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
