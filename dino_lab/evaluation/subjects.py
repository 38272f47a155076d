"""What is scored: the networks of a run, or one network by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dino_lab.building.check import check_needs
from dino_lab.building.components import make_evaluators, misfits
from dino_lab.building.data_check import scorable
from dino_lab.building.single import check_size, find_single, is_single, open_single
from dino_lab.errors import Misfit, UserError
from dino_lab.evaluation.floors import FOLDER, Floors, floors_of
from dino_lab.evaluation.scoring import Scored, score
from dino_lab.network import Network
from dino_lab.protocols import Data, Evaluator
from dino_lab.registry import Params, Registry
from dino_lab.runs.checkpoint import folder_of_run
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.open import open_run
from dino_lab.spec.evaluation import Evaluation
from dino_lab.weights.layout import Of


@dataclass(frozen=True)
class Subject:
    """What is scored: networks, the images, and how the networks look at them."""

    network: Callable[[Any], Network]  # of the teacher or the student
    data: Data
    size: int
    autocast: Callable[[], AbstractContextManager[object]]
    evaluators: tuple[tuple[str, Evaluator], ...]
    data_params: Params
    cache: Path | None = None  # where floors are kept
    step: int = 0  # of the checkpoint
    warning: str = ""  # that the last checkpoint is damaged, or evaluators are left out
    notes: tuple[str, ...] = ()  # how weights came into the network

    def score(self, of: Of | None = None, *, files: bool = True) -> list[Scored]:
        """What each evaluator finds, its files too if they are wanted; `of` overrides whose features."""
        if of is not None:
            for _, evaluator in self.evaluators:
                evaluator.of = of
        return score(self.evaluators, self.data, self.network, self.size, self.autocast, files=files)

    def floors(self) -> Floors:
        """What the scores are without learning, by their whole names; `score` is to come first."""
        return floors_of(self.evaluators, self.data, self.data_params, self.cache)


def subject_of(
    target: str,
    registry: Registry,
    device: torch.device,
    evaluation: Evaluation | None,
    *,
    of: Of | None = None,
    untrained: bool = False,
) -> Subject:
    """The subject that a text names: the folder of a run, or what `find_single` knows.

    `of` says which of two networks in a file of weights.
    """
    if not is_single(target):
        if evaluation is not None and evaluation.backbone is not None:
            raise Misfit(("backbone",), f"{target} is a run, which has its own")
        return run_subject(Path(target), registry, device, evaluation, untrained=untrained)
    if evaluation is None:
        raise UserError(f"{target}: --with FILE says on which data, and by which evaluators")
    return single_subject(target, registry, device, evaluation, of=of, untrained=untrained)


def run_subject(
    path: Path,
    registry: Registry,
    device: torch.device,
    evaluation: Evaluation | None = None,
    *,
    untrained: bool = False,
) -> Subject:
    """The networks of a run's folder, or of one of its checkpoints, or as they were before the first step.

    Data, evaluators and size are those of the run's spec where `evaluation` says nothing else.
    """
    folder = folder_of_run(path)
    spec = RunFolder(folder).spec(registry)
    if evaluation is not None:
        changed: dict[str, Any] = {"evaluators": evaluation.evaluators}
        if evaluation.data is not None:  # the images that trained need not be there
            changed |= {"data": evaluation.data, "evaluate_on": None}
        spec = spec.model_copy(update=changed)
    if not spec.evaluators:
        raise UserError(f"{path}: its spec names no evaluators; --with FILE says by which it is scored")
    check_evaluators(
        spec.evaluators, {"backbone": spec.backbone.name, "data": spec.evaluation_data.name}, registry
    )
    run = open_run(path, registry, device, spec=spec, untrained=untrained)
    data = run.evaluation_data
    if data.channels != run.channels:
        raise Misfit(
            ("data",),
            f"the weights do not fit images like these: {data.channels} channels, and the network takes "
            f"{run.channels}",
        )
    size = (evaluation and evaluation.size) or run.size
    check_size(run.backbone("student"), size)
    evaluators, warning = _scorable(spec.evaluators, data, registry)
    return Subject(
        network=run.backbone,
        data=data,
        size=size,
        autocast=run.autocast,
        evaluators=tuple(evaluators.items()),
        data_params=spec.evaluation_data,
        cache=beside if (beside := folder.resolve().parent.parent / FOLDER).is_dir() else None,
        step=run.step,
        warning="; ".join(filter(None, (run.warning, warning))),
    )


def _scorable(params: Sequence[Params], data: Data, registry: Registry) -> tuple[dict[str, Any], str]:
    """The evaluators that the data can be scored by, and a warning where others are left out.

    A UserError where there is none.
    """
    evaluators, left_out = scorable(make_evaluators(params, registry), data)
    if not left_out:
        return evaluators, ""
    said = f"the images have no labels, which {', '.join(left_out)} compares"
    if not evaluators:
        raise UserError(f"{said}; spectrum and invariance need none")
    return evaluators, said


def check_evaluators(evaluators: Sequence[Params], names: dict[str, str], registry: Registry) -> None:
    """What evaluators need is looked for before data is read."""
    built = make_evaluators(evaluators, registry).values()
    check_needs(names, registry, list(zip([params.name for params in evaluators], built, strict=True)))


def single_subject(
    target: str,
    registry: Registry,
    device: torch.device,
    evaluation: Evaluation,
    *,
    of: Of | None = None,
    untrained: bool = False,
) -> Subject:
    """One network by itself, in float32: see `find_single`."""
    source = find_single(
        target, registry, backbone=evaluation.backbone, size=evaluation.size, of=of, untrained=untrained
    )
    if evaluation.data is None:
        raise Misfit(("data",), f"required: {source.target} has no data of its own")
    names = {"backbone": source.backbone["name"], "data": evaluation.data.name}
    check_evaluators(evaluation.evaluators, names, registry)
    with misfits("data"):
        data: Data = registry.build("data", evaluation.data, device)
    if source.channels is not None and data.channels != source.channels:
        raise Misfit(
            ("data",), f"images have {data.channels} channels, and {source.target} takes {source.channels}"
        )
    opened = open_single(source, registry, device, data)
    evaluators, warning = _scorable(evaluation.evaluators, data, registry)
    for evaluator in evaluators.values():
        evaluator.of = "network"
    return Subject(
        *(lambda of: opened.network, data, source.size, nullcontext),
        *(tuple(evaluators.items()), evaluation.data),
        warning=warning,
        notes=opened.notes,
    )
