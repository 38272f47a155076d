"""The JSON Schema of an evaluation file, for completion and hover texts in editors."""

from __future__ import annotations

import json
from typing import Any

from dino_lab.registry import Registry
from dino_lab.registry import registry as default_registry
from dino_lab.spec.evaluation import Evaluation
from dino_lab.spec.json_schema import choice, described, exact, operation_in_a_list

Schema = dict[str, Any]


def json_schema(registry: Registry) -> Schema:
    """Draft 2020-12. Imports every data component, backbone and evaluator."""
    schema = described(Evaluation)
    fields = schema["properties"]
    definitions: Schema = {}
    for kind in ("data", "backbone"):
        one = choice(registry, kind, definitions)
        one |= {"type": ["object", "null"], "description": fields[kind]["description"]}
        fields[kind] = one | {"if": {"type": "object"}, "then": {"required": ["name"]}}
    item = choice(registry, "evaluator", definitions) | {"required": ["name"]}
    definitions["operation"] = operation_in_a_list(registry, definitions)
    fields["evaluators"] = {"type": "array", "minItems": 1, "items": item}
    return exact(schema) | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": exact(dict(sorted(definitions.items()))),
    }


def text(registry: Registry) -> str:
    """The schema as it is committed."""
    return json.dumps(json_schema(registry), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(default_registry), end="")
