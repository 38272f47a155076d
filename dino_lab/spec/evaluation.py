"""A YAML file of evaluators in, an Evaluation or every mistake in it out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, field_validator

from dino_lab.errors import Loc
from dino_lab.registry import Params, Registry
from dino_lab.spec.merge import compose_root, read
from dino_lab.spec.model import Section
from dino_lab.spec.narrow import narrowed
from dino_lab.spec.nodes import data, mark_at
from dino_lab.spec.problems import Problem, report
from dino_lab.spec.words import in_words


class Evaluation(Section):
    """What a network that is there is scored by, and on which images."""

    data: Params | None = Field(None, description="the run's own, where there is a run")
    evaluators: tuple[Params, ...]
    size: int | None = Field(None, gt=0, description="pixels of what the network sees; what it was made for")

    @field_validator("evaluators")
    @classmethod
    def _are_some(cls, evaluators: tuple[Params, ...]) -> tuple[Params, ...]:
        if not evaluators:
            raise ValueError("must name at least one")
        return evaluators


@dataclass(frozen=True)
class EvaluationDocument:
    """An evaluation and the text it came from."""

    evaluation: Evaluation
    root: yaml.Node

    def line(self, loc: Loc, message: str) -> str:
        """`file:line:column: dotted.key: message`, for a mistake that is found after loading."""
        return str(Problem(mark_at(self.root, loc), loc, message))


def load_evaluation(path: Path, registry: Registry) -> EvaluationDocument:
    """The evaluation in a file; SpecError with one line for each mistake."""
    problems: list[Problem] = []
    root = compose_root(read(path), path, problems)
    file_type = narrowed(root, registry, problems, Evaluation)
    told = {problem.loc for problem in problems}
    try:
        found = file_type.model_validate_json(json.dumps(data(root)), strict=True)
    except ValidationError as error:
        problems += [problem for problem in in_words(error, file_type, root) if problem.loc not in told]
    if problems:
        raise report(problems)
    return EvaluationDocument(found, root)
