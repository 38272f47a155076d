"""The functions behind `import dino_lab`: what the command line does, from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from dino_lab.errors import Misfit, SpecError

if TYPE_CHECKING:
    from dino_lab.distributed.world import World
    from dino_lab.runs.open import SavedRun
    from dino_lab.spec.model import Spec
    from dino_lab.sweeps.run import SweepResult
    from dino_lab.training import trainer
    from dino_lab.training.trainer import Listener, Outcome

PathLike = str | Path


def load(file: PathLike, *settings: str, plugins: Sequence[PathLike] = ()) -> Spec:
    """Read a spec file, or a shipped spec by name, with settings such as `"optim.lr=1e-4"` laid over it.

    `plugins` are Python files whose components are registered first. Raises SpecError with one line for each
    mistake, also where the parts of the spec do not go together.
    """
    from dino_lab.building.check import check
    from dino_lab.registry import registry
    from dino_lab.registry.plugin_files import load_plugins
    from dino_lab.spec.file import load as load_file
    from dino_lab.spec.shipped import find

    load_plugins([Path(plugin) for plugin in plugins])
    path = Path(file)
    if not path.exists() and not path.suffix:
        path = find(str(file)) or path
    document = load_file(path, settings)
    for stage in document.stages:
        try:
            check(stage.spec, registry)
        except Misfit as misfit:
            raise SpecError(stage.line(misfit.loc, misfit.message)) from misfit
    return document.spec


def run(
    spec: Spec,
    *,
    runs: PathLike = "runs",
    device: str | None = None,
    processes: int | None = None,
    max_restarts: int = 3,
    checkpoint_every: float = 60.0,
    accept_data: bool = False,
    listeners: Sequence[Listener] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train a spec in `runs/<name>/<hash>`, or go on where it was stopped; a finished run is left as it is.

    `device` is `cpu`, `cuda` or `cuda:N`; without it, cuda where there is one. `checkpoint_every` is in
    seconds. `listeners` hear of every step and row; training saves and ends once `stop` returns true.

    `processes` of this machine train the run together, and start again up to `max_restarts` times after one
    was killed. They are new processes: a script that calls this does so under `if __name__ == "__main__"`,
    and `listeners` are pickled, and called in the first of them. Where torchrun or srun has started this
    script, its processes train together without it.

    Raises UserError.
    """
    from dino_lab.distributed.launch import launch
    from dino_lab.distributed.world import world_of
    from dino_lab.registry.plugin_files import loaded_plugins
    from dino_lab.spec.file import dump_yaml

    job = _Job(
        *(spec, spec.name, tuple(loaded_plugins()), Path(runs), device),
        *(checkpoint_every, accept_data, tuple(listeners)),
    )
    if processes is None:
        return job.train(world_of(os.environ), stop)
    job = replace(job, spec=dump_yaml(spec))
    outcome: Outcome = launch(job.train, processes, restarts=max_restarts, stop=stop, start_method="spawn")
    return outcome


@dataclass(frozen=True)
class _Job:
    """What `run` was asked for, in whichever process it is done."""

    spec: Spec | str  # or its YAML
    name: str
    plugins: tuple[Path, ...]
    runs: Path
    device: str | None
    checkpoint_every: float
    accept_data: bool
    listeners: tuple[Listener, ...]

    def train(self, world: World, stop: Callable[[], bool | str]) -> Outcome:
        """Train in this process, which may be one of several."""
        from dino_lab.building.execution import choose_device
        from dino_lab.distributed.world import joined
        from dino_lab.registry import registry
        from dino_lab.registry.plugin_files import load_plugins, loaded_plugins
        from dino_lab.spec.file import load_text
        from dino_lab.training.trainer import FitOptions, fit

        load_plugins([file for file in self.plugins if file not in loaded_plugins()])
        device = choose_device(self.device, world.local_rank, world.local_size)
        options = FitOptions(self.runs, device, self.checkpoint_every, self.accept_data)
        with joined(world, device):
            spec = self.spec if not isinstance(self.spec, str) else load_text(self.spec, self.name).spec
            return fit(spec, registry, options, listeners=self.listeners, stop=cast("trainer.Stop", stop))


def open_run(folder: PathLike, *, device: str | None = "cpu") -> SavedRun:
    """Open the folder of a run: its `spec`, `data`, `backbone("teacher")`, `network("student")` and more.

    Only what is asked for is built and read. Raises UserError where there is no run, or no whole checkpoint.
    """
    from dino_lab.building.execution import choose_device
    from dino_lab.registry import registry
    from dino_lab.runs.open import open_run as open_folder

    return open_folder(Path(folder), registry, choose_device(device))


def evaluate(
    target: PathLike,
    evaluation: PathLike | None = None,
    *,
    of: Literal["teacher", "student"] | None = None,
    untrained: bool = False,
    device: str | None = None,
) -> dict[str, float]:
    """Scores of a run, a file or folder of weights, `timm:MODEL` or `plugin:NAME`, by evaluator and name.

    `evaluation` is a YAML file with evaluators, data and size; a run has its own. Raises UserError.
    """
    from dino_lab.building.execution import choose_device
    from dino_lab.evaluation.subjects import subject_of
    from dino_lab.registry import registry
    from dino_lab.spec.evaluation import load_evaluation

    document = load_evaluation(Path(evaluation), registry) if evaluation is not None else None
    subject = subject_of(
        str(target),
        registry,
        choose_device(device),
        document.evaluation if document is not None else None,
        of=of,
        untrained=untrained,
    )
    found = subject.score(of, files=False)
    return {name: value for scored in found for name, value in scored.named_scores.items()}


def sweep(
    file: PathLike,
    *settings: str,
    runs: PathLike = "runs",
    executor: Literal["ray", "inline"] = "ray",
    address: str | None = None,
    plugins: Sequence[PathLike] = (),
) -> SweepResult:
    """Run every trial of a sweep file that is not over; the result has the table, a line for each arm.

    `executor="ray"` runs trials side by side, `"inline"` one after the other in this process; `address` is
    that of a Ray cluster to join. Raises UserError.
    """
    from dino_lab.sweeps.run import run_sweep

    return run_sweep(
        Path(file),
        settings,
        runs=Path(runs),
        executor=executor,
        address=address,
        plugins=[Path(plugin) for plugin in plugins],
    )
