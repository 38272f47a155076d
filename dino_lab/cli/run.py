"""The verb that trains."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dino_lab.cli.options import (
    CHECKPOINT_SECONDS,
    CheckpointEvery,
    Device,
    Plugins,
    Processes,
    Runs,
    Settings,
    SpecPath,
)
from dino_lab.errors import FailedElsewhere, UserError
from dino_lab.loggers.names import LoggerName
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from dino_lab.cli.interrupt import Interrupt
    from dino_lab.cli.summary import Notes
    from dino_lab.distributed.launch import ProcessDied, Stop
    from dino_lab.distributed.world import World
    from dino_lab.loggers.forward import Forward
    from dino_lab.protocols import Data, SharedData
    from dino_lab.spec.file import Document
    from dino_lab.training import trainer
    from dino_lab.training.trainer import FitOptions, Listener, Outcome

FAILED, INTERRUPTED = 1, 130
EXIT_CODES = {
    "finished": 0,
    "already finished": 0,
    "interrupted": INTERRUPTED,
    "stopped": 0,
    "collapsed": FAILED,
    "failed": FAILED,
}


Loggers = Annotated[
    list[LoggerName] | None,
    typer.Option(
        metavar="LOGGER",
        envvar="DINO_LAB_LOG",
        help="Send the rows there too: wandb, mlflow or trackio; repeatable.",
        show_default=False,
    ),
]


Address = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Start --processes on this Ray cluster.", show_default=False),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Threads of torch on the CPU, in each process.", show_default=False
    ),
]


def run(
    spec: SpecPath,
    settings: Settings = None,
    runs: Runs = Path("runs"),
    device: Device = None,
    processes: Processes = None,
    max_restarts: Annotated[
        int, typer.Option(metavar="N", min=0, help="Times that --processes start again after one was killed.")
    ] = 3,
    address: Address = None,
    checkpoint_every: CheckpointEvery = CHECKPOINT_SECONDS,
    plugin: Plugins = None,
    threads: Threads = None,
    accept_data: Annotated[
        bool, typer.Option("--accept-data", help="Go on with other data than the run began with.")
    ] = False,
    log: Loggers = None,
) -> None:
    """Train what a spec describes, or go on where it was stopped.

    Started by torchrun, srun or submitit, each process finds its place in its environment.
    """
    from dino_lab.cli.console import console
    from dino_lab.cli.interrupt import Interrupt

    job = Job(
        spec, settings or [], runs, device, checkpoint_every, plugin or [], threads, accept_data, log or []
    )
    with Interrupt(announce=not console().is_terminal) as interrupt:
        from dino_lab.distributed.world import world_of

        world = world_of(os.environ)
        interrupt.announce &= world.rank == 0
        interrupt.patient = world.size > 1
        if address is not None:
            code = job.on_ray(address, processes, max_restarts, interrupt)
        elif processes is None:
            code = job.beside_others(world, interrupt) if world.size > 1 else job.train(world, interrupt)
        elif world.size > 1:
            raise UserError(
                f"--processes {processes}: this is one of {world.size} processes already; leave it out"
            )
        else:
            code = job.on_several(processes, max_restarts, interrupt)
    raise typer.Exit(code)


@dataclass
class Job:
    """The command, in whichever process it is done."""

    file: Path
    settings: list[str]
    runs: Path
    device: str | None
    checkpoint_every: float
    plugins: list[Path]
    threads: int | None
    accept_data: bool
    log: list[LoggerName]
    document: Document | None = None  # once it is read
    shared: SharedData | None = None  # the data, where the process that started this one has them in memory
    parent: Path | None = None  # the run that the spec comes after, where its folder was named

    def read(self) -> Document:
        """The spec, with its plugins."""
        from dino_lab.spec.file import load

        load_plugins(self.plugins)
        return load(self.file, self.settings)

    def on_several(self, processes: str, restarts: int, stop: Interrupt) -> int:
        """Train in several processes of this machine; the exit code."""
        import torch

        from dino_lab.cli.console import console
        from dino_lab.distributed.launch import ProcessDied, launch
        from dino_lab.registry import registry
        from dino_lab.training.data_cache import Shelf

        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # or copies of this process could not use CUDA
        self.document = self.document or self.read()
        count = _count(processes, self.device)
        self.threads = self.threads or max(1, torch.get_num_threads() // count)
        self.shared = Shelf().data(self.document.spec, registry)
        echo: AbstractContextManager[None] = nullcontext()
        if console().is_terminal:
            from dino_lab.cli.live import without_echo

            echo = without_echo()
        try:
            with echo:
                return int(launch(self.train, count, restarts=restarts, stop=stop))
        except KeyboardInterrupt:  # the second; copies end with this process
            os._exit(INTERRUPTED)
        except ProcessDied as died:
            return _given_up(died)

    def on_ray(self, address: str, processes: str | None, restarts: int, stop: Interrupt) -> int:
        """Train in several processes of a Ray cluster; the exit code."""
        from dino_lab.distributed.launch import ProcessDied
        from dino_lab.distributed.on_ray import launch_on_ray
        from dino_lab.sweeps.ray.cluster import ClusterLost

        if processes is None or not processes.isdecimal() or not int(processes):
            raise UserError(f"--address {address}: --processes should say how many, a number from 1 on")
        self.read()  # so that a wrong spec is said before anything starts
        try:
            return int(
                launch_on_ray(
                    self.train,
                    int(processes),
                    address=address,
                    device=self.device,
                    cores=self.threads or 1,
                    restarts=restarts,
                    runs=self.runs,
                    stop=stop,
                )
            )
        except ClusterLost as lost:
            print(lost, file=sys.stderr)
            return FAILED
        except ProcessDied as died:
            return _given_up(died)

    def beside_others(self, world: World, stop: Interrupt) -> int:
        """`train` as one of several processes, which somebody else started."""
        from dino_lab.distributed.control import is_known
        from dino_lab.distributed.launch import PAUSE

        try:
            return self.train(world, stop)
        except Exception as error:
            end = time.monotonic() + PAUSE
            while not is_known(error) and time.monotonic() < end:
                # Most likely the end of another process was the cause, which is told there.
                if stop():
                    raise FailedElsewhere(error) from None
                time.sleep(0.05)
            if not is_known(error):
                atexit.register(os._exit, FAILED)  # an orderly end would wait for the others
            raise

    def train(self, world: World, stop: Stop) -> int:
        """Train in this process, and say how it ended; the exit code."""
        from dino_lab.building.execution import choose_device
        from dino_lab.cli.console import console
        from dino_lab.cli.summary import print_summary
        from dino_lab.distributed.control import together
        from dino_lab.distributed.world import joined
        from dino_lab.training.trainer import BELOW_START, FitOptions

        out, began = console(), time.monotonic()
        device = choose_device(self.device, world.local_rank, world.local_size)
        with joined(world, device, self.threads):
            document = self.document or together(self.read)
            gc.enable()  # see __main__.py
            options = FitOptions(self.runs, device, self.checkpoint_every, self.accept_data, self.parent)
            for stage in document.stages:
                outcome, notes, forward = self._stage(stage, options, world, stop)
                if outcome.status not in ("finished", "already finished"):
                    break
                if world.rank == 0 and stage is not document:
                    out.print(f"{outcome.status}: {outcome.folder}; the next stage follows", soft_wrap=True)
        if world.rank == 0:
            print_summary(outcome, notes, time.monotonic() - began, out)
            if picture := _picture(outcome, notes.data, device):
                out.print(picture, soft_wrap=True)
            for name, place in forward.places.items():
                out.print(f"{name}: {place}", soft_wrap=True)
        return FAILED if outcome.reason == BELOW_START else EXIT_CODES[outcome.status]

    def _stage(
        self, document: Document, options: FitOptions, world: World, stop: Stop
    ) -> tuple[Outcome, Notes, Forward]:
        """Train one stage of the spec; its outcome, and what listened."""
        from dino_lab.cli.console import console
        from dino_lab.cli.summary import Notes
        from dino_lab.cli.validate import located
        from dino_lab.loggers.forward import Forward
        from dino_lab.registry import registry
        from dino_lab.training.trainer import fit

        notes, forward = Notes(), Forward(self.log if world.rank == 0 else ())
        has_data = self.document is not None and document.spec.data == self.document.spec.data
        view = self._view(document, world, options.device, console(), stop)
        with located(document), forward, view as listening:
            outcome = fit(
                document.spec,
                registry,
                options,
                listeners=[notes, forward, listening],
                stop=cast("trainer.Stop", stop),
                shared=self.shared if has_data else None,
            )
            forward.status = outcome.status
        return outcome, notes, forward

    def _view(
        self,
        document: Document,
        world: World,
        device: torch.device,
        out: Console,
        stop: Stop,
    ) -> AbstractContextManager[Listener]:
        """The live panel on a terminal, lines elsewhere."""
        where = str(device) if world.size == 1 else f"{world.size} processes, {device.type}"
        if out.is_terminal and world.rank == 0:
            from dino_lab.cli.live import LiveView

            return LiveView(document.spec, where, out, stopping=lambda: bool(stop()))
        from dino_lab.cli.plain import PlainView

        return nullcontext(PlainView(document.spec, where))


def _given_up(died: ProcessDied) -> int:
    """Say which process died, more often than it may be started again; the exit code."""
    print(f"{died}; the same command continues from the last checkpoint", file=sys.stderr)
    return FAILED


def _count(text: str, device: str | None) -> int:
    """How many processes `--processes` asks for; a UserError where there cannot be so many."""
    from dino_lab.building.execution import choose_device

    if text == "gpu":
        import torch

        if not (count := torch.cuda.device_count()):
            raise UserError("--processes gpu: no CUDA device that torch can use; give a number")
        return count
    if not text.isdecimal() or not int(text):
        raise UserError(f"--processes {text}: should be a number from 1 on, or gpu")
    choose_device(device, int(text) - 1, int(text))
    return int(text)


def _picture(outcome: Outcome, data: tuple[Data, Data] | None, device: torch.device) -> str:
    """The line about the picture of what was learned, which is drawn where training has come to its end."""
    if data is None or outcome.status not in ("finished", "collapsed"):
        return ""
    from dino_lab.errors import first_line, printable
    from dino_lab.registry import registry
    from dino_lab.reports.learned_picture import write_learned

    try:
        path = write_learned(outcome.folder, registry, device, *data)
    except Exception as error:  # whatever a component of a plugin does: the run itself has succeeded
        return f"\nno picture of what it learned: {printable(first_line(error))}"
    return f"\nwhat it learned, before and after: {printable(str(path))}"
