"""The networks of a run that is there, opened again and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from dino_lab.building.check import check_needs
from dino_lab.building.components import make_evaluators, make_method, make_part, misfits
from dino_lab.errors import UserError
from dino_lab.evaluation.scoring import Scored, network_of, score
from dino_lab.network import Network
from dino_lab.protocols import Data, Evaluator
from dino_lab.registry import Params, Registry
from dino_lab.runs.folder import RunFolder
from dino_lab.spec.evaluation import Evaluation
from dino_lab.spec.model import Spec
from dino_lab.training.build import Run, autocast, build


@dataclass(frozen=True)
class Subject:
    """What is scored: networks, the images, and how the networks look at them."""

    network: Callable[[str], Network]  # by whose it is
    data: Data
    size: int
    autocast: Callable[[], AbstractContextManager[object]]
    evaluators: tuple[tuple[str, Evaluator], ...]
    step: int = 0  # of the checkpoint

    def score(self, of: Literal["teacher", "student"] | None = None, *, files: bool = True) -> list[Scored]:
        """What each evaluator finds, its files too if they are wanted; `of` overrides whose features."""
        if of is not None:
            for _, evaluator in self.evaluators:
                evaluator.of = of
        return score(self.evaluators, self.data, self.network, self.size, self.autocast, files=files)


def open_run(path: Path, registry: Registry, device: torch.device) -> Run:
    """The run of a folder, with the state of its checkpoint."""
    spec = RunFolder(path).spec(registry)
    run = build(spec, registry, device)
    run.load_state_dict(_state(RunFolder(path), spec, device))
    return run


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
    folder = RunFolder(path)
    spec = folder.spec(registry)
    state = None if untrained else _state(folder, spec, device)
    if evaluation is not None:
        changed = {"evaluators": evaluation.evaluators, "data": evaluation.data or spec.data}
        spec = spec.model_copy(update=changed)
    if not spec.evaluators:
        raise UserError(f"{path}: its spec names no evaluators; --with FILE says by which it is scored")
    check_evaluators(spec.evaluators, {"backbone": spec.backbone.name, "data": spec.data.name}, registry)
    data: Data = make_part(spec, registry, device, "data", device)
    augment = make_part(spec, registry, device, "augment")
    method = make_method(
        spec, registry, device, augment, channels=data.channels, mean=data.mean, std=data.std
    )
    if state is not None:
        with misfits("data"):
            _load(method.student, state["student"])
            _load(method.teacher, state["teacher"])
    size = (evaluation and evaluation.size) or augment.groups[0][1]
    check_size(method.student, size)
    return Subject(
        network=partial(network_of, student=method.student, teacher=method.teacher),
        data=data,
        size=size,
        autocast=partial(autocast, device, spec.train),
        evaluators=tuple(method.evaluators.items()),
        step=0 if state is None else int(state["step"]),
    )


def write_files(found: Sequence[Scored], folder: RunFolder, step: int) -> None:
    """Keep the files of evaluators, after so many steps, under their names and those of their networks."""
    for scored in found:
        for file, content in scored.named_files.items():
            folder.write_evaluation(step, file, content)


def _state(folder: RunFolder, spec: Spec, device: torch.device) -> dict[str, Any]:
    state = folder.load(spec.hash, device)
    if state is None:
        raise UserError(f"{folder.path}: there is no checkpoint yet (last.pt)")
    return state


def _load(part: Any, state: dict[str, Any]) -> None:
    try:
        part.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ValueError(f"the weights do not fit images like these ({lines[-1].strip()})") from error


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
