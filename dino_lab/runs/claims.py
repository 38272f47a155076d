"""What is expected of the arms of a study, as a sweep file says it under `expect`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from dino_lab.spec.literal import inline
from dino_lab.spec.model import Section

ArmName = str | dict[str, Any]
Floor = Literal["untrained", "raw pixels", "chance"]
# Keys that stand together, and one more that may.
FORMS: tuple[tuple[tuple[str, ...], str | None], ...] = (
    (("arm", "verdict"), None),
    (("better", "than"), "by"),
    (("equal", "within"), None),
    (("arm", "above"), "by"),
    (("arm", "below"), "by"),
    (("arm", "near", "within"), None),
)
ARM_KEYS = ("arm", "better", "than", "equal")


class Claim(Section):
    """One expectation: a verdict of an arm, two arms that differ or are equal, an arm beside a number."""

    arm: ArmName | None = Field(None, description="the arm that is meant: a variant, a label, or dotted keys")
    verdict: Literal["learning", "collapsed", "uniform", "one output"] | None = Field(
        None, description="how every run of the arm ends; collapsed: in either way"
    )
    above: Floor | float | None = Field(
        None, description="what the arm's score is greater than: a floor, or a number"
    )
    below: Floor | float | None = Field(
        None, description="what the arm's score is smaller than: a floor, or a number"
    )
    near: Floor | float | None = Field(
        None, description="what the arm's score differs from by less than `within`: a floor, or a number"
    )
    better: ArmName | None = Field(None, description="the arm that is better than the arm `than`")
    than: ArmName | None = Field(None, description="the arm that `better` is compared with, seed by seed")
    equal: tuple[ArmName, ArmName] | None = Field(
        None, description="two arms that differ by less than `within`, seed by seed"
    )
    by: float | None = Field(None, gt=0, description="the least difference; null: any")
    within: float | None = Field(
        None, gt=0, description="the largest difference that counts as none, in units of the metric"
    )
    metric: str | None = Field(None, min_length=1, description="number that is compared; null: the sweep's")
    mode: Literal["max", "min"] | None = Field(
        None, description="whether a large or a small number is better; null: as in the sweep"
    )
    claim: str | None = Field(None, description="what is claimed, and by whom; shown in the table")
    paper: str | float | None = Field(None, description="the number that was published; shown in the table")

    @model_validator(mode="after")
    def _is_one_form(self) -> Claim:
        about = {key for keys, more in FORMS for key in (*keys, *([more] if more else []))}
        given = {key for key in about if getattr(self, key) is not None}
        if not any(set(keys) <= given <= {*keys, more} for keys, more in FORMS):
            forms = "; ".join(", ".join(keys) + (f" ({more})" if more else "") for keys, more in FORMS)
            there = ", ".join(sorted(given)) or "none"
            raise ValueError(
                f"needs the keys of one of these, those in brackets if wanted: {forms}; got {there}"
            )
        if self.verdict is not None and (self.metric or self.mode):
            raise ValueError("a verdict depends on no metric; leave out metric and mode")
        return self

    @property
    def floor(self) -> Floor | float | None:
        """What one arm is compared with; None where it is another arm, or a verdict."""
        return next((one for one in (self.above, self.below, self.near) if one is not None), None)

    def named_arms(self) -> Iterator[tuple[tuple[str | int, ...], ArmName]]:
        """Where an arm is named, and how."""
        for key in ARM_KEYS:
            value = getattr(self, key)
            if isinstance(value, tuple):
                yield from (((key, i), name) for i, name in enumerate(value))
            elif value is not None:
                yield (key,), value

    @property
    def labels(self) -> list[str]:
        """The arms that are named; of a claim whose arms were found, their labels."""
        return [_text(name) for _, name in self.named_arms()]

    def renamed(self, name: Callable[[ArmName], str]) -> Claim:
        """The claim with other names for its arms."""
        given = {key: getattr(self, key) for key in ARM_KEYS}
        changed = {
            key: tuple(map(name, value)) if isinstance(value, tuple) else name(value)
            for key, value in given.items()
            if value is not None
        }
        return self.model_copy(update=changed)

    def statement(self, metric: str) -> str:
        """The claim in words; its metric is named where it is not `metric`."""
        first, *others = self.labels
        by = f" by at least {self.by:g}" if self.by is not None else ""
        if self.verdict is not None:
            return f"{first}: {self.verdict}"
        if self.better is not None:
            said = f"{first} better than {others[0]}{by}"
        elif self.equal is not None:
            said = f"{first} equal to {others[0]} within {self.within:g}"
        elif self.near is not None:
            said = f"{first} near {_text(self.near)} within {self.within:g}"
        else:
            side = "above" if self.above is not None else "below"
            said = f"{first} {side} {_text(self.floor)}{by}"
        return said if self.metric in (None, metric) else f"{said}, {self.metric}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else inline(value)
