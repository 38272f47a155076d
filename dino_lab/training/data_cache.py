"""Data that is in memory already, for runs with the same data part, and for the processes of a run.

Nothing is shared that does not say it may be: see `SharedData` in protocols.py. What is kept lies in main
memory and is made with one thread of torch, so that a process with a shelf can be forked, and its copies
share the pages.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dino_lab.building.components import make_component
from dino_lab.collectives import processes, rank
from dino_lab.distributed.control import exchange, pickled, unpickled
from dino_lab.protocols import SharedData, ability
from dino_lab.registry import Registry
from dino_lab.spec.model import Spec

logger = logging.getLogger(__name__)

MOST = 4  # data sets that are kept, those last asked for
_SHARED = Path("/dev/shm")
_FOLDER = _SHARED if os.access(_SHARED, os.W_OK) else Path(tempfile.gettempdir())

Shapes = list[tuple[torch.Size, torch.dtype]]


class Shelf:
    """The data of earlier specs."""

    def __init__(self) -> None:
        self._kept: dict[str, SharedData | None] = {}

    def data(self, spec: Spec, registry: Registry) -> SharedData | None:
        """The data of a spec, made if need be; None where a run has to make its own, or will fail to."""
        key = json.dumps(spec.data.model_dump(mode="json"), sort_keys=True)
        data = self._kept.pop(key) if key in self._kept else _made(spec, registry)
        self._kept[key] = data
        while len(self._kept) > MOST:
            del self._kept[next(iter(self._kept))]
        return data


def of_machine(spec: Spec, registry: Registry, mine: SharedData | None) -> SharedData | None:
    """The data of a spec, once in the memory of each machine: one process makes it, and all of them see it.

    Every process of the run calls it. `mine` is what a process has already; None is given where each has to
    make its own.
    """
    if processes() == 1:
        return mine
    host = (socket.gethostname(), _FOLDER.stat().st_dev)  # containers may have the same name
    there = exchange((host, mine is not None))
    if all(has for _, has in there):
        return mine
    first = [name for name, _ in there].index(host)
    message = _in_shared_memory(_made(spec, registry)) if rank() == first else None
    messages = exchange(message)
    found = _seen(messages[first])
    exchange(None)  # by now all have opened the file; the memory stays as long as one of them lives
    if message is not None:
        message.file.unlink()
    return found


@dataclass(frozen=True)
class _Shared:
    """An object whose tensors lie one after the other in a file."""

    file: Path
    content: bytes
    tensors: Shapes


def _in_shared_memory(data: SharedData | None) -> _Shared | None:
    """The data in a file of main memory, where the system has a folder for such; None if it cannot be."""
    if data is None:
        return None
    tensors: list[Tensor] = []
    file = _FOLDER / f"dino-lab-{os.getpid()}-{uuid.uuid4().hex}"
    try:
        content = pickled(data, tensors)
        shapes = [(tensor.shape, tensor.dtype) for tensor in tensors]
        _reserve(file, max(sum(_sizes(shapes)), 1))
        for tensor, part in zip(tensors, _parts(file, shapes), strict=True):
            part.copy_(tensor)
    except Exception as error:  # of a plugin's class, whatever it does when it is pickled; or no room
        logger.info("every process reads the images by itself: %s", error)
        file.unlink(missing_ok=True)
        return None
    return _Shared(file, content, shapes)


def _seen(message: _Shared | None) -> SharedData | None:
    if message is None:
        return None
    found: SharedData = unpickled(message.content, _parts(message.file, message.tensors))
    return found


def _reserve(file: Path, size: int) -> None:
    with file.open("xb") as opened:
        if hasattr(os, "posix_fallocate"):  # writing to memory that is not there would end the process
            os.posix_fallocate(opened.fileno(), 0, size)
        else:
            opened.truncate(size)


def _sizes(tensors: Shapes) -> list[int]:
    """Bytes of tensors, each of which begins at a multiple of 64."""
    return [-(-shape.numel() * dtype.itemsize // 64) * 64 for shape, dtype in tensors]


def _parts(file: Path, tensors: Shapes) -> list[Tensor]:
    """Tensors in the memory of a file."""
    sizes = _sizes(tensors)
    if not file.exists():  # which torch would make
        raise FileNotFoundError(f"{file}: the images that another process put there are gone")
    memory = torch.from_file(str(file), shared=True, size=sum(sizes), dtype=torch.uint8)
    return [
        part[: shape.numel() * dtype.itemsize].view(dtype).view(shape)
        for part, (shape, dtype) in zip(memory.split(sizes), tensors, strict=True)
    ]


def _made(spec: Spec, registry: Registry) -> SharedData | None:
    before = torch.get_num_threads()
    # More than one would leave a pool of threads, for which a forked copy waits for ever.
    torch.set_num_threads(1)
    try:
        data = make_component(spec, registry, torch.device("cpu"), "data", torch.device("cpu"))
    except Exception:
        return None  # the run itself will say why
    finally:
        torch.set_num_threads(before)
    shared = ability(data, SharedData)
    return shared if shared is not None and shared.resident else None
