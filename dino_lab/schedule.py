"""A number that may change over the run."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


class Progress(float):
    """The share of a run that is over before a step, from 0 to 1, which also counts its epochs."""

    epoch: float  # passes over the training images that are over

    def __new__(cls, step: int, steps_per_epoch: int, epochs: int) -> Progress:
        """Before step `step` (from 0) of a run of so many epochs."""
        progress = super().__new__(cls, step / (steps_per_epoch * epochs))
        progress.epoch = step / steps_per_epoch
        return progress


class Schedule(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A number, or a ramp from `start` to `end`, in fractions of the run or in epochs.

    The value rises linearly from 0 to `start` over the first `warmup` of the run. With `linear` and `cosine`
    it then moves to `end` until `until`, and stays there. With `hold` it stays at `start`. With
    `warm-hold-cool` it stays there until the last `cool` of the run, in which it falls in a straight line to
    `end` (MiniCPM, arXiv 2404.06395, Sec. 4; the share of 0.2 is that of arXiv 2405.18392). What is counted
    in `units: epochs` is the same in a longer run.

    A warm-up of w steps is 0 at step 0 and `start` at step w. DINO's code (arXiv 2104.14294, utils.py) has
    `start` at step w - 1 already, and then the same cosine: each of its first w values is w / (w - 1) times
    that of here.
    """

    start: float = Field(description="value after the warm-up, or from the first step on")
    end: float = Field(description="value at `until`, and from there on; of hold it is `start`")
    shape: Literal["linear", "cosine", "hold", "warm-hold-cool"] = Field(
        "linear",
        description="the way from start to end: a straight line, half a cosine, none, or a line at the end",
    )
    warmup: float = Field(0.0, description="share of the run, or epochs, in which it rises from 0 to `start`")
    until: float = Field(1.0, description="share of the run, or epochs, after which it is `end`")
    cool: float = Field(
        0.2, description="warm-hold-cool: share of the run, the last one, in which it falls to `end`"
    )
    units: Literal["share", "epochs"] = Field(
        "share", description="what `warmup` and `until` count: shares of the run, or epochs"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"start": value, "end": value}
        if isinstance(value, dict) and value.get("shape") == "hold" and "start" in value:
            return {"end": value["start"], **value}
        return value

    @model_validator(mode="after")
    def _phases_are_ordered(self) -> Self:
        fault = self._ramp_fault() if self.shape in ("linear", "cosine") else self._hold_fault()
        if self.shape != "warm-hold-cool" and self.cool != type(self).model_fields["cool"].default:
            fault = "cool goes with shape: warm-hold-cool"
        if fault:
            raise ValueError(fault)
        return self

    def _ramp_fault(self) -> str:
        if self.units == "epochs" and "until" not in self.model_fields_set:
            return "units: epochs needs `until`, in epochs"
        if 0 <= self.warmup < self.until <= (1 if self.units == "share" else math.inf):
            return ""
        most = " <= 1" if self.units == "share" else ""
        return f"needs 0 <= warmup < until{most}, got {self.warmup} and {self.until}"

    def _hold_fault(self) -> str:
        if self.until != 1:
            return f"{self.shape} has no `until`; leave it out"
        if self.shape == "hold" and self.start != self.end:
            return f"hold stays at `start`; leave out `end`, or make it {self.start:g}"
        warmup, cool = self.warmup, self.cool if self.shape == "warm-hold-cool" else 0.0
        if self.shape == "warm-hold-cool" and not 0 < cool < 1:
            return f"needs 0 < cool < 1, got {cool}"
        if warmup < 0 or (self.units == "share" and warmup + cool >= 1):
            return f"needs 0 <= warmup and warmup + cool < 1, got {warmup} and {cool}"
        return ""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        mapping = handler(core_schema)
        mapping["required"] = ["start"]  # and `end`, where it does not stay there
        is_hold = {"properties": {"shape": {"const": "hold"}}, "required": ["shape"]}
        mapping |= {"if": is_hold, "else": {"required": ["end"]}}
        return {"anyOf": [{"type": "number"}, mapping]}

    def __call__(self, progress: float) -> float:
        """The value at `progress`, the share of the run that is done (0 at the first step).

        With `units: epochs` it has to be a `Progress`; else a TypeError.
        """
        done = progress if self.units == "share" else _epochs(progress)
        if done < self.warmup:
            return self.start * done / self.warmup
        match self.shape:
            case "hold":
                return self.start
            case "warm-hold-cool":
                x = min(max((progress - (1 - self.cool)) / self.cool, 0.0), 1.0)
            case _:
                x = min((done - self.warmup) / (self.until - self.warmup), 1.0)
        if self.shape == "cosine":
            x = (1 - math.cos(math.pi * x)) / 2
        return self.start + x * (self.end - self.start)

    def warm_up(self, epochs: int) -> float:
        """Share of a run of so many epochs in which it rises from 0."""
        return self.warmup if self.units == "share" else min(self.warmup / epochs, 1.0)


def _epochs(progress: float) -> float:
    if not isinstance(progress, Progress):
        raise TypeError("a schedule in epochs is asked with the Progress of a run, not with a number")
    return progress.epoch


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
