"""What the processes of a run tell each other between steps: decisions, failures, and the state of a run.

The first process (rank 0) alone reads and writes the run's folder. What it does alone stands in `lead`, and
the others wait for it in `follow`. These messages have a process group of their own, on the CPU and without a
time limit: an evaluation of an hour is no failure. On one process nothing is sent.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor

from dino_lab.collectives import processes, rank
from dino_lab.errors import FailedElsewhere, UserError, first_line

T = TypeVar("T")
NO_LIMIT = timedelta(days=365)

_group: distributed.ProcessGroup | None = None


def open_channel() -> None:
    """Make the group of these messages; every process of the run has to call it."""
    global _group
    group = distributed.new_group(backend="gloo", timeout=NO_LIMIT)
    assert isinstance(group, distributed.ProcessGroup)  # which all are members of
    _group = group


def close_channel() -> None:
    """Forget the group."""
    global _group
    _group = None


def lead(work: Callable[[], T], tell: Callable[[T], object] = lambda _: None) -> T:
    """Do on the first process what it does alone; the others learn what `tell` makes of the result.

    What `work` raises is raised here, and as FailedElsewhere on the others.
    """
    if processes() == 1:
        return work()
    try:
        found = work()
    except Exception as error:
        _send(FailedElsewhere(portable(error)))
        raise known(error) from None
    _send(tell(found))
    return found


def follow() -> Any:
    """What the first process tells at the end of its `lead`; on every other process."""
    told = _send(None)
    if isinstance(told, FailedElsewhere):
        raise told
    return told


def together(work: Callable[[], T]) -> T:
    """Do the same on every process; where one fails, all end, and the first process raises the error."""
    if processes() == 1:
        return work()
    found, error = None, None
    try:
        found = work()
    except Exception as raised:
        error = raised
    failures = exchange(portable(error) if error is not None else None)
    failed = [(i, failure) for i, failure in enumerate(failures) if failure is not None]
    if not failed:
        return found  # type: ignore[return-value]
    if rank() > 0:
        raise FailedElsewhere(failed[0][1])
    if error is not None:
        raise known(error)
    place, other = failed[0]
    kind = UserError if isinstance(other, UserError) else RuntimeError
    raise known(kind(f"process {place} of {processes()}: {other}"))


def largest(value: int) -> int:
    """The largest of the values of all processes."""
    if processes() == 1:
        return value
    found = torch.tensor(value)
    distributed.all_reduce(found, distributed.ReduceOp.MAX, group=_group)
    return int(found)


def disagreeing(value: int) -> list[int]:
    """The processes whose value is not that of the first one; known to all."""
    values = [torch.tensor(0) for _ in range(processes())]
    if processes() > 1:
        distributed.all_gather(values, torch.tensor(value), group=_group)
    return [i for i, other in enumerate(values) if int(other) != int(values[0])]


def exchange(mine: T) -> list[T]:
    """What every process gives, by rank; each has to be one that can be pickled."""
    if processes() == 1:
        return [mine]
    given: list[Any] = [None] * processes()
    distributed.all_gather_object(given, mine, group=_group)
    return given


def share_state(state: dict[str, Any] | None) -> dict[str, Any]:
    """The nested `state` of the first process, on all: tensors as they are, in main memory elsewhere."""
    if processes() == 1:
        assert state is not None
        return state
    tensors: list[Tensor] = []
    message = pickled(state, tensors) if rank() == 0 else None
    content, shapes = _send((message, [(tensor.shape, tensor.dtype) for tensor in tensors]))
    if rank() > 0:
        tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in shapes]
    for tensor in tensors:
        distributed.broadcast(tensor.detach().cpu().contiguous() if rank() == 0 else tensor, 0, group=_group)
    return state if rank() == 0 else unpickled(content, tensors)  # type: ignore[return-value]


def portable(error: Exception) -> Exception:
    """The error, or one of its kind that can be sent to another process."""
    try:
        again = pickle.loads(pickle.dumps(error))
        if str(again) == str(error):
            return error
    except Exception:  # of any exception class, some of which cannot be made of their arguments
        pass
    if isinstance(error, UserError):
        return UserError(str(error))
    kind = MemoryError if isinstance(error, MemoryError | torch.OutOfMemoryError) else RuntimeError
    return kind(f"{type(error).__name__}: {first_line(error)}")


def known(error: Exception) -> Exception:
    """The error, marked as one that all processes have heard of."""
    error.known_to_all = True  # type: ignore[attr-defined]
    return error


def is_known(error: BaseException | None) -> bool:
    """Whether all processes have heard of the error, or of its cause, and end by themselves."""
    if error is None:
        return False
    told = isinstance(error, FailedElsewhere) or getattr(error, "known_to_all", False)
    return told or is_known(error.__cause__)


def _send(message: object) -> Any:
    """The message of the first process, on all."""
    told = [message]
    distributed.broadcast_object_list(told, 0, group=_group)
    return told[0]


def pickled(state: object, tensors: list[Tensor]) -> bytes:
    """The structure of an object; its tensors go into the list."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> int | None:
            if not isinstance(obj, Tensor):
                return None
            tensors.append(obj)
            return len(tensors) - 1

    buffer = io.BytesIO()
    Pickler(buffer).dump(state)
    return buffer.getvalue()


def unpickled(content: bytes, tensors: list[Tensor]) -> Any:
    """What `pickled` was given, with tensors in place of those that it took out."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: int) -> Tensor:
            return tensors[pid]

    return Unpickler(io.BytesIO(content)).load()
