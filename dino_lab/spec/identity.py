"""What decides the weights of a run, and only that; see docs/identity.md.

Two specs with the same identity train the same weights up to rounding, so they have the same folder. Left out
are the name, the evaluators and their data, and what changes only how fast a step is computed or what is
written down. Included is the code of components that are not built in.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dino_lab.errors import UserError
from dino_lab.registry import Params
from dino_lab.registry.discovery import BUILT_IN
from dino_lab.spec.former import of_today
from dino_lab.spec.model import Spec
from dino_lab.weights.file import TIMM, digest

# Keys that do not decide the weights, of the spec and of its sections `train` and `data`.
FREE = ("name", "evaluators", "evaluate_on")
FREE_OF_TRAIN = {
    *("accumulate", "compile", "gradient_checkpointing", "channels_last"),  # how a step is computed
    *("log_every", "on_collapse", "keep", "keep_best"),  # what is written down, and when a run is stopped
}
# Of `init`: the content of the weights decides, wherever they lie; and when a run is stopped.
FREE_OF_INIT = {"from", "below_start"}
INIT_WEIGHTS, INIT_FROM = "init.weights", "init.from"  # the content's digest, and where it lay
FREE_OF_DATA = {"cache_gb"}  # where copies of data are kept
_EXCLUDED: dict[str, Any] = {
    **dict.fromkeys(FREE, True),
    "train": FREE_OF_TRAIN,
    "data": FREE_OF_DATA,
    "init": FREE_OF_INIT,
    "after": True,  # whose hash decides, see `identity_of`
}
# Built-in components that compute something else since a later version, by field; runs of before are other
# runs.
REVISIONS = {"optim": {"lars": 2}}  # 0.2.0: |g| + decay |w|, and the rate inside the momentum
DIGITS = 12  # of the hash


@dataclass(frozen=True)
class RunIdentity:
    """What decides the weights: settings by dotted key, defaults written out, and the code of plugins."""

    settings: dict[str, Any]
    chosen: frozenset[str]  # keys of `settings` that are not at their default
    code: dict[str, str]  # "kind name" of a component that is not built in to the digest of its source

    @property
    def hash(self) -> str:
        """12 hex digits of what is not at its default, so that a new key with a default changes no hash."""
        return _digest({key: self.settings[key] for key in sorted(self.chosen)}, self.code)

    @property
    def full_hash(self) -> str:
        """12 hex digits of every setting: the folder's name where a default has changed since (rare)."""
        return _digest({key: value for key, value in self.settings.items() if key != INIT_FROM}, self.code)

    def same_as(self, settings: Mapping[str, Any], code: Mapping[str, str] | None) -> bool:
        """Whether a recorded run trained these weights.

        A key that the record lacks is newer than the run: it must be at its default, which is the old
        behaviour, but for those that `of_today` fills in. `code` is None in a record that is older than its
        recording. First weights that are gone are those that the run had from the same place.
        """
        if code is not None and code != self.code:
            return False
        settings = of_today(settings)
        if settings.keys() - self.settings.keys():
            return False
        gone = INIT_WEIGHTS in self.settings and self.settings[INIT_WEIGHTS] is None
        unseen = INIT_WEIGHTS if gone else INIT_FROM
        return all(
            settings[key] == value if key in settings else key not in self.chosen
            for key, value in self.settings.items()
            if key != unseen
        )


def identity_of(spec: Spec) -> RunIdentity:
    """The identity of a spec."""
    settings = flat(spec.model_dump(mode="json", serialize_as_any=True, exclude=_EXCLUDED))
    chosen = flat(
        spec.model_dump(mode="json", serialize_as_any=True, exclude=_EXCLUDED, exclude_defaults=True)
    )
    code = {
        f"{field} {params.name}": digest for field, params in _components(spec) if (digest := _code(params))
    }
    revisions = {
        f"{field}.revision": known[name]
        for field, known in REVISIONS.items()
        if (name := settings.get(f"{field}.name")) in known
    }
    also: dict[str, Any] = revisions | (
        {INIT_WEIGHTS: _weights(spec.init.path)} if spec.init is not None else {}
    )
    if spec.after is not None:
        also |= {"after.run": spec.after.run, "after.epoch": spec.after.epoch}
    where = {INIT_FROM: spec.init.path} if spec.init is not None else {}
    decide = frozenset((chosen.keys() & settings.keys()) | also.keys())
    return RunIdentity(settings | also | where, decide, code)


def _weights(path: str) -> str | None:
    """The digest of what `init` names; None where nothing lies there any more."""
    if path.startswith(TIMM):
        return path
    try:
        return digest(Path(path).expanduser())
    except (UserError, OSError):
        return None


def decisive(dump: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a dumped spec by dotted key, without those that do not decide the weights."""
    kept = {key: value for key, value in dump.items() if key not in (*FREE, "after")}
    if (after := dump.get("after")) is not None:
        kept["after"] = {"run": after["run"], "epoch": after["epoch"]}
    for section, free in (("train", FREE_OF_TRAIN), ("data", FREE_OF_DATA)):
        if isinstance(kept.get(section), Mapping):
            kept[section] = {key: value for key, value in kept[section].items() if key not in free}
    return flat(kept)


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping of dotted keys; an empty one is a value."""
    if isinstance(value, Mapping) and value:
        pairs: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, list) and value:
        pairs = iter(enumerate(value))
    else:
        return {key: value}
    return {
        path: leaf
        for step, inner in pairs
        for path, leaf in flat(inner, f"{key}.{step}" if key else f"{step}").items()
    }


def _components(spec: Spec) -> Iterator[tuple[str, Params]]:
    for field in type(spec).model_fields:
        if field in FREE:
            continue
        value = getattr(spec, field)
        for params in value if isinstance(value, tuple) else (value,):
            yield from ((field, component) for component in _nested(params))


def _nested(value: Any) -> Iterator[Params]:
    """A component, and those among its values, such as the operations of an augmentation."""
    if isinstance(value, Params):
        yield value
    if isinstance(value, BaseModel):
        value = [getattr(value, key) for key in type(value).model_fields]
    for inner in value if isinstance(value, (list, tuple)) else ():
        yield from _nested(inner)


def _code(params: Params) -> str | None:
    """The digest of a component's source; None of a built-in, whose version is that of the package."""
    cls = type(params).component
    if cls is None or cls.__module__.startswith(BUILT_IN):
        return None
    files = _source_files(cls.__module__)
    if not files:
        return _sha(inspect.getsource(cls).encode())
    return _digest_of_files(tuple((file, file.stat().st_mtime_ns) for file in files))


def _source_files(module: str) -> list[Path]:
    """The Python files of the outermost package that a module is part of, or its own file."""
    steps = module.split(".")
    for i in range(1, len(steps) + 1):
        file = getattr(sys.modules.get(".".join(steps[:i])), "__file__", None)
        if file is not None:  # a namespace package has none
            path = Path(file)
            return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return []


@lru_cache(maxsize=256)
def _digest_of_files(files: tuple[tuple[Path, int], ...]) -> str:
    return _sha(b"".join(file.read_bytes() for file, _ in files))


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return _sha(text.encode())[:DIGITS]
