"""A sweep file, trained and summed up: what `dino-lab sweep` does, without a command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dino_lab.errors import UserError
from dino_lab.registry.plugin_files import load_plugins
from dino_lab.sweeps.watcher import Silent, SweepWatcher

if TYPE_CHECKING:
    from dino_lab.reports.study.claims import Judgement
    from dino_lab.reports.study.findings import Findings
    from dino_lab.reports.study.table import ArmLine
    from dino_lab.sweeps.plan.plan import Plan
    from dino_lab.sweeps.ray.cluster import Cluster
    from dino_lab.sweeps.session import Session


@dataclass(frozen=True)
class SweepResult:
    """How far a sweep is, and what its runs say."""

    folder: Path  # of tables and pictures
    findings: Findings  # without lines after a dry run
    total: int  # trials of the whole sweep
    left: int  # trials that are not over, or have failed
    refused: tuple[str, ...] = ()  # why points that a search chose are no spec

    @property
    def table(self) -> tuple[ArmLine, ...]:
        """A line for each arm; none after a dry run."""
        return tuple(self.findings.lines)

    @property
    def claims(self) -> tuple[Judgement, ...]:
        """A judgement for each claim under `expect`; none after a dry run."""
        return tuple(self.findings.claims)


def run_sweep(
    file: Path,
    settings: Sequence[str] = (),
    *,
    runs: Path = Path("runs"),
    executor: Literal["ray", "inline"] = "ray",
    address: str | None = None,
    checkpoint_every: float = 60.0,
    plugins: Sequence[Path] = (),
    watcher: SweepWatcher | None = None,
    stop: Callable[[], bool] = lambda: False,
    dry_run: bool = False,
    many: bool = False,
    check: bool = False,
) -> SweepResult:
    """Run the trials of a sweep file that are not over, and write its tables and pictures.

    `settings` are texts `key=value`: a key of the sweep file changes the sweep, any other key the base.
    Trials run side by side on Ray, on the cluster at `address` (HOST:PORT) or on one of this machine alone,
    or one after the other in this process (`executor="inline"`). `checkpoint_every` is in seconds. Once
    `stop` returns true, every trial saves and ends. More than 1,000 trials need `many`. With `check` a file
    without claims is refused.

    Raises SpecError for a file that is wrong, UserError for anything else that cannot be done, ClusterLost
    if Ray ended during the sweep; the same call goes on from there.
    """
    watcher = watcher or Silent()
    on_ray = executor == "ray" and not dry_run
    # Ray takes seconds to start; meanwhile torch is imported, the plan checked and its duration measured.
    with _cluster(address) if on_ray else nullcontext() as cluster:
        load_plugins(plugins)
        from dino_lab.registry import registry
        from dino_lab.sweeps.plan.plan import load_plan
        from dino_lab.sweeps.session import Session, locked

        plan = load_plan(file, settings, registry, runs=runs, many=many)
        _refuse_what_cannot_be(plan, file, executor, check)
        with nullcontext() if dry_run else locked(plan.folder(runs)):
            session = Session(
                *(plan, runs, cluster),
                side_by_side=executor == "ray",
                checkpoint_every=checkpoint_every,
                plugins=plugins,
            )
            watcher.planned(session.overview)
            if dry_run:
                return _planned(session)
            session.train(watcher, stop)
            done = session.write()
    return SweepResult(session.folder, done.findings, done.total, done.left, done.refused)


def _planned(session: Session) -> SweepResult:
    """What is known without training."""
    from dino_lab.reports.study.findings import Findings

    plan = session.plan
    return SweepResult(session.folder, Findings(plan.study, ()), len(plan.trials), session.overview.trials)


def _refuse_what_cannot_be(plan: Plan, file: Path, executor: str, check: bool) -> None:
    if check and not plan.study.expect:
        raise UserError(f"{file}: nothing to check; `expect` lists what is claimed of the arms")
    if executor == "inline" and plan.sweep.resources.ranks > 1:
        raise UserError(
            "--executor inline trains in one process; leave it out, or resources.processes and gpu"
        )
    if executor == "inline" and plan.sweep.scheduler is not None:
        raise UserError("--executor inline runs each trial to its end; leave it out, or the scheduler")


def _cluster(address: str | None) -> AbstractContextManager[Cluster]:
    from dino_lab.sweeps.ray.cluster import cluster

    return cluster(address)
