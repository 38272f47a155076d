"""What editors say about an evaluation file, and that the schema in the repository is current."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from dino_lab.registry import registry
from dino_lab.spec.evaluation_schema import json_schema, text

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json_schema(registry)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_schema_in_the_repository_is_current() -> None:
    file = ROOT / ".dino-lab.evaluation.schema.json"
    assert file.read_text() == text(registry), f"run: dino-lab schema --evaluation -o {file.name}"


def test_the_files_in_the_repository_fit(validator: Draft202012Validator) -> None:
    files = sorted((ROOT / "experiments" / "evaluations").glob("*.yaml"))
    assert files
    for file in files:
        validator.validate(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"evaluators": []}, ["evaluators"]),
        ({"evaluators": [{"name": "knm"}]}, ["evaluators", 0, "name"]),
        ({"evaluators": [{"name": "knn", "temperature": 0}]}, ["evaluators", 0, "temperature"]),
        ({"evaluators": [{"k": [1]}]}, ["evaluators", 0]),
        ({"data": {"size": 32}}, ["data"]),
        ({"backbone": {"name": "vitt"}}, ["backbone", "name"]),
        ({"backbone": {"name": "vit", "width": 0}}, ["backbone", "width"]),
        ({"size": 0}, ["size"]),
        ({"sizes": 32}, []),
    ],
)
def test_a_mistake_is_seen_where_it_is(
    changed: dict[str, Any], path: list[str | int], validator: Draft202012Validator
) -> None:
    right: dict[str, Any] = {"data": {"name": "shapes"}, "evaluators": [{"name": "knn"}], "size": 32}
    assert not list(validator.iter_errors(right))
    assert list(validator.iter_errors({**right, "data": None, "backbone": None})) == []
    assert list(validator.iter_errors({**right, "backbone": {"name": "vit", "width": 96}})) == []
    errors = list(validator.iter_errors({**right, **changed}))
    assert [list(error.absolute_path) for error in errors] == [path]
