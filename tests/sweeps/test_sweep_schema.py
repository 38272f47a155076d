"""What editors say about a sweep file, and that the schema in the repository is current."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dino_lab.registry import registry
from dino_lab.spec.compose import compose
from dino_lab.spec.nodes import data
from dino_lab.sweeps.plan import json_schema

ROOT = Path(__file__).parents[2]
GOOD = """\
base: a.yaml
metric: knn.20nn
set: {train.epochs: 3}
baseline: {targets.temperature: 0.04}
variants: {plain: {}, other: {loss: {name: mse}, optim.lr.start: 1.0e-3}}
grid: {targets.temperature: [0.02, 0.04], evaluators.0.k: [[5], [10]]}
seeds: [1, 2]
resources: {gpu: 0.25, cpu: 2}
scheduler: {name: asha, metric: effective_rank}
expect:
- {arm: other, verdict: one output, claim: it collapses, paper: 0.1}
- {better: plain, than: {targets.temperature: 0.04}, by: 0.02, metric: knn.10nn}
- {equal: [plain, other], within: 0.02}
- {arm: plain, near: raw pixels, within: 0.1}
- {arm: plain, below: 0.5}
"""
SEARCH = """\
base: a.yaml
metric: knn.20nn
search: {name: optuna, samples: 20}
space:
  optim.lr.start: {log_uniform: [1.0e-4, 1.0e-2]}
  targets.momentum: {uniform: [0.5, 0.9], when: {targets.name: center}}
"""
BAD = [
    (GOOD, "metric: knn.20nn", "", "", "'metric' is a required property"),
    (GOOD, "grid:", "gird:", "", "Additional properties are not allowed ('gird' was unexpected)"),
    (GOOD, "[0.02, 0.04]", "0.02", "grid.targets.temperature", "0.02 is not of type 'array'"),
    (GOOD, "[0.02, 0.04]", "[]", "grid.targets.temperature", "[] should be non-empty"),
    (GOOD, "{train.", "{trian.", "set", "'trian.epochs' does not match '^("),
    (GOOD, "[1, 2]", "[]", "seeds", "[] is not valid under any of the given schemas"),
    (GOOD, "gpu: 0.25", "gpu: -1", "resources.gpu", "-1 is less than the minimum of 0"),
    (GOOD, "name: asha", "name: pbt", "scheduler.name", "'pbt' is not one of ['asha', 'median']"),
    (GOOD, "than: {targets.temperature: 0.04}, ", "", "expect.1", "is not valid under any"),
    (GOOD, "verdict: one output", "verdict: one", "expect.0.verdict", "is not valid under any"),
    (GOOD, ", within: 0.1}", "}", "expect.3", "is not valid under any of the given schemas"),
    (SEARCH, "search: {name: optuna, samples: 20}", "", "", "is not valid under any of the given schemas"),
    (SEARCH, "samples: 20", "samples: 0", "search.samples", "0 is less than or equal to the minimum of 0"),
    (SEARCH, "{log_uniform: [1.0e-4, 1.0e-2]}", "{}", "space.optim.lr.start", "is not valid under any"),
    (SEARCH, "space:", "grid: {seed: [1]}\nspace:", "", "False schema does not allow"),
]


@pytest.fixture(scope="module")
def schema() -> Any:
    return json_schema.json_schema(registry)


def complaints(schema: Any, text: str) -> list[tuple[str, str]]:
    node = compose(text, "x.yaml")
    assert node is not None
    validator = jsonschema.Draft202012Validator(schema)
    return [
        (".".join(map(str, error.absolute_path)), error.message)
        for error in validator.iter_errors(data(node))
    ]


def test_the_schema_is_one_and_the_committed_one_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_lab.registry.discovery._installed", lambda kind: [])
    file = ROOT / ".dino-lab.sweep.schema.json"
    jsonschema.Draft202012Validator.check_schema(json_schema.json_schema(registry))
    assert file.read_text(encoding="utf-8") == json_schema.text(registry), (
        f"run: dino-lab schema --sweep -o {file.name}"
    )


def test_good_files_pass(schema: Any) -> None:
    files = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
    assert len(files) >= 11
    whole = SEARCH.replace("log_uniform: [1.0e-4, 1.0e-2]", "log_int_uniform: [1, 8]")
    for text in [GOOD, SEARCH, whole, *(file.read_text() for file in files)]:
        assert complaints(schema, text) == []


@pytest.mark.parametrize(("text", "old", "new", "path", "message"), BAD)
def test_bad_ones_are_told_where_and_why(
    schema: Any, text: str, old: str, new: str, path: str, message: str
) -> None:
    assert text.count(old) == 1
    ((where, why),) = complaints(schema, text.replace(old, new))
    assert where == path
    assert message in why


def test_editors_are_offered_the_parameters_of_every_component(schema: Any) -> None:
    offered = schema["$defs"]["Grid"]["properties"]
    assert {"loss", "targets.temperature", "train.batch_size", "optim.betas", "seed"} <= set(offered)
    assert offered["train.batch_size"]["description"] == "images of one optimizer step (whole number > 0)"


def test_a_key_of_several_components_is_described_for_each(schema: Any) -> None:
    lines = schema["$defs"]["Grid"]["properties"]["targets.temperature"]["description"].splitlines()
    defaults = {line.partition(": ")[0]: line.rpartition("default ")[2] for line in lines}
    assert defaults["sinkhorn"] == "0.05)"
    assert len(defaults) == len(set(lines)) > 1
