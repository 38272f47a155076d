"""Labels as people write them, made into classes with numbers and names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dino_lab.errors import UserError

Label = int | str
Several = Literal["refuse", "first"]
LEAST = 20  # images of which two have the same label
HIDDEN = -1  # data sets of hubs mark hidden labels so


class SeveralLabels(ValueError):
    """An image with more than one label."""


def label_of(value: Any, several: Several = "refuse") -> Label | None:
    """The label that a cell of a table says; None where it is empty or hidden (-1).

    A ValueError where it is no label, a SeveralLabels where it is a list of some and the first is not asked
    for.
    """
    if isinstance(value, (list, tuple)):
        if len(value) > 1 and several == "refuse":
            raise SeveralLabels(f"{len(value)} labels")
        return label_of(value[0]) if value else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():  # what pandas makes of integers with gaps
        value = int(value)
    if isinstance(value, int):
        return None if value == HIDDEN else int(value)
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} is no label; a whole number or text is")
    text = value.strip()
    return None if text in ("", str(HIDDEN)) else text


def numbered(splits: Sequence[Sequence[Label]]) -> tuple[list[Tensor], tuple[str, ...]]:
    """Class numbers int64 [N] of each split's labels, and the classes' names, by number; a UserError where no
    two images have the same, so that they name no classes.

    Classes are sorted, as numbers where all labels are whole numbers and as text otherwise; those that only a
    later split has come last.
    """
    texts = [[str(label) for label in split] for split in splits]
    numeric = all(_is_whole_number(text) for text in {text for split in texts for text in split})
    names: dict[str, int] = {}
    for split in texts:
        new = sorted({*split} - names.keys(), key=int) if numeric else sorted({*split} - names.keys())
        names |= {text: len(names) + i for i, text in enumerate(new)}
    if len(names) == (images := sum(map(len, texts))) >= LEAST:
        raise UserError(f"all {images} labels are different, so that they name no classes")
    return [torch.tensor([names[text] for text in split], dtype=torch.int64) for split in texts], tuple(names)


def _is_whole_number(text: str) -> bool:
    """Whether a text is a whole number as it is usually written, so that `7` and `07` stay two labels."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and str(int(text)) == text if len(digits) < 20 else False
