"""What in a data set's images may have been meant otherwise, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from dino_lab.imaging.decode import DARK, Reading, Trait

LEAST_BITS, MOST_BITS = 8, 16


class Named(Protocol):
    """Images that can be named."""

    def where(self, index: int) -> str: ...


@dataclass
class _Count:
    images: int
    most: float
    first: str

    def add(self, images: int, most: float) -> None:
        self.images, self.most = self.images + images, max(self.most, most)


class Traits(dict[Trait, _Count]):
    """By trait (see `examine`): how many images have it, the largest of their numbers, and the first."""

    def add(self, traits: Mapping[Trait, float], source: Named, row: int) -> None:
        """Count those of one image."""
        for trait, number in traits.items():
            if trait in self:
                self[trait].add(1, number)
            else:
                self[trait] = _Count(1, number, source.where(row))

    def merge(self, other: Traits) -> None:
        """Count those of images that come later."""
        for trait, count in other.items():
            if trait in self:
                self[trait].add(count.images, count.most)
            else:
                self[trait] = replace(count)

    def settle(self, asked: Reading) -> Reading:
        """How all images are read: the range of grey values by its bits, a fourth band by what most are."""
        settled = asked
        if asked.white is None and "grey" in self:
            bits = max(LEAST_BITS, int(self["grey"].most).bit_length())
            if bits < MOST_BITS:
                settled = replace(settled, white=2**bits - 1)
        if "graded" in self:
            clear = self["transparent"].images if "transparent" in self else 0
            if self["graded"].images > clear:
                settled = replace(settled, fourth_band="dropped")
        return settled

    def notes(self, asked: Reading, settled: Reading) -> tuple[str, ...]:
        """A sentence for each trait that a user should know of."""
        found = {trait: self._note(trait, asked, settled) for trait in self}
        return tuple(f"{note} (first: {self[trait].first})" for trait, note in found.items() if note)

    def _note(self, trait: Trait, asked: Reading, settled: Reading) -> str:
        count = self[trait]
        has = f"{count.images} images have" if count.images > 1 else "1 image has"
        dropped = settled.fourth_band == "dropped"
        match trait:
            case "grey" if settled != asked and settled.white is not None and asked.white is None:
                bits = int(settled.white).bit_length()
                return (
                    f"{has} 16-bit grey values, none above {count.most:g}: they are scaled as {bits} bits, "
                    f"white is {settled.white:g}; data.white says otherwise"
                )
            case "dark" if count.most < DARK:
                return (
                    f"{has} 16-bit colours, none above {count.most:g} of 255 in 8 bits: they are nearly black"
                )
            case "graded" if dropped:
                return (
                    f"{has} a fourth band that varies as a colour does, not as transparency: it is not used"
                )
            case "graded":
                return f"{has} transparency that varies as a colour does: it is laid over white"
            case "transparent" if dropped:
                return f"{has} transparency that is not used, as most fourth bands are none"
            case "transparent":
                return f"{has} transparency: it is laid over white"
            case "bands":
                return f"{has} up to {count.most:g} bands: those after the colours are not used"
            case "pages":
                return f"{has} several pictures in a file: the first is used"
        return ""
