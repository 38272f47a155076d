"""The `stages` of a spec file: changes, each trained for epochs of its own after what stands before it."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from dino_lab.spec.merge import merge_keys
from dino_lab.spec.model import After, Spec
from dino_lab.spec.nodes import child
from dino_lab.spec.problems import Problem

# What a stage cannot change, and why.
_FIXED = {
    "name": "all stages have the name of the file",
    "extends": "a stage changes the one before it",
    "stages": "stages follow each other in one list",
    "after": "a stage comes after the one before it",
    "init": "a stage begins with the state of the one before it",
}


def after(parent: Spec, epoch: int | None = None) -> After:
    """What a spec says whose run begins with the end of a parent's run, or as a fork of it after an epoch."""
    return After(run=parent.hash, spec=parent.dump(), epoch=epoch)


def stage_nodes(root: yaml.MappingNode, problems: list[Problem]) -> Iterator[yaml.MappingNode]:
    """The nodes of each stage's spec: the file without its `stages`, then each change laid over the last."""
    pair = child(root, "stages")
    now = _without(root, "stages")
    yield now
    if pair is None:
        return
    if not isinstance(pair[1], yaml.SequenceNode):
        message = "must be a list with '-' before each stage, which is a mapping of the keys that it changes"
        problems.append(Problem(pair[1].start_mark, ("stages",), message))
        return
    for i, changes in enumerate(pair[1].value):
        if not isinstance(changes, yaml.MappingNode):
            message = "must be a mapping of the keys that the stage changes, such as train: {epochs: 10}"
            problems.append(Problem(changes.start_mark, ("stages", i), message))
            continue
        for key, _ in changes.value:
            if key.value in _FIXED:
                problems.append(Problem(key.start_mark, ("stages", i, key.value), _FIXED[key.value]))
        now = merge_keys(_without(now, "init"), changes)
        yield now


def _without(root: yaml.MappingNode, name: str) -> yaml.MappingNode:
    pairs = [pair for pair in root.value if pair[0].value != name]
    return yaml.MappingNode(root.tag, pairs, root.start_mark, root.end_mark)
