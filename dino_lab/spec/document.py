"""What a file said once it is read: mistakes found later can still point at its lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dino_lab.errors import Loc
from dino_lab.registry import Registry
from dino_lab.spec.messages import in_words
from dino_lab.spec.nodes import data, mark_at
from dino_lab.spec.problems import Problem
from dino_lab.spec.spec_types import narrowed

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Located:
    """The nodes of a text."""

    root: yaml.Node

    def line(self, loc: Loc, message: str) -> str:
        """`file:line:column: dotted.key: message`, for a mistake that is found after loading."""
        return str(Problem(mark_at(self.root, loc), loc, message))


def validated(root: yaml.MappingNode, registry: Registry, problems: list[Problem], base: type[M]) -> M | None:
    """The model of nodes, its components narrowed to those that the nodes name; None adds to `problems`."""
    file_type = narrowed(root, registry, problems, base)
    told = {problem.loc for problem in problems}
    try:
        # Read as JSON, strict means: no true and no "1" for a 1, but a list for a tuple.
        return file_type.model_validate_json(json.dumps(data(root)), strict=True)
    except ValidationError as error:
        problems += [problem for problem in in_words(error, file_type, root) if problem.loc not in told]
        return None
