"""The networks of a run that is there, opened again and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dino_lab.building.check import check_needs
from dino_lab.building.components import make_evaluators, misfits
from dino_lab.errors import Misfit, UserError
from dino_lab.evaluation.scoring import Scored, score
from dino_lab.network import Network
from dino_lab.protocols import Data, Evaluator
from dino_lab.registry import Params, Registry
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.open import open_run
from dino_lab.spec.evaluation import Evaluation


@dataclass(frozen=True)
class Subject:
    """What is scored: networks, the images, and how the networks look at them."""

    network: Callable[[Any], Network]  # of the teacher or the student
    data: Data
    size: int
    autocast: Callable[[], AbstractContextManager[object]]
    evaluators: tuple[tuple[str, Evaluator], ...]
    step: int = 0  # of the checkpoint
    warning: str = ""  # where the last checkpoint is damaged

    def score(self, of: Literal["teacher", "student"] | None = None, *, files: bool = True) -> list[Scored]:
        """What each evaluator finds, its files too if they are wanted; `of` overrides whose features."""
        if of is not None:
            for _, evaluator in self.evaluators:
                evaluator.of = of
        return score(self.evaluators, self.data, self.network, self.size, self.autocast, files=files)


def run_subject(
    path: Path,
    registry: Registry,
    device: torch.device,
    evaluation: Evaluation | None = None,
    *,
    untrained: bool = False,
) -> Subject:
    """The networks of a run's folder, as its checkpoint has them or as they were before the first step.

    Data, evaluators and size are those of the run's spec where `evaluation` says nothing else.
    """
    spec = RunFolder(path).spec(registry)
    if evaluation is not None:
        changed = {"evaluators": evaluation.evaluators, "data": evaluation.data or spec.data}
        spec = spec.model_copy(update=changed)
    if not spec.evaluators:
        raise UserError(f"{path}: its spec names no evaluators; --with FILE says by which it is scored")
    check_evaluators(spec.evaluators, {"backbone": spec.backbone.name, "data": spec.data.name}, registry)
    run = open_run(path, registry, device, spec=spec, untrained=untrained)
    if run.data.channels != run.channels:
        raise Misfit(
            ("data",),
            f"the weights do not fit images like these: {run.data.channels} channels, and the network takes "
            f"{run.channels}",
        )
    size = (evaluation and evaluation.size) or run.size
    check_size(run.backbone("student"), size)
    return Subject(
        network=run.backbone,
        data=run.data,
        size=size,
        autocast=run.autocast,
        evaluators=tuple(make_evaluators(spec.evaluators, registry).items()),
        step=run.step,
        warning=run.warning,
    )


def check_evaluators(evaluators: Sequence[Params], names: dict[str, str], registry: Registry) -> None:
    """What evaluators need is looked for before data is read."""
    built = make_evaluators(evaluators, registry).values()
    check_needs(names, registry, list(zip([params.name for params in evaluators], built, strict=True)))


def check_size(network: Network, size: int) -> None:
    """A Misfit where the backbone cannot be shown images of so many pixels."""
    backbone: Any = network.backbone
    if hasattr(backbone, "check_size"):
        with misfits("size"):
            backbone.check_size(size)
