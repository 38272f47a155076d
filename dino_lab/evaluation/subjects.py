"""What is scored: the networks of a run, an exported file, or a model of timm."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dino_lab.building.check import check_needs
from dino_lab.building.components import make_evaluators, misfits
from dino_lab.building.data_check import scorable
from dino_lab.errors import Misfit, UserError, first_line
from dino_lab.evaluation.floors import FOLDER, Floors, floors_of
from dino_lab.evaluation.scoring import Scored, score
from dino_lab.kernels.linear import use_faster_linear
from dino_lab.network import Network
from dino_lab.protocols import ChecksSize, Data, Evaluator, ability
from dino_lab.registry import Params, Registry
from dino_lab.runs.backbone_file import described
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.open import open_run
from dino_lab.spec.evaluation import Evaluation

TIMM = "timm"  # the component that builds a model of timm
PREFIX, WEIGHTS = "timm:", ".safetensors"  # how a target of timm begins, and how an exported file ends


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

    def score(self, of: Literal["teacher", "student"] | None = None, *, files: bool = True) -> list[Scored]:
        """What each evaluator finds, its files too if they are wanted; `of` overrides whose features."""
        if of is not None:
            for _, evaluator in self.evaluators:
                evaluator.of = of
        return score(self.evaluators, self.data, self.network, self.size, self.autocast, files=files)

    def floors(self) -> Floors:
        """What the scores are without learning, by their whole names; `score` is to come first."""
        return floors_of(self.evaluators, self.data, self.data_params, self.cache)


def is_single(target: str) -> bool:
    """Whether a target is one network, without teacher and student."""
    return target.startswith(PREFIX) or (target.endswith(WEIGHTS) and Path(target).is_file())


def subject_of(
    target: str,
    registry: Registry,
    device: torch.device,
    evaluation: Evaluation | None,
    *,
    untrained: bool = False,
) -> Subject:
    """The subject that a text names: `timm:MODEL`, an exported file, or the folder of a run."""
    if not is_single(target):
        return run_subject(Path(target), registry, device, evaluation, untrained=untrained)
    if evaluation is None:
        raise UserError(f"{target}: --with FILE says on which data, and by which evaluators")
    if target.startswith(PREFIX):
        model = target.removeprefix(PREFIX)
        return timm_subject(model, registry, device, evaluation, untrained=untrained)
    return file_subject(Path(target), registry, device, evaluation, untrained=untrained)


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
        cache=beside if (beside := path.resolve().parent.parent / FOLDER).is_dir() else None,
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


def check_size(network: Network, size: int) -> None:
    """A Misfit where the backbone cannot be shown images of so many pixels."""
    if (checking := ability(network.backbone, ChecksSize)) is not None:
        with misfits("size"):
            checking.check_size(size)


@dataclass(frozen=True)
class _Source:
    """A network as it lies somewhere."""

    target: str  # as it was asked for
    backbone: dict[str, Any]  # as a spec has it
    channels: int
    size: int  # of the images that it is shown
    largest: int  # size of the images that it was made for
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Path | None = None  # those that `backbone` says, or its first ones


def timm_subject(
    model: str, registry: Registry, device: torch.device, evaluation: Evaluation, *, untrained: bool = False
) -> Subject:
    """A model of timm, in float32, shown images in the size and with the normalisation of its weights."""
    import timm

    given = {"name": TIMM, "model": model, "pretrained": not untrained}
    config = timm.get_pretrained_cfg(model, allow_unregistered=False) if timm.is_model(model) else None
    channels, size, _ = config.input_size if config else (3, 224, 224)
    mean, std = (config.mean, config.std) if config else ((0.5,) * 3, (0.5,) * 3)
    size = evaluation.size or size
    source = _Source(f"{PREFIX}{model}", given, channels, size, size, mean, std)
    return _subject(source, registry, device, evaluation)


def file_subject(
    path: Path, registry: Registry, device: torch.device, evaluation: Evaluation, *, untrained: bool = False
) -> Subject:
    """A backbone that was exported as safetensors, in float32; a UserError where the file is none."""
    found = described(path)
    # Weights come from the file, so none are downloaded.
    given = {key: False if key == "pretrained" else value for key, value in found["backbone"].items()}
    weights = None if untrained else path
    mean, std = tuple(found["mean"]), tuple(found["std"])
    size = evaluation.size or found["size"]
    source = _Source(str(path), given, len(mean), size, found["largest"], mean, std, weights)
    return _subject(source, registry, device, evaluation)


def _subject(source: _Source, registry: Registry, device: torch.device, evaluation: Evaluation) -> Subject:
    if evaluation.data is None:
        raise Misfit(("data",), f"required: {source.target} has no data of its own")
    names = {"backbone": source.backbone["name"], "data": evaluation.data.name}
    check_evaluators(evaluation.evaluators, names, registry)
    with misfits("data"):
        data: Data = registry.build("data", evaluation.data, device)
    if data.channels != source.channels:
        raise Misfit(
            ("data",), f"images have {data.channels} channels, and {source.target} takes {source.channels}"
        )
    torch.manual_seed(0)
    backbone = _backbone(source, registry)
    network = Network(backbone, nn.Identity(), mean=source.mean, std=source.std).to(device)
    use_faster_linear(network, device)
    check_size(network, source.size)
    evaluators, warning = _scorable(evaluation.evaluators, data, registry)
    for evaluator in evaluators.values():
        evaluator.of = "network"
    return Subject(
        *(lambda of: network, data, source.size, nullcontext, tuple(evaluators.items()), evaluation.data),
        warning=warning,
    )


def _backbone(source: _Source, registry: Registry) -> Any:
    params = registry.find("backbone", source.backbone["name"]).params
    try:
        parsed = params.model_validate_json(json.dumps(source.backbone), strict=True)
        with _silent("huggingface_hub"):  # it logs every try of a download; the last one is said below
            backbone = registry.build("backbone", parsed, source.channels, source.largest)
    except UserError as error:
        reason = str(error).rpartition("; ")[0]
        hint = "--untrained scores it with its first weights"
        raise UserError(f"{source.target}: {reason}; {hint}") from error
    except ValueError as error:
        raise UserError(f"{source.target}: {first_line(error)}") from error
    if source.weights is not None:
        _load(backbone.as_timm()[0], source.weights)
    return backbone


def _load(model: nn.Module, file: Path) -> None:
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(file))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{file}: its weights are not those of the backbone that it names ({reason})"
        ) from error


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Errors only, of the logger of that name and those below it."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
