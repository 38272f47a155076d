"""The processes of a run on a Ray cluster: Ray Train starts them, and starts them again after one was lost.

Ray decides only which process runs where. They meet and train as anywhere else, and what is true of the run
is in its folder, on storage that all machines share. What the first process prints goes to a file there,
which is followed here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from dino_lab.distributed.launch import LOOK, ProcessDied, Work, log_to
from dino_lab.distributed.world import world_of
from dino_lab.errors import FailedElsewhere, UserError, first_line
from dino_lab.sweeps.plan.model import Resources
from dino_lab.sweeps.ray.capacity import Machine
from dino_lab.sweeps.ray.cluster import Cluster, cluster
from dino_lab.sweeps.ray.dispatch import refuse_foreign_storage

FOLDER = "_ray"  # in the folder of all runs: what Ray Train writes, and what is printed
_QUIET = {
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
}


def launch_on_ray(
    work: Work,
    processes: int,
    *,
    address: str,
    device: str | None,
    cores: int,
    restarts: int,
    runs: Path,
    stop: Callable[[], bool],
) -> Any:
    """Call `work` in so many processes of the cluster at HOST:PORT; what it returns in the first of them.

    Each has `cores`, and a GPU of its own unless `device` is cpu, or the cluster has no GPU. `runs` has to be
    the same folder on all machines. Raises what `work` raised, a ProcessDied, a ClusterLost, or a UserError
    where the cluster does not have what is asked for.
    """
    os.environ.update(_QUIET)
    with cluster(address) as joined, _folder(runs) as folder:
        gpu = device != "cpu" and (device is not None or any(one.gpus for one in joined.machines))
        _refuse_what_is_not_there(joined.machines, processes, gpu, cores)
        joined.prepare((), None)
        joined.wait()
        refuse_foreign_storage(folder, [str(Path.cwd())])
        task = _Task(work, folder, str(Path.cwd()))
        done: Future[Any] = Future()
        arguments = (task, processes, gpu, cores, restarts, done)
        thread = threading.Thread(target=_train, args=arguments, daemon=True, name="ray train")
        thread.start()
        _follow(folder, done, joined, stop)
        return _result(done, restarts)


class _Task:
    """What each process does."""

    def __init__(self, work: Work, folder: Path, directory: str) -> None:
        self.work, self.folder, self.directory = work, folder, directory

    def __call__(self) -> tuple[Any, Exception | None]:
        """What `work` gives, or what it raised: Ray would start again what cannot succeed."""
        os.chdir(self.directory)
        world = world_of(os.environ)
        log_to(self.folder / (f"{world.rank}.log" if world.rank else "log"))
        try:
            return self.work(world, (self.folder / "stop").exists), None
        except FailedElsewhere:
            return None, None
        except Exception as error:
            from dino_lab.distributed.control import is_known, portable

            if is_known(error):
                return None, portable(error)
            raise
        finally:
            sys.stdout.flush()


def _train(task: _Task, processes: int, gpu: bool, cores: int, restarts: int, done: Future[Any]) -> None:
    """Run Ray Train to its end."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    try:
        trainer = TorchTrainer(
            lambda: task(),
            torch_config=_config(TorchConfig),
            scaling_config=ScalingConfig(
                num_workers=processes,
                use_gpu=gpu,
                resources_per_worker={"CPU": cores, **({"GPU": 1} if gpu else {})},
            ),
            run_config=RunConfig(
                name="train",
                storage_path=str(task.folder),
                failure_config=FailureConfig(max_failures=restarts),
            ),
        )
        done.set_result(trainer.fit().return_value)
    except BaseException as error:
        done.set_exception(error)


def _config(kind: Any) -> Any:
    """Ray's settings for torch, but for the process group, which every run makes by itself."""
    from ray.train._internal.utils import get_address_and_port
    from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

    class Meeting(_TorchBackend):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            host, port = worker_group.execute_single(0, get_address_and_port)

            def tell(host: str, port: int) -> None:
                os.environ.update({"MASTER_ADDR": host, "MASTER_PORT": str(port)})

            worker_group.execute(tell, host=host, port=port)
            worker_group.execute(_set_torch_distributed_env_vars)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            pass

    class Config(kind):  # type: ignore[misc]
        @property
        def backend_cls(self) -> Any:
            return Meeting

    return Config()


def _refuse_what_is_not_there(machines: list[Machine], processes: int, gpu: bool, cores: int) -> None:
    """Ray waits without end for what a cluster does not have."""
    asked = Resources(cpu=cores, gpu=processes) if gpu else Resources(cpu=cores, processes=processes)
    fit = [machine.room(asked) for machine in machines]
    if sum(fit) < processes:
        share = f"{cores} core(s)" + (" and a GPU" if gpu else "")
        raise UserError(
            f"--processes {processes}: the cluster has room for {sum(fit)}, of {share} each; it has "
            + ", ".join(f"{one.cpus} cores and {one.gpus} GPUs ({one.name})" for one in machines)
        )


@contextlib.contextmanager
def _folder(runs: Path) -> Iterator[Path]:
    """A folder of this command's own, on the storage that machines share."""
    folder = runs.resolve() / FOLDER / uuid.uuid4().hex[:12]
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _follow(folder: Path, done: Future[Any], joined: Cluster, stop: Callable[[], bool]) -> None:
    """Print what the first process prints, and hand on the request to stop, until all have ended."""
    read = 0
    over = False
    while not over:
        over = done.done()  # asked first: what is printed last is read once more
        with contextlib.suppress(FileNotFoundError), (folder / "log").open() as log:
            log.seek(read)
            text = log.read()
            read = log.tell()
            print(text, end="", flush=True)
        if stop():
            (folder / "stop").touch()
        joined.check()
        time.sleep(LOOK)


def _result(done: Future[Any], restarts: int) -> Any:
    from ray.train import WorkerGroupError
    from ray.train.v2.api.exceptions import TrainingFailedError

    try:
        found, error = done.result()
    except WorkerGroupError as failed:
        rank, first = min(failed.worker_failures.items())
        if isinstance(first, UserError | ValueError):
            raise first from None
        raise ProcessDied(rank, first_line(first), restarts) from None
    except TrainingFailedError as failed:
        raise ProcessDied(0, first_line(failed), restarts) from None
    if error is not None:
        raise error
    return found
