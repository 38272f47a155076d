"""Trials in any process: specs come in as text, rows go out, and each ending is kept in the run's folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dino_lab.distributed.control import is_known, largest
from dino_lab.distributed.launch import PAUSE, ProcessDied, Stop, launch
from dino_lab.distributed.world import World, joined
from dino_lab.errors import FailedElsewhere, UserError, first_line
from dino_lab.registry.plugin_files import load_plugins
from dino_lab.runs.lock import Busy
from dino_lab.runs.status import Status, read_status, write_status

if TYPE_CHECKING:
    from dino_lab.protocols import SharedData
    from dino_lab.spec.model import Spec
    from dino_lab.training import trainer

Numbers = Mapping[str, float]
loaded: set[str] = set()  # plugin files of this process
POLL = 1.0  # seconds between two looks at a run that another process trains


@dataclass(frozen=True)
class Task:
    """What a trial needs to know, as plain data that can be sent to any process or machine."""

    label: str
    name: str  # of the spec
    hash: str
    spec: str  # YAML, every default written out
    runs: str
    folder: str  # of the run
    directory: str  # that relative paths of the spec start from
    device: str
    threads: int
    checkpoint_every: float  # seconds
    stop_file: str  # while it exists, the trial saves and ends
    plugins: tuple[str, ...] = ()
    processes: int = 1  # that train the trial together
    restarts: int = 0  # of these, after one was killed
    place: World | None = None  # of this process among them, where they are on several machines

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.place is None or self.place.rank == 0

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def of(text: str) -> Task:
        """The task that `text` was made from."""
        plain = json.loads(text)
        place = World(**plain["place"]) if plain["place"] else None
        return Task(**{**plain, "plugins": tuple(plain["plugins"]), "place": place})


def prepare(task: Task) -> Spec:
    """The task's spec in a process of its own, plugins imported once; no device is touched."""
    load_plugins([Path(file) for file in task.plugins if file not in loaded])
    loaded.update(task.plugins)
    return spec_of(task)


def spec_of(task: Task) -> Spec:
    """The task's spec; imports the components that it names."""
    from dino_lab.spec.file import load_text

    spec = load_text(task.spec, f"{task.hash}.yaml").spec
    if spec.hash != task.hash:
        raise UserError(f"{task.hash}: read as {spec.hash} here; is this the same version of dino-lab?")
    return spec


def run_trials(
    tasks: Sequence[Task],
    specs: Sequence[Spec],
    report: Callable[[Task, Numbers], None],
    ended: Callable[[Task, Status], None],
    *,
    waiting: Callable[[Task], None] = lambda _: None,
    asked: Callable[[], bool] = lambda: False,
    weak: Callable[[], bool] = lambda: False,
    shared: SharedData | None = None,
) -> None:
    """Train one trial, or a stack, to the end or until it should stop; every error is an ending, too.

    Trials should stop once the sweep is `asked` to, also by its stop file, or the trial is too `weak` to go
    on. A trial whose run another process trains is `waiting`: it starts when that process ends.
    """
    import torch

    torch.set_num_threads(tasks[0].threads)
    if tasks[0].place is not None:
        ending = _train_as_one_of(tasks[0], specs[0], tasks[0].place, report, waiting, asked, weak, shared)
        return ended(tasks[0], ending)
    left = {task.hash: (task, spec) for task, spec in zip(tasks, specs, strict=True)}
    announced: set[str] = set()
    while left:
        if asked() or os.path.exists(tasks[0].stop_file):
            for task, _ in left.values():
                ended(task, Status("interrupted", reason="not started"))
            return
        busy = []
        train = _train if tasks[0].processes == 1 else _train_together
        for task, status in train(list(left.values()), report, asked, weak, shared):
            if status is None:
                busy.append(task)
            else:
                del left[task.hash]
                ended(task, status)
        for task in (task for task in busy if task.hash not in announced):
            announced.add(task.hash)
            waiting(task)
        if busy:
            time.sleep(POLL)


def _stop(task: Task, asked: Callable[[], bool], weak: Callable[[], bool]) -> Callable[[], Any]:
    """Says whether a trial should stop now, or as what: see `run_trials`."""
    return lambda: "stopped" if weak() else asked() or os.path.exists(task.stop_file)


def _train(
    pairs: Sequence[tuple[Task, Spec]],
    report: Callable[[Task, Numbers], None],
    asked: Callable[[], bool],
    weak: Callable[[], bool],
    shared: SharedData | None,
) -> Iterator[tuple[Task, Status | None]]:
    """Each trial and its ending, once it has one; None if another process is training the trial's run."""
    import torch

    from dino_lab.registry import registry
    from dino_lab.training.stacked.trainer import fit_stacked
    from dino_lab.training.trainer import FitOptions

    first, task_of = pairs[0][0], {task.hash: task for task, _ in pairs}
    options = FitOptions(Path(first.runs), torch.device(first.device), first.checkpoint_every)
    for spec, outcome in fit_stacked(
        [spec for _, spec in pairs],
        registry,
        options,
        listeners=lambda spec: [_Reporter(partial(report, task_of[spec.hash]))],
        stop=_stop(first, asked, weak),
        shared=shared,
    ):
        busy = isinstance(outcome, Busy)
        yield task_of[spec.hash], None if busy else read_status(Path(task_of[spec.hash].folder))


def _train_together(
    pairs: Sequence[tuple[Task, Spec]],
    report: Callable[[Task, Numbers], None],
    asked: Callable[[], bool],
    weak: Callable[[], bool],
    shared: SharedData | None,
) -> Iterator[tuple[Task, Status | None]]:
    """As `_train`, for one trial, in processes of its own; the first of them calls `report`."""
    ((task, spec),) = pairs

    def work(world: World, stop: Stop) -> None:
        with _joined(task, spec, world, report, shared) as train:
            train(stop)

    try:
        launch(
            *(work, task.processes),
            restarts=task.restarts,
            stop=_stop(task, asked, weak),
        )
    except Busy:
        yield task, None
        return
    except ProcessDied as died:
        conclude(task, Status("failed", reason=str(died)))
    except Exception as error:  # which the first process has recorded, if it came so far
        if read_status(Path(task.folder)).state == "not run":
            conclude(task, Status("failed", reason=first_line(error)))
    yield task, read_status(Path(task.folder))


def _train_as_one_of(
    task: Task,
    spec: Spec,
    world: World,
    report: Callable[[Task, Numbers], None],
    waiting: Callable[[Task], None],
    asked: Callable[[], bool],
    weak: Callable[[], bool],
    shared: SharedData | None,
) -> Status:
    """Train a trial as one of its processes, which others have started; how it ended here.

    That of the first process is how the trial ended; of the others only "failed" means anything.
    """
    stop, announced = _stop(task, asked, weak), False
    try:
        with _joined(task, spec, world, report, shared) as train:
            while not largest(int(bool(stop()))):
                try:
                    train(stop)
                except (Busy, FailedElsewhere) as error:
                    if not isinstance(getattr(error, "cause", error), Busy):
                        raise
                    if not announced:
                        waiting(task)
                    announced = True
                    time.sleep(POLL)
                else:
                    return read_status(Path(task.folder)) if task.writes else Status()
            return Status("interrupted", reason="not started")
    except FailedElsewhere:
        return Status()
    except Exception as error:
        if not is_known(error):
            time.sleep(PAUSE)
        recorded = read_status(Path(task.folder)) if task.writes else Status()
        where = "" if task.writes else f"process {world.rank} of {world.size}: "
        return recorded if recorded.state == "failed" else Status("failed", reason=where + first_line(error))


@contextmanager
def _joined(
    task: Task,
    spec: Spec,
    world: World,
    report: Callable[[Task, Numbers], None],
    shared: SharedData | None,
) -> Iterator[Callable[[Stop], object]]:
    """Be one of the processes of a trial; within it, train until it ends or should stop."""
    from dino_lab.building.execution import choose_device
    from dino_lab.registry import registry
    from dino_lab.training.trainer import FitOptions, fit

    device = choose_device(task.device, world.local_rank, world.local_size)
    options = FitOptions(Path(task.runs), device, task.checkpoint_every)
    listeners = [_Reporter(partial(report, task))]
    with joined(world, device, task.threads):
        yield lambda stop: fit(
            spec, registry, options, listeners=listeners, stop=cast("trainer.Stop", stop), shared=shared
        )


def conclude(task: Task, status: Status) -> None:
    """Keep a status for a trial whose process had no time to do so itself."""
    if not read_status(Path(task.folder)).is_result:
        write_status(Path(task.folder), status)


class _Reporter:
    """A listener that hands on every row."""

    def __init__(self, report: Callable[[Numbers], None]) -> None:
        self._report = report

    def started(self, run: Any, folder: Path, step: int) -> None:
        """Report the step that the run starts from, 0 or that of its checkpoint."""
        self._report({"step": step, "total": run.total_steps})

    def row(self, row: Any, verdict: Any) -> None:
        """Hand on the numbers."""
        self._report({"step": row.step, "total": row.total, "epoch": row.epoch, **row.numbers})

    def progressed(self, step: int, total: int) -> None:
        """Nothing: rows are enough."""

    def saved(self, step: int) -> None:
        """Nothing."""
