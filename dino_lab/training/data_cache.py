"""Data that is in memory already, for runs with the same data part.

Nothing is shared that does not say it may be: see `SharedData` in protocols.py. What is kept lies in main
memory and is made with one thread of torch, so that a process with a shelf can be forked, and its copies
share the pages.
"""

from __future__ import annotations

import json

import torch

from dino_lab.building.components import make_component
from dino_lab.protocols import SharedData, ability
from dino_lab.registry import Registry
from dino_lab.spec.model import Spec

MOST = 4  # data sets that are kept, those last asked for


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
