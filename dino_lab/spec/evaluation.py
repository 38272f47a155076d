"""A YAML file of evaluators in, an Evaluation or every mistake in it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator

from dino_lab.registry import Params, Registry
from dino_lab.spec.document import Located, validated
from dino_lab.spec.file_kinds import refuse_other_kinds
from dino_lab.spec.merge import compose_root, read
from dino_lab.spec.model import Section
from dino_lab.spec.problems import Problem, report


class Evaluation(Section):
    """What a network that is there is scored by, and on which images."""

    data: Params | None = Field(
        None, description="images to evaluate on; null: the run's own, where there is a run"
    )
    backbone: Params | None = Field(
        None,
        description="network of the weights in a file, or what plugin:NAME is told; null: the weights say it",
    )
    evaluators: tuple[Params, ...] = Field(description="what is computed of the features, one or more")
    size: int | None = Field(
        None,
        gt=0,
        description="side of the images that the network is shown, in pixels; null: as it was trained",
    )

    @field_validator("evaluators")
    @classmethod
    def _are_some(cls, evaluators: tuple[Params, ...]) -> tuple[Params, ...]:
        if not evaluators:
            raise ValueError("must name at least one")
        return evaluators


@dataclass(frozen=True)
class EvaluationDocument(Located):
    """An evaluation and the text it came from."""

    evaluation: Evaluation


def load_evaluation(path: Path, registry: Registry) -> EvaluationDocument:
    """The evaluation in a file; SpecError with one line for each mistake."""
    problems: list[Problem] = []
    root = compose_root(read(path), path, problems)
    refuse_other_kinds(root, path, "evaluation")
    found = validated(root, registry, problems, Evaluation)
    if problems or found is None:
        raise report(problems)
    return EvaluationDocument(root, found)


class _OneBackbone(Section):
    """What `--backbone` says."""

    backbone: Params = Field(description="network of the weights in a file")


def read_backbone(text: str, registry: Registry) -> Params:
    """A backbone as the command line has it, `{name: timm, model: ...}`; a SpecError for any other text."""
    problems: list[Problem] = []
    root = compose_root(f"backbone: {text}", Path("--backbone"), problems)
    found = validated(root, registry, problems, _OneBackbone)
    if problems or found is None:
        raise report(problems)
    return found.backbone
