"""A run on the processes that are not the first: they train along, and touch no file of the run's folder.

Between two steps all processes agree on what comes next, so that a stop, a collapse or a save that one of
them wants happens to all after the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch

from dino_lab.collectives import processes, rank
from dino_lab.distributed.control import disagreeing, follow, known, largest, share_state, together
from dino_lab.errors import FailedElsewhere
from dino_lab.protocols import SharedData
from dino_lab.registry import Registry
from dino_lab.spec.model import Spec
from dino_lab.training.build import Run, build
from dino_lab.training.data_cache import of_machine
from dino_lab.training.loop import NoBatch, NonFinite, train

logger = logging.getLogger(__name__)
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Decision(IntEnum):
    """What happens between two steps; of several wishes, the largest."""

    GO_ON = 0
    SAVE = 1
    COLLAPSED = 2
    INTERRUPTED = 3
    STOPPED = 4
    NONFINITE = 5
    FAILED = 6


def agree(wish: Callable[[], Decision]) -> Decision:
    """What all processes do after this step, of what each wishes; FailedElsewhere if one could not say."""
    try:
        mine = wish()
    except Exception as error:
        largest(Decision.FAILED)
        known(error)
        raise
    decided = Decision(largest(mine))
    if decided == Decision.FAILED:
        raise FailedElsewhere(RuntimeError("another process of the run failed"))
    return decided


def wish_of(why: bool | str) -> Decision:
    """The wish of somebody who asks whether to stop now, or as what."""
    if isinstance(why, str):
        return Decision[why.upper()]
    return Decision.INTERRUPTED if why else Decision.GO_ON


def follow_run(
    spec: Spec,
    registry: Registry,
    device: torch.device,
    stop: Callable[[], bool | str],
    shared: SharedData | None,
) -> Any:
    """Train along; gives the Outcome that the first process has found."""
    if (outcome := follow()) is not None:
        return outcome
    run = together(
        lambda: build(spec, registry, device, of_machine(spec, registry, shared), first_weights=False)
    )  # which come from the first process
    start, was_finished = follow()
    run.load_state_dict(share_state(None))
    if was_finished:
        return follow()
    follow()  # what is evaluated before the first step
    try:
        for row in train(run, start):
            more = row.step < row.total
            decision = agree(lambda: wish_of(stop()) if more else Decision.GO_ON)  # noqa: B023 - called here
            if decision == Decision.SAVE:
                compare_weights(run)
                follow()
            elif decision != Decision.GO_ON:
                break
    except NonFinite:
        pass  # found by all, and told by the first
    except NoBatch as error:
        raise error.cause from None
    return follow()


def compare_weights(run: Run) -> None:
    """Say so if other processes have other weights than the first: then they train different networks."""
    others = disagreeing(checksum(run)) if processes() > 1 else []
    if others and rank() == 0:
        logger.warning(
            "the weights of process %s are not those of process 0: machines that round differently, or a "
            "component that does not keep its contract (dino_lab.testing.check_component)",
            ", ".join(map(str, others)),
        )


def checksum(run: Run) -> int:
    """A number that two networks share if their weights are equal bit by bit."""
    networks = [network for network in (run.student, run.teacher.network) if network is not None]
    sums = [
        value.detach().contiguous().view(INTEGERS[value.element_size()]).sum(dtype=torch.int64)
        for network in networks
        for value in network.state_dict().values()
        if value.dtype != torch.bool
    ]
    return int(torch.stack(sums).sum())
