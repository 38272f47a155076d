"""Specs laid over one another as nodes, so that every value remembers the file or setting it came from.

The rule: a mapping with `name` replaces the component whole; a mapping without `name` changes keys of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dino_lab.errors import SpecError
from dino_lab.spec.compose import MAX_DEPTH, TAG, comment_in, compose
from dino_lab.spec.nodes import child, scalar, tidy
from dino_lab.spec.problems import SETTING, Problem, place, report, start_of
from dino_lab.spec.shipped import find

MAX_BYTES = 1_000_000
_HOW = "write --set key=value, for example --set optim.lr=1e-4"


def read(path: Path) -> str:
    """The text of a spec file; SpecError in one line if there is none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: a folder, not a YAML file") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > MAX_BYTES:
        raise SpecError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB, so it is no spec")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:2]:
        raise SpecError(f"{path}: UTF-16 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        column = error.start - content[: error.start].rfind(b"\n")
        raise SpecError(f"{path}:{line}:{column}: not UTF-8 text") from None


def compose_all(text: str, file: Path, problems: list[Problem]) -> yaml.MappingNode:
    """The spec in `text`, laid over the files that it extends."""
    layers: list[yaml.MappingNode] = []
    chain = [file]
    while True:
        root, base = _without_extends(compose_root(text, chain[-1], problems))
        layers.append(root)
        if base is None:
            break
        text = _read_base(base, chain, problems)
    merged = layers.pop()
    while layers:
        merged = merge_keys(merged, layers.pop())
    return merged


def compose_root(text: str, file: Path, problems: list[Problem]) -> yaml.MappingNode:
    """The keys of one file, tidy; SpecError if there are none."""
    node = compose(text, str(file))
    if node is None:
        raise SpecError(f"{file}: the file is empty")
    if not isinstance(node, yaml.MappingNode):
        raise report([Problem(node.start_mark, (), "a spec is a mapping: lines of 'key: value'")])
    root = tidy(node, problems)
    assert isinstance(root, yaml.MappingNode)
    return root


def _without_extends(root: yaml.MappingNode) -> tuple[yaml.MappingNode, yaml.Node | None]:
    rest = [pair for pair in root.value if pair[0].value != "extends"]
    pair = child(root, "extends")
    return yaml.MappingNode(root.tag, rest, root.start_mark, root.end_mark), pair[1] if pair else None


def _read_base(base: yaml.Node, chain: list[Path], problems: list[Problem]) -> str:
    """Text of the file that `base` names, added to `chain`; without it nothing else can be judged."""
    value = scalar(base) if isinstance(base, yaml.ScalarNode) else None
    if not isinstance(value, str) or not value:
        problem = "must be the path of one file, relative to this one"
    elif "://" in value:
        problem = f"{value}: an address; download it, and write the path of the file"
    else:
        chain.append(_base_file(value, chain[-1].parent))
        if chain[-1].resolve() in [file.resolve() for file in chain[:-1]]:
            problem = f"files extend each other in a circle: {' -> '.join(map(str, chain))}"
        else:
            try:
                return read(chain[-1])
            except SpecError as error:
                problem = str(error)
    raise report([*problems, Problem(base.start_mark, ("extends",), problem)])


def _base_file(value: str, folder: Path) -> Path:
    """The file that is extended: beside the one that does, or a name of one that comes with the package."""
    beside = folder / os.path.expanduser(value)
    is_name = not beside.suffix and not os.path.exists(beside)
    return (find(value) if is_name else None) or beside


def merge(base: yaml.Node | None, over: yaml.Node) -> yaml.Node:
    """`over` wins; two mappings are merged key by key, unless `over` has a `name`."""
    if (
        isinstance(base, yaml.MappingNode)
        and isinstance(over, yaml.MappingNode)
        and child(over, "name") is None
    ):
        return merge_keys(base, over)
    return over


def merge_keys(base: yaml.MappingNode, over: yaml.MappingNode) -> yaml.MappingNode:
    """The keys of both; where both have one, what `merge` makes of the two."""
    pairs = {key.value: (key, value) for key, value in base.value}
    for key, value in over.value:
        old = pairs[key.value][1] if key.value in pairs else None
        pairs[key.value] = (key, merge(old, value))
    return yaml.MappingNode(base.tag, list(pairs.values()), base.start_mark, base.end_mark)


@dataclass(frozen=True)
class Override:
    """A value at a dotted key, and where it was written."""

    path: tuple[str, ...]
    value: yaml.Node
    mark: yaml.Mark

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(self.path)

    @property
    def place(self) -> tuple[str, ...]:
        """The path of what is replaced: a name replaces the whole component."""
        return self.path[:-1] if self.path[-1] == "name" and len(self.path) > 1 else self.path

    def touches(self, other: Override) -> bool:
        """Whether one of the two lies at or below the other."""
        return all(a == b for a, b in zip(self.place, other.place, strict=False))


def apply_settings(
    root: yaml.MappingNode, settings: Sequence[str], problems: list[Problem]
) -> yaml.MappingNode:
    """`root` with settings `a.b=c` laid over it."""
    parsed = [parse_setting(setting, problems) for setting in settings]
    return lay_over(root, [override for override in parsed if override is not None], problems)


def parse_setting(setting: str, problems: list[Problem]) -> Override | None:
    """The override that `a.b=c` says; None, and a problem, if it says none."""
    name = SETTING + " ".join(setting.split())
    mark = start_of(name if len(name) <= 100 else f"{name[:97]}...")
    key, equals, text = setting.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path) or len(path) > MAX_DEPTH:
        problems.append(Problem(mark, (), _HOW))
    elif path[0] == "extends":
        problems.append(Problem(mark, (), "'extends' belongs in a file"))
    else:
        try:
            node = compose(text, mark.name) or yaml.ScalarNode(TAG + "null", "", mark, mark)
            if comment_in(text):
                raise SpecError(f"' #' begins a comment; quote the value: {key}='{text.strip()}'")
            return Override(tuple(path), tidy(node, problems, tuple(path)), mark)
        except SpecError as error:
            problems.append(Problem(mark, (), str(error).removeprefix(f"{place(mark)}: ")))
    return None


def override_at(key: str, value: yaml.Node, mark: yaml.Mark, problems: list[Problem]) -> Override | None:
    """The override at a dotted key of a file; None, and a problem at `mark`, if the key cannot be one."""
    path = tuple(key.split("."))
    if not all(path) or len(path) > MAX_DEPTH:
        problems.append(Problem(mark, (key,), "must be a dotted key of the spec, such as optim.lr"))
    elif path[0] == "extends":
        problems.append(Problem(mark, (key,), "'extends' belongs in the file of a spec"))
    else:
        return Override(path, value, mark)
    return None


def lay_over(
    root: yaml.MappingNode, overrides: Sequence[Override], problems: list[Problem]
) -> yaml.MappingNode:
    """`root` with overrides laid over it, whatever is replaced as a whole before the keys inside it.

    So `head.dim` may stand before `head.name`. Of two overrides at the same key the later one wins.
    """
    parts = [part for override in overrides for part in _parts(override, overrides)]
    for override in sorted(parts, key=lambda override: len(override.place)):
        try:
            merged = _put(root, list(override.path), override.value, override.mark, top=True)
            assert isinstance(merged, yaml.MappingNode)
            root = merged
        except SpecError as error:
            loc = () if override.mark.name.startswith(SETTING) else (override.key,)
            problems.append(Problem(override.mark, loc, str(error)))
    return root


def _parts(override: Override, overrides: Sequence[Override]) -> list[Override]:
    """The keys of a mapping that changes some, one by one, where other overrides lie at or below it."""
    value = override.value
    if not isinstance(value, yaml.MappingNode) or not value.value or child(value, "name") is not None:
        return [override]
    if not any(override.touches(other) for other in overrides if other is not override):
        return [override]
    inner = [Override((*override.path, key.value), its, key.start_mark) for key, its in value.value]
    return [part for one in inner for part in _parts(one, overrides)]


def _put(
    node: yaml.Node | None, path: list[str], value: yaml.Node, mark: yaml.Mark, top: bool = False
) -> yaml.Node:
    if not path:
        return merge(node, value)
    step, rest = path[0], path[1:]
    if isinstance(node, yaml.SequenceNode):
        if not (step.isdecimal() and int(step) < len(node.value)):
            raise SpecError(f"there is no item {step!r}: the list has {len(node.value)}, counted from 0")
        items = list(node.value)
        items[int(step)] = _put(items[int(step)], rest, value, mark)
        return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)
    pair = child(node, step)
    inner = _put(pair[1] if pair else None, rest, value, mark)
    key = yaml.ScalarNode(TAG + "str", step, mark, mark)
    if isinstance(node, yaml.MappingNode) and (top or step != "name"):
        pairs = {old.value: (old, its) for old, its in node.value}
        # What merely lies on the way stays where it was.
        pairs[step] = (pair[0] if pair and rest and isinstance(pair[1], yaml.CollectionNode) else key, inner)
        return yaml.MappingNode(node.tag, list(pairs.values()), node.start_mark, node.end_mark)
    return yaml.MappingNode(TAG + "map", [(key, inner)], mark, mark)
