"""A number that may change over the run."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


class Schedule(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A number, or a ramp from `start` to `end`, in fractions of the run.

    The value rises linearly from 0 to `start` over the first `warmup` of the run, moves from `start` to
    `end` until `until`, and stays there. A warm-up of w steps is 0 at step 0 and `start` at step w. DINO's
    code (arXiv 2104.14294, utils.py) has `start` at step w - 1 already, and then the same cosine: each of its
    first w values is w / (w - 1) times that of here.
    """

    start: float = Field(description="value after the warm-up, or from the first step on")
    end: float = Field(description="value at `until`, and from there on")
    shape: Literal["linear", "cosine"] = Field(
        "linear", description="the way from start to end: a straight line, or half a cosine"
    )
    warmup: float = Field(0.0, description="share of the run in which it rises from 0 to `start`")
    until: float = Field(1.0, description="share of the run after which it is `end`")

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"start": value, "end": value}
        return value

    @model_validator(mode="after")
    def _phases_are_ordered(self) -> Self:
        if not 0 <= self.warmup < self.until <= 1:
            raise ValueError(f"needs 0 <= warmup < until <= 1, got {self.warmup} and {self.until}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "number"}, handler(core_schema)]}

    def __call__(self, progress: float) -> float:
        """The value at `progress`, the share of the run that is done (0 at the first step)."""
        if progress < self.warmup:
            return self.start * progress / self.warmup
        x = min((progress - self.warmup) / (self.until - self.warmup), 1.0)
        if self.shape == "cosine":
            x = (1 - math.cos(math.pi * x)) / 2
        return self.start + x * (self.end - self.start)


def constant(value: float) -> Schedule:
    """The schedule that is `value` throughout."""
    return Schedule(start=value, end=value)


class Within:
    """Bounds for all values of a schedule: `Annotated[Schedule, Within(above=0)]`.

    A schedule with `warmup` begins at 0, which must be within them; `from_zero=False` refuses it anyhow.
    """

    def __init__(
        self,
        *,
        above: float = -math.inf,
        at_least: float = -math.inf,
        at_most: float = math.inf,
        from_zero: bool = True,
    ) -> None:
        self.above, self.at_least, self.at_most, self.from_zero = above, at_least, at_most, from_zero

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the values after the schedule itself is valid."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, schedule: Schedule) -> Schedule:
        # Between these a schedule takes no larger and no smaller value.
        for value in (schedule.start, schedule.end):
            if complaint := self._complaint(value):
                raise ValueError(f"{complaint}, got {value:g}")
        if schedule.warmup and (complaint := self._complaint(0) or self._no_zero()):
            raise ValueError(f"{complaint}, and a warmup begins at 0: leave warmup out")
        return schedule

    def _complaint(self, value: float) -> str | None:
        if value <= self.above:
            return f"must be greater than {self.above:g}"
        if value < self.at_least:
            return f"must be at least {self.at_least:g}"
        if value > self.at_most:
            return f"must be at most {self.at_most:g}"
        return None

    def _no_zero(self) -> str | None:
        return None if self.from_zero else "may not rise from 0"


# A momentum of 0 remembers nothing, so that a teacher would be its student and a centre one batch's mean.
Momentum = Annotated[Schedule, Within(at_least=0, at_most=1, from_zero=False)]
Temperature = Annotated[Schedule, Within(above=0)]
Rate = Annotated[Schedule, Within(at_least=0)]
