"""What the names of a row's numbers say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

REGULARIZER = "regularizer."  # stands before the name of a regularizer


def scores(numbers: Mapping[str, float]) -> dict[str, float]:
    """Those of the numbers that evaluators gave: an evaluator's name and a dot stand before them."""
    return {key: value for key, value in numbers.items() if "." in key and not key.startswith(REGULARIZER)}


def main_score(names: Iterable[str]) -> str | None:
    """The score that is meant where none is named: 20-NN, which papers print, or the first there is."""
    given = list(names)
    return next((name for name in given if name.endswith("20nn")), given[0] if given else None)
