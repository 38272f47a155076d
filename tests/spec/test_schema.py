"""What editors say about a spec file, and that the generated files in the repository are current."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from spec_components import GOOD, registry

from dino_lab.protocols import ABILITIES, PROTOCOLS
from dino_lab.registry import Registry
from dino_lab.registry import registry as default_registry
from dino_lab.spec import contracts_page, json_schema, reference_page
from dino_lab.spec.compose import compose
from dino_lab.spec.file import dump_yaml, load_text
from dino_lab.spec.nodes import data

ROOT = Path(__file__).parents[2]


def complaints(text: str) -> list[tuple[str, str]]:
    node = compose(text, "x.yaml")
    assert node is not None
    validator = jsonschema.Draft202012Validator(json_schema.json_schema(registry))
    return sorted(
        (".".join(map(str, error.absolute_path)), error.message)
        for error in validator.iter_errors(data(node))
    )


@pytest.mark.usefixtures("only_fakes")
def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema.json_schema(registry))


@pytest.mark.usefixtures("only_fakes")
def test_good_specs_pass() -> None:
    assert complaints(GOOD) == []
    assert complaints(dump_yaml(load_text(GOOD, "x.yaml", registry=registry).spec)) == []
    assert complaints("extends: a.yaml\nloss: {temperature: 1}\ntrain: {epochs: 3}\npredictor: null\n") == []


BAD = [
    ("fake_ema", "fake_emma", "teacher.name", "'fake_emma' is not one of ['fake_ema']"),
    (".5e1}", "1, qeue: 1}", "loss", "Additional properties are not allowed ('qeue' was unexpected)"),
    ("fake_nce", "fake_mse", "loss", "Additional properties are not allowed ('temperature' was unexpected)"),
    ("name: fake_head", "", "head", "'name' is a required property"),
    ("width: 8", "width: wide", "backbone.width", "'wide' is not of type 'integer'"),
    (", width: 8", "", "backbone", "'width' is a required property"),
    (".5e1", "0", "loss.temperature", "0 is less than or equal to the minimum of 0"),
    ("start: 0.9", "start: true", "teacher.momentum.start", "True is not of type 'number'"),
    ("lr: 1e-3", "lr: x", "optim.lr", "'x' is not of type 'number', 'object'"),
    ("lr: 1e-3", "clip: {per: al}", "optim.clip.per", "'al' is not one of ['tensor', 'all']"),
    ("adamw", "adam", "optim.name", "'adam' is not one of ['adamw', 'lars', 'sgd']"),
    ("epochs: 2, ", "", "train", "'epochs' is a required property"),
    ("seed: 0", "wandb: 1", "", "Additional properties are not allowed ('wandb' was unexpected)"),
    ("every: 5", "every: 0", "evaluators.1.every", "0 is less than or equal to the minimum of 0"),
    ("name: fake_knn, ", "", "evaluators.0", "'name' is a required property"),
    ("name: fake_spread, ", "", "regularizers.0", "'name' is a required property"),
    ("weight: 0.5", "weight: -1", "regularizers.0.weight", "-1 is less than the minimum of 0"),
]


@pytest.mark.usefixtures("only_fakes")
@pytest.mark.parametrize(("old", "new", "path", "message"), BAD)
def test_editors_say_exactly_what_is_wrong(old: str, new: str, path: str, message: str) -> None:
    assert GOOD.count(old) >= 1
    assert complaints(GOOD.replace(old, new, 1)) == [(path, message)]


@pytest.mark.usefixtures("only_fakes")
def test_of_a_component_that_fails_to_import_the_name_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Registry.names
    monkeypatch.setattr(Registry, "names", lambda self, kind: [*names(self, kind), "broken"])
    schema = json_schema.json_schema(registry)
    assert schema["properties"]["loss"]["properties"]["name"]["enum"] == ["broken", "fake_mse", "fake_nce"]


@pytest.mark.usefixtures("only_fakes")
@pytest.mark.parametrize(
    "line",
    [
        "Images of nothing.",
        "| `images` | whole number > 0 and <= 100 | `10` |  |",
        "| `width` | whole number | *required* |  |",
        "| `scale` | list of 2: number | `[0.4, 1]` |  |",
        "| `jitter` | [Jitter](#jitter) or null | `null` |  |",
        "| `hue` | number >= 0 and <= 0.5 | `0.1` |  |",
        "| `reduce` | `mean` or `sum` | `mean` |  |",
        "| `amount` | whole number or `all` | `all` |  |",
        "| `sizes` | list of at most 3: whole number | `[32]` |  |",
        "| `of` | `teacher` or `student` | `teacher` | network that is evaluated; the student where the "
        "teacher has no network |",
        "| `temperature` | [Schedule](#schedule) > 0 | `0.04` |  |",
        "| `momentum` | [Schedule](#schedule) >= 0 and <= 1 | `{start: 0.996, end: 1, shape: cosine}` |  |",
        "| `batch_size` | whole number > 0 | *required* | images of one optimizer step |",
        "### `sgd`",
    ],
)
def test_the_reference_page_says(line: str) -> None:
    assert line in reference_page.page(registry).splitlines()


@pytest.mark.usefixtures("only_fakes")
def test_the_reference_page_links_to_what_it_has() -> None:
    page = reference_page.page(registry)
    headings = {line.strip("# `").lower() for line in page.splitlines() if line.startswith("#")}
    links = {part.split(")")[0] for part in page.split("](#")[1:]}
    assert links
    assert links <= headings
    assert "This paragraph" not in page


@pytest.fixture
def without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_lab.registry.discovery._installed", lambda kind: [])


@pytest.mark.usefixtures("without_plugins")
@pytest.mark.parametrize(
    ("file", "generate", "module"),
    [
        ("docs/spec.md", reference_page.page, "reference_page"),
        (".dino-lab.schema.json", json_schema.text, "json_schema"),
    ],
)
def test_generated_files_are_current(file: str, generate: Any, module: str) -> None:
    current = (ROOT / file).read_text(encoding="utf-8")
    assert current == generate(default_registry), f"run: python -m dino_lab.spec.{module} > {file}"


def test_the_page_of_contracts_is_current() -> None:
    current = (ROOT / "docs/contracts.md").read_text(encoding="utf-8")
    assert current == contracts_page.page(), "run: python -m dino_lab.spec.contracts_page > docs/contracts.md"


def test_the_page_of_contracts_has_every_kind_and_ability_with_its_words_and_arguments() -> None:
    page = contracts_page.page()
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert [heading[3:].lower() for heading in headings[1:-1]] == list(PROTOCOLS)
    for contract in (*PROTOCOLS.values(), *(one for some in ABILITIES.values() for one in some)):
        assert f"\nclass {contract.__name__}(" in page
        assert inspect.getdoc(contract) in page
    assert "    train_images: int  # 0 where there is no training split" in page
    assert "    def forward(self, images: Images, generator: torch.Generator) -> Views: ...\n```" in page
    assert '\n    @property\n    def resident(self) -> bool:\n        """Whether all images' in page
    assert "\n        ...\n" not in page
    assert page.count("```") == 2 * (page.count("```python\n") + page.count("```text\n"))


@pytest.mark.usefixtures("only_fakes")
def test_the_words_in_the_schema_are_those_of_the_docstrings() -> None:
    schema = json_schema.json_schema(registry)
    assert schema["$defs"]["loss.fake_mse"]["description"] == "The squared distance of nothing."
    evaluator = schema["$defs"]["evaluator.fake_knn"]["properties"]
    assert evaluator["of"]["description"].endswith("no network (teacher or student; default teacher)")
    assert schema["$defs"]["augment.fake_augment.Jitter"]["properties"]["hue"]["description"] == (
        "number >= 0 and <= 0.5; default 0.1"
    )
    assert schema["$defs"]["optim.sgd.LrScaling"]["properties"]["reference"]["description"].endswith(
        "default 256)"
    )
    assert json.loads(json_schema.text(registry)) == schema
