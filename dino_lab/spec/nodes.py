"""YAML nodes that remember where they stand: checked, read as plain data, and searched."""

from __future__ import annotations

from typing import Any

import yaml

from dino_lab.errors import Loc
from dino_lab.spec.compose import NUMBERS, TAG, odd_character
from dino_lab.spec.problems import Problem, shown

_TAGS_OF: dict[type[yaml.Node], list[str]] = {
    yaml.MappingNode: ["map"],
    yaml.SequenceNode: ["seq"],
    yaml.ScalarNode: ["str", "int", "float", "bool", "null"],
}


def tidy(node: yaml.Node, problems: list[Problem], loc: Loc = ()) -> yaml.Node:
    """A copy in which every key is text and given once, and every tag is plain; what is not is a problem."""
    plain = _TAGS_OF[type(node)]
    tag = node.tag
    if tag not in [TAG + name for name in plain]:
        problems.append(Problem(node.start_mark, loc, f"the tag {tag.replace(TAG, '!!')!r} is not allowed"))
        tag = TAG + plain[0]
    if isinstance(node, yaml.MappingNode):
        pairs = _tidy_pairs(node, problems, loc)
        return yaml.MappingNode(tag, pairs, node.start_mark, node.end_mark)
    if isinstance(node, yaml.SequenceNode):
        items = [tidy(item, problems, (*loc, i)) for i, item in enumerate(node.value)]
        return yaml.SequenceNode(tag, items, node.start_mark, node.end_mark)
    node = yaml.ScalarNode(tag, node.value, node.start_mark, node.end_mark)
    try:
        scalar(node)
    except ValueError as error:
        problems.append(Problem(node.start_mark, loc, str(error)))
        node = yaml.ScalarNode(TAG + "str", "", node.start_mark, node.end_mark)
    return node


def _tidy_pairs(
    node: yaml.MappingNode, problems: list[Problem], loc: Loc
) -> list[tuple[yaml.Node, yaml.Node]]:
    first: dict[str, yaml.Mark] = {}
    pairs: list[tuple[yaml.Node, yaml.Node]] = []
    for key, value in node.value:
        mark = key.start_mark
        if not isinstance(key, yaml.ScalarNode) or key.tag != TAG + "str":
            got = shown(key.value) if not isinstance(key, yaml.ScalarNode) else key.value or "nothing"
            problems.append(Problem(mark, loc, f"a key must be text, got {got}"))
        elif key.value == "<<":
            problems.append(
                Problem(
                    mark, loc, "the merge key '<<' is not supported; use 'extends', or write the keys out"
                )
            )
        elif (odd := next(filter(None, map(odd_character, key.value)), None)) is not None:
            problems.append(Problem(mark, (*loc, key.value), f"no key has {odd} in it"))
        elif key.value in first:
            line = first[key.value].line + 1
            problems.append(Problem(mark, (*loc, key.value), f"given twice, first on line {line}"))
        else:
            first[key.value] = mark
            pairs.append((key, tidy(value, problems, (*loc, key.value))))
    return pairs


def scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    """The value of a leaf; ValueError if its text does not fit its tag."""
    text: str = node.value
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"text with a character that no file can hold: {text[:60]!a}")
    match node.tag.removeprefix(TAG):
        case "null":
            return None
        case "bool" if text.lower() in ("true", "false"):
            return text.lower() == "true"
        case "int" if NUMBERS["int"].match(text):
            if len(text) > 30:
                raise ValueError(f"a whole number of {len(text)} digits is too long")
            if abs(number := int(text)) >= 1 << 63:
                raise ValueError(f"{text} is larger than a whole number can be, which is 2^63 - 1")
            return number
        case "float" if NUMBERS["float"].match(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case "str":
            return text
    raise ValueError(f"{text!r} does not fit the tag {node.tag.replace(TAG, '!!')!r}")


def data(node: yaml.Node) -> Any:
    """The plain data of a tidy node."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: data(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [data(item) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return scalar(node)


def child(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """The key and the value at `step`; in a list the item stands for both."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and 0 <= step < len(node.value):
        return node.value[step], node.value[step]
    return None


def mark_at(root: yaml.Node, loc: Loc) -> yaml.Mark:
    """Where `loc` stands, or the closest part of it that the text has."""
    node, mark = root, root.start_mark
    for step in loc:
        pair = child(node, step)
        if pair is None:
            break
        mark, node = pair[0].start_mark, pair[1]
    return mark
