"""Each key that YAML may have says what it means: an editor, the reference page and `show` print it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from dino_lab.registry import registry
from dino_lab.registry.kinds import FOLDERS
from dino_lab.registry.parameters import undescribed
from dino_lab.schedule import Schedule
from dino_lab.spec.evaluation import Evaluation
from dino_lab.spec.model import Spec
from dino_lab.spec.spec_types import OPTIMIZERS
from dino_lab.sweeps.plan.model import Sweep

MODELS: list[type[BaseModel]] = [Spec, Evaluation, Sweep, Schedule, *OPTIMIZERS.values()]


@pytest.mark.parametrize("model", MODELS)
def test_every_key_of_a_file_has_a_meaning(model: type[BaseModel]) -> None:
    assert undescribed(model) == []


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_parameter_of_every_component_has_a_meaning(kind: str) -> None:
    found = {name: undescribed(registry.find(kind, name).params) for name in registry.names(kind)}
    assert {name: keys for name, keys in found.items() if keys} == {}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_meaning_is_one_short_phrase(kind: str) -> None:
    for name in registry.names(kind):
        for key, field in registry.find(kind, name).params.model_fields.items():
            said = field.description or ""
            assert len(said) <= 100, f"{kind} {name}: {key}: {said}"
            assert not said.endswith("."), f"{kind} {name}: {key}: {said}"
