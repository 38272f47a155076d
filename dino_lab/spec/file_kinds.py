"""The three kinds of YAML file, told apart by their keys, so that the wrong verb is one line."""

from __future__ import annotations

from pathlib import Path

import yaml

from dino_lab.errors import SpecError

SWEEP_KEYS = {"base", "grid", "variants", "space", "metric", "baseline", "seeds"}
SPEC_KEYS = {"extends", "backbone", "train", "head", "loss", "teacher", "augment"}
EVALUATION_KEYS = {"data", "evaluators", "size", "backbone"}
_VERBS = {
    "spec": ("a spec", "dino-lab run {file}"),
    "sweep": ("a sweep", "dino-lab sweep {file}"),
    "evaluation": ("a file of evaluators", "dino-lab eval RUN --with {file}"),
}


def refuse_other_kinds(root: yaml.MappingNode, file: Path, wanted: str) -> None:
    """SpecError if the keys of a file are those of another kind than the `wanted` one."""
    kind = kind_of({key.value for key, _ in root.value})
    if kind not in (None, wanted):
        what, command = _VERBS[kind]
        should = _VERBS[wanted][0]
        raise SpecError(f"{file}: {what}, not {should}; it is for: {command.format(file=file)}")


def kind_of(keys: set[str]) -> str | None:
    """`spec`, `sweep` or `evaluation`; None if the keys do not tell."""
    if len(keys & SWEEP_KEYS) > 1 or ("base" in keys and not keys & SPEC_KEYS):
        return "sweep"
    if "evaluators" in keys and keys <= EVALUATION_KEYS:
        return "evaluation"
    if keys & SPEC_KEYS:
        return "spec"
    return None
