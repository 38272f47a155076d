"""The parts of a run's report that need its data or its network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from dino_lab.errors import UserError, first_line
from dino_lab.evaluation.encoder import Encoder
from dino_lab.registry import Registry
from dino_lab.reports.page.galleries import Gallery, Neighbours, attention, crops, neighbours, tokens
from dino_lab.reports.page.samples import Samples, take_samples
from dino_lab.reports.page.scatter import Scatter, scatter
from dino_lab.runs.open import SavedRun, open_run
from dino_lab.weights.file import is_run

T = TypeVar("T")


@dataclass
class Pictures:
    """What could be drawn; `left_out` says why of the rest."""

    crops: Gallery | None = None
    attention: Gallery | None = None
    tokens: Gallery | None = None
    neighbours: Neighbours | None = None
    scatter: Scatter | None = None
    samples: Samples | None = None
    network: str = ""  # whose features
    left_out: list[str] = field(default_factory=list)


def draw_pictures(path: Path, registry: Registry, device: torch.device) -> Pictures:
    """As many as the checkpoint, the data and the backbone allow; matplotlib's settings are the caller's."""
    found = Pictures()
    run = _opened(path, registry, device, found)
    if run is None:
        return found
    found.crops = _tried(found, "crops", lambda: crops(run))
    if not is_run(path):
        return found
    if run.warning:
        found.left_out.append(run.warning)
    found.network = "teacher" if run.teacher_has_network() else "student"
    if path.is_file():
        found.network += f" of {path.name}, after {run.step} steps"
    with run.encoder("teacher") as encode:
        found.samples = _tried(found, "neighbours and features", lambda: take_samples(run, encode))
        if found.samples is not None:
            _of_network(found, encode, found.samples)
    return found


def _opened(path: Path, registry: Registry, device: torch.device, found: Pictures) -> SavedRun | None:
    if is_run(path):
        return _tried(
            found, "everything that needs the data or the network", lambda: open_run(path, registry, device)
        )
    found.left_out.append("everything that needs the network: there is no checkpoint (last.pt)")
    return _tried(found, "crops", lambda: open_run(path, registry, device, untrained=True))


def _of_network(found: Pictures, encode: Encoder, samples: Samples) -> None:
    found.attention = _tried(found, "attention", lambda: attention(encode, samples))
    found.tokens = _tried(found, "tokens", lambda: tokens(encode, samples))
    if not samples.finite:
        found.left_out.append("neighbours and scatter: the features are not finite; the network has diverged")
        return
    found.neighbours = _tried(found, "neighbours", lambda: neighbours(samples))
    found.scatter = _tried(found, "features in two dimensions", lambda: scatter(samples))


def _tried(found: Pictures, what: str, make: Callable[[], T]) -> T | None:
    """One part, or a line for what is left out."""
    try:
        return make()
    except (UserError, OSError) as error:
        found.left_out.append(f"{what}: {error}")
    except (
        Exception
    ) as error:  # a backbone of timm or of a plugin may fail in any way; the rest is still shown
        found.left_out.append(f"{what}: {type(error).__name__}: {first_line(error)}")
    return None
