"""The JSON Schema of a spec file, for completion and hover texts in editors."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import DEFAULT_REF_TEMPLATE

from dino_lab.registry import ComponentError, Registry
from dino_lab.registry import registry as default_registry
from dino_lab.registry.kinds import KIND_OF_FIELD, LISTS, OPTIONAL
from dino_lab.registry.parameters import mappings_in
from dino_lab.spec.model import Spec
from dino_lab.spec.parameter_words import hover_text
from dino_lab.spec.spec_types import OPTIMIZERS

Schema = dict[str, Any]


def json_schema(registry: Registry) -> Schema:
    """Draft 2020-12. Imports every component; of one that fails to import only the name is known.

    Each component is chosen by `if name is x then ...`, because of a `oneOf` editors only say that nothing
    matched. A file with `extends` may leave out whatever its base gives.
    """
    schema = described(Spec)
    fields, definitions = schema["properties"], dict[str, Any]()
    for section in ("Train", "Init", "After"):
        definitions[section] = schema["$defs"][section]
        _hoist(definitions, schema["$defs"], section)
    for field, kind in KIND_OF_FIELD.items():
        component = choice(registry, kind, definitions)
        description = f"A component of the kind {kind}."
        if field in LISTS:
            # A list is never merged with that of the base, so its items are whole.
            component["required"] = ["name"]
            fields[field] = {"type": "array", "items": component, "description": f"A list. {description}"}
        else:
            nullable = {"type": ["object", "null"]} if field in OPTIONAL else {}
            fields[field] = component | nullable | {"description": description}
    definitions["operation"] = operation_in_a_list(registry, definitions)
    fields["optim"] = _choice("optim.", dict(OPTIMIZERS), definitions)
    fields["extends"] = {"type": "string", "description": "A file that this one changes, relative to it."}
    fields["stages"] = _stages(fields)
    required = [field for field in schema["required"] if field != "name"]
    inner = {field: {"required": ["name"]} for field in [*KIND_OF_FIELD, "optim"] if field not in LISTS}
    inner["train"] = {"required": definitions["Train"].pop("required")}
    return exact(schema) | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": exact(dict(sorted(definitions.items()))),
        "required": [],
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": required, "properties": inner},
    }


def _stages(fields: Schema) -> Schema:
    """A list of changes: any key but those that all stages have in common."""
    keys = [key for key in fields if key not in ("name", "extends", "init", "after")]
    changes = {"type": "object", "properties": {key: {"$ref": f"#/properties/{key}"} for key in keys}}
    return {
        "type": "array",
        "items": changes | {"additionalProperties": False},
        "description": "Stages after this spec, each a mapping of the keys that it changes.",
    }


def operation_in_a_list(registry: Registry, definitions: Schema) -> Schema:
    """An operation in a list: its name, its keys under its name, or its name among them."""
    names, kornia = registry.names("operation"), r"^kornia\.[A-Za-z0-9]+$"
    if not names:
        return {}
    named = choice(registry, "operation", definitions)
    named["properties"]["name"] = {"anyOf": [{"enum": names}, {"pattern": kornia}]}
    short: Schema = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False}
    short |= {"properties": {}, "patternProperties": {kornia: {"type": ["object", "number"]}}}
    for name in names:
        if (whole := definitions.get(f"operation.{name}")) is None:
            continue
        keys = {key: value for key, value in whole["properties"].items() if key != "name"}
        inner = whole | {"properties": keys, "required": [k for k in whole["required"] if k != "name"]}
        numbers = {"type": ["object", "number", "array"], "if": {"type": "object"}, "then": inner}
        short["properties"][name] = numbers | {"description": whole.get("description", "")}
    return {
        "if": {"type": "string"},
        "then": {"anyOf": [{"enum": names}, {"pattern": kornia}]},
        "else": {"if": {"required": ["name"]}, "then": named, "else": short},
    }


def choice(registry: Registry, kind: str, definitions: Schema) -> Schema:
    """A component of a kind by name; what it refers to is added to `definitions`."""
    return _choice(f"{kind}.", _params(registry, kind), definitions)


def _params(registry: Registry, kind: str) -> dict[str, type[BaseModel] | None]:
    found: dict[str, type[BaseModel] | None] = {}
    for name in registry.names(kind):
        try:
            found[name] = registry.find(kind, name).params
        except ComponentError:
            found[name] = None
    return found


def _choice(prefix: str, models: Any, definitions: Schema) -> Schema:
    """One of `models` by name; what they refer to is added to `definitions`, under names of their own."""
    branches = []
    for name, model in sorted(models.items()):
        if model is None:
            continue
        own = f"{prefix}{name}"
        definition = described(model, f"#/$defs/{own}.{{model}}")
        definitions |= {f"{own}.{inner}": part for inner, part in definition.pop("$defs", {}).items()}
        definitions[own] = definition
        chosen = {"type": "object", "properties": {"name": {"const": name}}, "required": ["name"]}
        branches.append({"if": chosen, "then": {"$ref": f"#/$defs/{own}"}})
    return {"type": "object", "properties": {"name": {"enum": sorted(models)}}, "allOf": branches}


def described(model: type[BaseModel], ref_template: str = DEFAULT_REF_TEMPLATE) -> Schema:
    """The schema of a model, with the type and default of each key in its description, as editors show it."""
    schema = model.model_json_schema(ref_template=ref_template)
    _describe(schema, model)
    for inner in mappings_in([model]):
        _describe(schema["$defs"].get(inner.__name__, {}), inner)
    return schema


def _describe(schema: Schema, model: type[BaseModel]) -> None:
    # A schedule is a number, or else its definition.
    for branch in (schema, *schema.get("anyOf", [])):
        for key, field in model.model_fields.items():
            if key != "name" and key in branch.get("properties", {}):
                branch["properties"][key]["description"] = hover_text(field)


def _hoist(into: Schema, source: Schema, name: str) -> None:
    """Copy whatever the definition `name` refers to."""
    for other in source:
        if other not in into and f'"#/$defs/{other}"' in json.dumps(source[name]):
            into[other] = source[other]
            _hoist(into, source, other)


def exact(node: Any) -> Any:
    """`anyOf` of simple types and one mapping as `if` not simple `then` mapping: exact messages again."""
    if isinstance(node, list):
        return [exact(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "operation":
        return {"$ref": "#/$defs/operation"}
    node = {key: exact(value) for key, value in node.items()}
    options = node.get("anyOf", [])
    simple = [option["type"] for option in options if set(option) == {"type"}]
    rest = [option for option in options if set(option) != {"type"}]
    if len(rest) == 1 and simple and (rest[0].get("type") == "object" or "$ref" in rest[0]):
        del node["anyOf"]
        if "$ref" not in rest[0]:
            node["type"] = [*simple, rest[0].pop("type")]
        node |= {"if": {"not": {"type": simple}}, "then": rest[0]}
    return node


def text(registry: Registry) -> str:
    """The schema as it is committed."""
    return json.dumps(json_schema(registry), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(default_registry), end="")
