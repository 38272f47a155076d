"""One run from start to end: the rows of the loop are written, watched and saved in the run's folder.

Of several processes the first one alone does this; the others follow it (follow.py). What it does while they
wait stands in `lead`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch.utils.tensorboard import SummaryWriter

from dino_lab.building.components import component_names
from dino_lab.collectives import processes, rank
from dino_lab.distributed.control import follow, lead, share_state, together
from dino_lab.errors import UserError, first_line
from dino_lab.evaluation.floors import FOLDER, Floors, floors_of
from dino_lab.evaluation.scoring import write_files
from dino_lab.protocols import Evaluator, GivesReport, GivesTimmModel, SharedData, ability
from dino_lab.registry import Registry
from dino_lab.runs.backbone_file import write_backbone
from dino_lab.runs.checkpoint import (
    forget_previous,
    keep_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from dino_lab.runs.data_record import check_data, files_of, record_of
from dino_lab.runs.environment import environment
from dino_lab.runs.files import BEST, KEPT
from dino_lab.runs.folder import RunFolder, folder_of
from dino_lab.runs.lock import Lock
from dino_lab.runs.rows import scores
from dino_lab.runs.status import State, Status, write_status
from dino_lab.spec.file import parent_of
from dino_lab.spec.identity import identity_of
from dino_lab.spec.model import Spec
from dino_lab.training.build import Run, build
from dino_lab.training.data_cache import of_machine
from dino_lab.training.diagnostics import Reader, Verdict, followed_score
from dino_lab.training.follow import Decision, agree, compare_weights, follow_run, wish_of
from dino_lab.training.inherit import inheritance, take_over
from dino_lab.training.loop import NoBatch, NonFinite, Row, train


class Events:
    """Writes the numbers of each row under their own names; on a resumed run, from `step` on."""

    def __init__(self, folder: Path, step: int) -> None:
        if step == 0:  # events of a session that no checkpoint covers, which is trained again
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, row: Row) -> None:
        """Add one row."""
        for name, value in row.numbers.items():
            self._writer.add_scalar(name.replace(".", "/"), value, row.step)

    def close(self) -> None:
        """Write what is not yet on disk."""
        self._writer.close()


logger = logging.getLogger(__name__)
BELOW_START = "its score is below that of its first weights"  # why a run was stopped
LEAST_WARM_UP = 0.05  # share of a run in which nothing is called a collapse, whatever the schedules say
Stop = Callable[[], "bool | State"]  # whether to stop now, or as what; asked between two steps


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


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: Literal["finished", "already finished", "interrupted", "stopped", "collapsed", "failed"]
    folder: Path
    step: int
    total: int
    verdict: Verdict
    seconds: float = 0.0  # of all sessions
    scores_before: dict[str, float] = field(default_factory=dict)
    scores_after: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    floors: Floors = field(default_factory=dict)  # of the scores


@dataclass(frozen=True)
class FitOptions:
    """How specs are trained, which decides nothing about their weights."""

    runs: Path  # where run folders are made
    device: torch.device
    checkpoint_every: float = 60.0  # seconds
    accept_data: bool = False  # a run may go on, or be used again, with other data than it began with
    parent: Path | None = None  # folder of the run that `after` names, where it does not lie in `runs`


def fit(
    spec: Spec,
    registry: Registry,
    options: FitOptions,
    *,
    listeners: Sequence[Listener] = (),
    stop: Stop = lambda: False,
    shared: SharedData | None = None,
) -> Outcome:
    """Train a spec to its end, or on from where it stopped; its folder says how it ended, whatever happens.

    A finished run is not trained again; evaluators that it has not seen yet are computed. `shared` is what
    the spec's own data part would give, where it is in memory already. On several processes each of them
    calls this; the first one writes the folder and calls its listeners, and all get the same outcome.
    """
    if (ended := train_before(spec, registry, options, stop)) is not None:
        return ended
    if rank() > 0:
        outcome: Outcome = follow_run(spec, registry, options.device, stop, shared)
        return outcome
    with prepared(spec, registry, options, listeners, shared) as trainer:
        if isinstance(trainer, Outcome):
            return trainer
        return trainer.fit(stop)


def train_before(spec: Spec, registry: Registry, options: FitOptions, stop: Stop) -> Outcome | None:
    """Train the stage before that of a spec, if it is needed and not finished; its outcome if it ended early.

    Nobody listens. The folder of the spec then says why it was not trained.
    """
    if spec.after is None or spec.after.epoch is not None or options.parent is not None:
        return None
    if not (lead(lambda: _needs_parent(spec, options), bool) if rank() == 0 else follow()):
        return None
    parent = parent_of(spec, registry)
    assert parent is not None
    outcome = fit(parent, registry, options, stop=stop)
    if outcome.status in ("finished", "already finished"):
        return None
    state: State = "failed" if outcome.status in ("failed", "collapsed") else "interrupted"
    reason = f"the stage before it, {outcome.folder}: {outcome.reason or outcome.status}"
    if rank() == 0:
        write_status(folder_of(options.runs, spec).path, Status(state, reason=reason))
    return outcome


def _needs_parent(spec: Spec, options: FitOptions) -> bool:
    folder = folder_of(options.runs, spec)
    return not folder.has_checkpoint and folder.status().state != "finished"


@contextmanager
def prepared(
    spec: Spec,
    registry: Registry,
    options: FitOptions,
    listeners: Sequence[Listener],
    shared: SharedData | None = None,
) -> Iterator[Trainer | Outcome]:
    """A trainer that holds the run's folder, or the outcome of a run that has nothing left to do.

    An exception that leaves it is recorded as the run's status. On the first process of several.
    """
    with ExitStack() as held:
        folder, lock, before, outcome = lead(lambda: _opened(spec, options, held), lambda opened: opened[-1])
        trainer = None
        try:
            if outcome is not None:
                yield outcome
                return
            begins = not folder.has_checkpoint or bool(folder.unseen_evaluators(spec))
            run = together(
                lambda: build(
                    *(spec, registry, options.device, of_machine(spec, registry, shared)),
                    first_weights=begins,
                )
            )
            over = before.state == "finished"
            trainer = lead(
                lambda: Trainer(run, folder, lock, before, options, listeners, registry),
                lambda one: (one.step, over),
            )
            held.callback(trainer.close)
            if processes() > 1:
                share_state(run.state_dict())
            yield lead(trainer.evaluated, lambda outcome: outcome) if over else trainer
        except Exception as error:
            if before.state != "finished":
                now = before if trainer is None else trainer.status
                write_status(folder.path, replace(now, state="failed", reason=reason_of(error)))
            raise


def _opened(
    spec: Spec, options: FitOptions, held: ExitStack
) -> tuple[RunFolder, Lock, Status, Outcome | None]:
    """The folder of a spec, its lock, its status, and the outcome where nothing is left to do."""
    folder = folder_of(options.runs, spec)
    lock = held.enter_context(folder.locked())
    before = folder.status()
    return folder, lock, before, _over(spec, folder, before, options)


def _over(spec: Spec, folder: RunFolder, status: Status, options: FitOptions) -> Outcome | None:
    """The outcome of a run that ended before, unless there is something left to do."""
    stopped_by_collapse = status.state == "collapsed" and spec.train.on_collapse == "stop"
    stays_below = spec.init is not None and spec.init.below_start == "stop" and status.reason == BELOW_START
    if status.state == "finished":
        now = files_of(spec)
        if folder.evaluated_elsewhere(spec):
            now.pop("evaluate_on", None)  # another set is asked for, and everything is scored on it
        if options.accept_data:
            folder.accept_data(now)
        else:
            check_data(folder.path, folder.recorded_data(), now)
        if folder.unseen_evaluators(spec):
            return None
    elif not stopped_by_collapse and not stays_below:
        return None
    return Outcome(
        "already finished" if status.state == "finished" else "stopped" if stays_below else "collapsed",
        folder.path,
        status.step,
        status.total,
        verdict_of(status),
        status.seconds,
        status.scores_before,
        status.scores_after,
        status.reason,
        status.floors,
    )


def verdict_of(status: Status) -> Verdict:
    """The verdict that a status keeps."""
    score = followed_score(status.scores_before) or ""
    before, after = status.scores_before.get(score), status.scores_after.get(score)
    better = before is not None and after is not None and after > before
    return Verdict(cast(Any, status.verdict), status.sentence, status.doubtful, better)


def warm_up_of(spec: Spec) -> float:
    """Share of a run in which nothing is called a collapse."""
    return max(LEAST_WARM_UP, spec.optim.lr.warm_up(spec.train.epochs))


def reason_of(error: Exception) -> str:
    """Why a run failed, in one line."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out of memory"
    first = first_line(error)
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"


class Trainer:
    """A run that is trained in its folder, which this process has locked."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        lock: Lock,
        before: Status,
        options: FitOptions,
        listeners: Sequence[Listener],
        registry: Registry,
    ) -> None:
        self.run, self.folder = run, folder
        self._registry, self._inherits = registry, False
        self._lock, self._options, self._listeners = lock, options, listeners
        self._began = time.monotonic()
        self._floors = before.floors
        if lock.warning:
            logger.warning(lock.warning)
        self.step, self._seconds_before = 0, before.seconds
        self._new_evaluators: list[tuple[str, Evaluator]] = []
        self._resume()
        self._events = Events(folder.path, self.step)
        self._clock = _Clock(self.step, run.spec.train.batch_size)
        self.saved_at = time.monotonic()
        self._finite: torch.Tensor | None = None

    def fit(self, stop: Stop) -> Outcome:
        """Train to the end, or until `stop` says so, the run has collapsed, or a number is none."""
        lead(self.begin)
        try:
            for row in train(self.run, self.step):
                match agree(lambda: self._wish(row, stop)):  # noqa: B023 - called here
                    case Decision.GO_ON:
                        continue
                    case Decision.SAVE:
                        compare_weights(self.run)
                        lead(self.save)
                        self.start_clock()
                    case Decision.NONFINITE:
                        raise self._nonfinite
                    case decision:
                        return self._last(cast(State, decision.name.lower()))
            return self._last("finished")
        except NonFinite as error:
            return self._last("failed", str(error))
        except NoBatch as error:
            self.save()
            raise error.cause from None

    def _wish(self, row: Row, stop: Stop) -> Decision:
        """Take a step's numbers; whether the run should stop, or save, after it."""
        self.measure(row)
        self.record(row)
        if self.has_collapsed:
            return Decision.COLLAPSED
        if row.step == row.total:
            return Decision.GO_ON
        if self.fell_below:
            return Decision.STOPPED
        if why := stop():
            return wish_of(why)
        if not row.numbers or not self.is_due:
            return Decision.GO_ON
        return Decision.SAVE if self._is_finite else Decision.NONFINITE

    def _last(self, state: State, reason: str = "") -> Outcome:
        """`end`, of which the other processes are told."""
        return lead(lambda: self.end(state, reason), lambda outcome: outcome)

    def begin(self, beside: Sequence[str] = ()) -> None:
        """Before the first step; `beside` are the hashes of runs that are trained in the same stack."""
        facts = environment(self.run.device) | ({"trained_with": list(beside)} if beside else {})
        said = list(self.run.said) or self.folder.environment().get("init")  # nothing is said when it goes on
        facts |= {"init": said} if said else {}
        if (reporting := ability(self.run.data, GivesReport)) is not None:
            facts["data"] = asdict(reporting.found())
        if self.run.spec.evaluate_on is not None and (its := ability(self.run.evaluation_data, GivesReport)):
            facts["evaluate_on"] = asdict(its.found())
        self.folder.write_environment(facts)
        self._tell_started()
        if self.step == 0:
            self._write(Row(0, self.run.total_steps, 0.0, self._evaluate(self.run.due(0))))
        if self._inherits:  # from here on the run that it comes after is not needed
            self.save()
        self._find_floors()
        self.start_clock()

    def start_clock(self) -> None:
        """Steps are timed from here."""
        self._clock.start(self.step)

    def measure(self, row: Row) -> None:
        """A step was made: read the clock, if a row is written."""
        self.step, self._finite = row.step, row.finite
        for listener in self._listeners:
            listener.progressed(row.step, row.total)
        self._clock.waited += row.waited
        if row.numbers:
            row.numbers.update(self._clock.read(row.step))
            if self.run.device.type == "cuda":
                row.numbers["peak_memory"] = float(torch.cuda.max_memory_allocated(self.run.device))

    def record(self, row: Row) -> None:
        """Evaluate what is due and write the row, if there is one."""
        if row.numbers:
            row.numbers.update(self._evaluate(self.run.due(row.step)))
            self._write(row)
            if row.epoch in self.run.spec.train.keep:
                self._keep(KEPT.format(int(row.epoch)))
            if self.run.spec.train.keep_best and self._is_best(row):
                self._keep(BEST)
            self.start_clock()

    def _keep(self, name: str) -> None:
        """Write a checkpoint that is kept."""
        if not self._is_finite:
            raise self._nonfinite
        self.folder.sync_rows()
        state = self.run.state_dict()
        keep_checkpoint(self.folder.path / name, self.folder.hash, self.step, self._seconds, state)

    def _is_best(self, row: Row) -> bool:
        """Whether the score that the verdict follows is the highest so far, not counting step 0."""
        if row.step == 0 or (name := followed_score(row.numbers)) is None:
            return False
        earlier = [its[name] for its in self.folder.rows() if name in its and 0 < its["step"] < row.step]
        return row.numbers[name] > max(earlier, default=-math.inf)

    @property
    def has_collapsed(self) -> bool:
        """Whether the run is to be stopped since it has collapsed."""
        return self.run.spec.train.on_collapse == "stop" and self._reader.verdict.collapsed

    @property
    def fell_below(self) -> bool:
        """Whether the run is to be stopped since its score is below that of its first weights."""
        init = self.run.spec.init
        return init is not None and init.below_start == "stop" and self._reader.verdict.below_start

    @property
    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough for another one."""
        return time.monotonic() - self.saved_at >= self._options.checkpoint_every

    @property
    def _is_finite(self) -> bool:
        return self._finite is None or bool(self._finite)

    @property
    def _nonfinite(self) -> NonFinite:
        return NonFinite(f"loss or gradient is no number at or before step {self.step}")

    def save(self) -> None:
        """Write a checkpoint; a NonFinite where the weights are no numbers any more (on a GPU)."""
        if not self._is_finite:
            raise self._nonfinite
        self._lock.check()
        self.folder.sync_rows()
        state = self.run.state_dict()
        save_checkpoint(self.folder.path, self.folder.hash, self.step, self._seconds, state)
        self.saved_at = time.monotonic()
        for listener in self._listeners:
            listener.saved(self.step)

    def end(self, state: State, reason: str = "") -> Outcome:
        """Save, unless the run has failed, and record how it ended."""
        if state == "stopped" and self.fell_below:
            reason = BELOW_START
        if state != "failed":
            try:
                self.save()
            except NonFinite as error:
                state, reason = "failed", str(error)
        if state == "finished":
            forget_previous(self.folder.path)
            network = self.run.network("teacher")
            if ability(network.backbone, GivesTimmModel) is not None:
                write_backbone(network, self.run.spec, self.run.augment, self.folder.backbone)
        outcome = self._outcome(state, reason)
        write_status(self.folder.path, _status(state, outcome))
        return outcome

    def evaluated(self) -> Outcome:
        """The outcome of a finished run, whose new evaluators were computed when it was resumed."""
        self._tell_started()
        self.folder.add_to_row(self.step, self._evaluate(self._new_evaluators))
        self._find_floors()
        write_status(self.folder.path, self.status)
        return self._outcome("already finished", "")

    @property
    def status(self) -> Status:
        """How it stands now, as of a finished run."""
        return _status("finished", self._outcome("finished", ""))

    def close(self) -> None:
        """Nothing more is written."""
        self._events.close()

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def _resume(self) -> None:
        """Load the checkpoint, if there is one, and record what the run is."""
        run, folder = self.run, self.folder
        record = record_of(run.spec, run.data, run.evaluation_data)
        checkpoint = load_checkpoint(folder.path, folder.hash, run.device)
        # The row before the first step is written anew by a run that is still there.
        rows = folder.keep_rows(checkpoint.step if checkpoint is not None and checkpoint.step else -1)
        if checkpoint is None and run.spec.after is not None:
            rows = self._inherit(record)
        if checkpoint is not None:
            if not self._options.accept_data:
                check_data(folder.path, folder.recorded_data(), record)
            if checkpoint.warning:
                logger.warning(checkpoint.warning)
            if folder.evaluated_elsewhere(run.spec):
                logger.warning("evaluate_on names other images than before: earlier scores are dropped")
                folder.drop_scores()
                rows = folder.rows()
            names = component_names(run.spec.evaluators)
            unseen = [names[i] for i in folder.unseen_evaluators(run.spec)]
            self._new_evaluators = [(name, run.evaluators[name]) for name in unseen if name in run.evaluators]
            if self._new_evaluators and run.spec.after is None:  # of the first weights, which were built
                folder.add_to_row(0, self._evaluate(self._new_evaluators))
            run.load_state_dict(checkpoint.state)
            self.step = checkpoint.step
            self._seconds_before = max(self._seconds_before, checkpoint.seconds)
        self._read(rows)
        folder.write_identity(identity_of(run.spec), record)
        folder.write_spec(run.spec)

    def _inherit(self, record: Mapping[str, Any]) -> list[dict[str, float]]:
        """Take over the state of the run that this one comes after; a fork has the rows of its past, too."""
        spec, options = self.run.spec, self._options
        given = inheritance(spec, self._registry, options.runs, self.run.device, options.parent)
        if spec.data == given.spec.data and not options.accept_data:
            trained_on = {key: value for key, value in record.items() if key != "evaluate_on"}
            check_data(given.folder.path, given.folder.recorded_data(), trained_on)
        self.step = given.first_step(self.run)
        self.run = replace(self.run, said=take_over(self.run, given))
        self._inherits = True
        if given.epoch is None or self.step != given.checkpoint.step:
            return []
        rows = [row for row in given.folder.rows() if row["step"] <= self.step]
        self.folder.write_rows(rows)
        return rows

    def _read(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Begin a verdict with rows that were written before."""
        spec = self.run.spec
        self._reader = Reader(warm_up_of(spec), self._floors, begins_trained=spec.begins_trained)
        for row in rows:
            self._reader.read(row, row["step"] / self.run.total_steps)

    def _find_floors(self) -> None:
        """What the scores are without learning, which the verdict is told."""
        evaluators, cache = list(self.run.evaluators.items()), self._options.runs / FOLDER
        self._floors = floors_of(evaluators, self.run.evaluation_data, self.run.spec.evaluation_data, cache)
        self._read(self.folder.rows())

    def _tell_started(self) -> None:
        for listener in self._listeners:
            listener.started(self.run, self.folder.path, self.step)

    def _evaluate(self, evaluators: Sequence[tuple[str, Evaluator]]) -> dict[str, float]:
        """Scores of evaluators, whose files are written."""
        found = self.run.evaluate(evaluators)
        write_files(found, self.folder, self.step)
        return {name: value for scored in found for name, value in scored.named_scores.items()}

    def _write(self, row: Row) -> None:
        self._lock.check()
        verdict = self._reader.read(row.numbers, row.step / row.total)
        self.folder.append_row({"step": row.step, "epoch": row.epoch, **row.numbers})
        self._events.write(row)
        for listener in self._listeners:
            listener.row(row, verdict)

    def _outcome(self, state: Any, reason: str) -> Outcome:
        scored = [(row["step"], found) for row in self.folder.rows() if (found := scores(row))]
        before = _first_of([found for _, found in scored])
        return Outcome(
            state,
            self.folder.path,
            self.step,
            self.run.total_steps,
            self._reader.verdict,
            self._seconds,
            before,
            _first_of([found for step, found in reversed(scored) if step > 0]),
            reason,
            {name: dict(floors) for name, floors in self._floors.items() if name in before},
        )


def _first_of(scored: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each score where it stands first."""
    found: dict[str, float] = {}
    for row in scored:
        found = {**row, **found}
    return found


def _status(state: State, outcome: Outcome) -> Status:
    return Status(
        state,
        outcome.step,
        outcome.total,
        outcome.verdict.name,
        outcome.verdict.sentence,
        outcome.reason,
        outcome.seconds,
        outcome.scores_before,
        outcome.scores_after,
        outcome.floors,
        outcome.verdict.doubtful,
    )


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
