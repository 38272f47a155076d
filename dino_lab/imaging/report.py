"""What was found where data was looked for, in numbers and in lines."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_lab.errors import printable
from dino_lab.imaging.files import below

EXAMPLES = 3
NAMES = 5  # of classes that a line has


@dataclass(frozen=True)
class SplitReport:
    """Images of a split, and how many classes they have; None where they have no labels."""

    images: int
    classes: int | None


@dataclass(frozen=True)
class PassedOver:
    """Files or folders that are not used, and why."""

    reason: str
    count: int
    examples: tuple[str, ...] = ()  # paths below the data's folder

    def __str__(self) -> str:
        such = f": {', '.join(self.examples)}{', ...' if self.count > len(self.examples) else ''}"
        return f"{self.count} {self.reason}{such if self.examples else ''}"


@dataclass(frozen=True)
class DataReport:
    """What a data component found; `dataclasses.asdict` of it is JSON."""

    splits: Mapping[str, SplitReport]  # by name: train, test
    class_names: tuple[str, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    notes: tuple[str, ...] = ()  # what else the user should know, a sentence each

    def lines(self, field: str = "data") -> list[str]:
        """A line of what was found, as a field of a spec, one of what was passed over, and one a note."""
        splits = [
            f"{name} {_count(split.images, 'image')} {_of_classes(split.classes)}"
            for name, split in self.splits.items()
        ]
        names = ", ".join(printable(name, 40) for name in self.class_names[:NAMES])
        more = ", ..." if len(self.class_names) > NAMES else ""
        lines = [f"{field}: {', '.join(splits)}{f' ({names}{more})' if names else ''}"]
        if self.passed_over:
            lines.append(f"passed over: {'; '.join(map(str, self.passed_over))}")
        return lines + [f"note: {note}" for note in self.notes]


def passed_over(folder: Path, listed: Mapping[str, Sequence[Path]]) -> tuple[PassedOver, ...]:
    """What a listing left out, most first."""
    found = [
        PassedOver(reason, len(paths), tuple(below(folder, sorted(paths)[:EXAMPLES])))
        for reason, paths in listed.items()
    ]
    return tuple(sorted(found, key=lambda its: -its.count))


def same_name(name: str) -> str:
    """A name in the form (Unicode NFC) in which two that look alike are equal."""
    return unicodedata.normalize("NFC", name)


def _of_classes(classes: int | None) -> str:
    return "without labels" if classes is None else f"of {_count(classes, 'class')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('s') else 's'}"
