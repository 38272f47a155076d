"""What a spec may say about a component, and what is said when it says something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dino_lab.errors import SpecError, UserError
from dino_lab.schedule import Within
from dino_lab.spec.file import load_text
from dino_lab.spec.json_schema import json_schema
from dino_lab.testing.tested_component import METHOD, Failed, TestedComponent
from dino_lab.testing.trial import Trial

NONSENSE = {"no such key": ["nonsense"]}


def check_schema(subject: TestedComponent) -> None:
    """Editors know its name, what it does and each of its parameters."""
    kind, name = subject.entry.kind, subject.entry.name
    schema = json_schema(subject.registry)
    if subject.is_operation:
        names = schema["$defs"]["operation"]["then"]["anyOf"][0]["enum"]
    else:
        field = schema["properties"][subject.field]
        names = field.get("items", field)["properties"]["name"]["enum"]
    definition = schema["$defs"].get(f"{kind}.{name}", {})
    subject.expect(
        name in names and bool(definition), "is not in the JSON schema; its parameters should have types"
    )
    subject.expect(bool(definition.get("description")), "has no docstring; it should say what is computed")
    missing = set(subject.entry.params.model_fields) - set(definition["properties"])
    subject.expect(
        not missing, f"the JSON schema lacks {', '.join(missing)}; every parameter should be in it"
    )


def check_refusals(subject: TestedComponent) -> None:
    """A wrong key or value is one line that names it, before anything is built."""
    _refused(subject, "no_such_parameter", 1, "a key that it does not have")
    for key, value in _wrong_values(subject):
        _refused(
            subject, key, value, "Annotated[float, Field(gt=0)] or another type that says what may be given"
        )


def _refused(subject: TestedComponent, key: str, value: Any, right: str) -> None:
    try:
        load_text(METHOD, "method.yaml", [subject.slot(**{key: value}), *subject.settings], subject.registry)
    except SpecError as error:
        lines = str(error).splitlines()
        subject.expect(
            all(f"{subject.key}.{key}" in line for line in lines),
            f"{key}: {value!r} is refused with {lines}; each line should be about {subject.key}.{key}",
        )
        return
    subject.fail(f"accepts {key}: {value!r}; it should refuse that, by {right}")


def _wrong_values(subject: TestedComponent) -> Iterator[tuple[str, Any]]:
    properties = subject.entry.params.model_json_schema()["properties"]
    for key, field in subject.entry.params.model_fields.items():
        if key == "name":
            continue
        yield key, NONSENSE
        for bounds in _branches(properties[key]):
            for limit, step in (
                ("minimum", -1),
                ("exclusiveMinimum", 0),
                ("maximum", 1),
                ("exclusiveMaximum", 0),
            ):
                if limit in bounds:
                    yield key, bounds[limit] + step
            if "enum" in bounds or "const" in bounds:
                yield key, "no such choice"
        for within in field.metadata:
            if isinstance(within, Within):
                yield from ((key, value) for value in _outside(within))


def _branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [schema, *schema.get("anyOf", [])]


def _outside(within: Within) -> list[float]:
    values = [within.above, within.at_least - 1, within.at_most + 1]
    return [value for value in values if abs(value) != float("inf")]


def check_edges(trial: Trial) -> None:
    """A number that a spec may say is one that the component can use, or refuses in words."""
    subject = trial.subject
    properties = subject.entry.params.model_json_schema()["properties"]
    for key, schema in properties.items():
        if not {"integer", "number"} & {branch.get("type") for branch in _branches(schema)}:
            continue
        for value in (0, -1):
            if (params := subject.params_with(**{key: value})) is None:
                continue
            try:
                trial.say(trial.make(trial.sizes[0], params=params), trial.sizes[0])
            except Failed as failed:
                if not isinstance(failed.__cause__, (ValueError, UserError)):
                    subject.fail(
                        f"accepts {key}: {value}, and then fails ({failed}); its type should say the range, "
                        "such as Annotated[float, Field(gt=0)]",
                        failed,
                    )
