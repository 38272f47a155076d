"""The JSON Schema of a sweep file, for completion and hover texts in editors."""

from __future__ import annotations

import json
from typing import Any

from dino_lab.registry import Registry
from dino_lab.registry import registry as default_registry
from dino_lab.runs.claims import FORMS
from dino_lab.spec.json_schema import exact
from dino_lab.spec.json_schema import json_schema as schema_of_spec
from dino_lab.sweeps.plan.model import DISTRIBUTIONS, Sweep

Schema = dict[str, Any]


def json_schema(registry: Registry) -> Schema:
    """Draft 2020-12. Imports every component, for the dotted keys that editors offer.

    Deeper keys, such as optim.lr.start, are accepted below any field of a spec; whether there is such a key
    depends on the base, and is known once the sweep is planned.
    """
    schema = Sweep.model_json_schema()
    fields, definitions = schema["properties"], schema["$defs"]
    definitions["Distribution"]["oneOf"] = [{"required": [name]} for name in DISTRIBUTIONS]
    definitions["Claim"]["oneOf"] = [{"required": list(keys)} for keys, _ in FORMS]
    values = fields["grid"]["additionalProperties"] | {"description": "The values of one key."}
    keys = _keys(schema_of_spec(registry))
    definitions |= {
        "Values": values,
        "Overrides": _mapping(keys, {}),
        "Grid": _mapping(keys, {"$ref": "#/$defs/Values"}),
        "Space": _mapping(keys, {"$ref": "#/$defs/Distribution"}),
    }
    for field, name in (("set", "Overrides"), ("grid", "Grid"), ("space", "Space")):
        fields[field] = {"$ref": f"#/$defs/{name}", "description": fields[field]["description"]}
    fields["variants"]["additionalProperties"] = {"$ref": "#/$defs/Overrides"}
    given = fields["baseline"]["anyOf"]
    given[given.index({"additionalProperties": True, "type": "object"})] = {"$ref": "#/$defs/Overrides"}
    return exact(schema) | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "anyOf": [{"required": [name]} for name in ("variants", "grid", "space")],
        "dependentRequired": {"random": ["space"], "search": ["space"]},
        "dependentSchemas": {"space": {"anyOf": [{"required": ["random"]}, {"required": ["search"]}]}},
        "if": {"required": ["search"]},
        "then": {"properties": dict.fromkeys(("random", "variants", "grid"), False)},
    }


def _keys(spec: Schema) -> dict[str, str]:
    """Every field of a spec and every parameter of it, dotted, with what is said of it.

    Where components differ in a parameter, in its default for example, there is one line for each text.
    """
    found: dict[str, dict[str, list[str]]] = {}  # by key and text: who says so
    for field, said in spec["properties"].items():
        if field in ("extends", "name"):
            continue
        found[field] = {said.get("description", ""): []}
        inner = [part["then"] for part in said.get("allOf", ())] or [said]
        for part in inner:
            name = part.get("$ref", "").removeprefix("#/$defs/")
            for key, parameter in spec["$defs"].get(name, {}).get("properties", {}).items():
                if key != "name":
                    texts = found.setdefault(f"{field}.{key}", {})
                    texts.setdefault(parameter.get("description", ""), []).append(name.partition(".")[2])
    return {key: _lines(texts) for key, texts in found.items()}


def _lines(texts: dict[str, list[str]]) -> str:
    if len(texts) == 1:
        return next(iter(texts))
    return "\n".join(f"{', '.join(names)}: {text}" for text, names in texts.items())


def _mapping(keys: dict[str, str], value: Schema) -> Schema:
    """From dotted keys to values of one kind."""
    fields = sorted({key.partition(".")[0] for key in keys})
    return {
        "type": "object",
        "properties": {
            key: value | ({"description": said} if said else {}) for key, said in sorted(keys.items())
        },
        "propertyNames": {"pattern": rf"^({'|'.join(fields)})(\.[^.]+)*$"},
        "additionalProperties": value or True,
    }


def text(registry: Registry) -> str:
    """The schema as it is committed."""
    return json.dumps(json_schema(registry), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(default_registry), end="")
