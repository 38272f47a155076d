"""What a sweep file may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dino_lab.spec.model import Section

Overrides = dict[str, Any]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
DISTRIBUTIONS = ("uniform", "log_uniform", "choice")


class Resources(Section):
    """What one trial gets."""

    cpu: int = Field(1, ge=1, description="cores, and threads of torch")
    gpu: float = Field(0.0, ge=0, le=1, description="share of a GPU; 0 trains on the CPU")


class Random(Section):
    """How many points are drawn from `space`."""

    samples: int = Field(gt=0)
    seed: Seed = 0


class SearchSettings(Section):
    """How the points of `space` are chosen, one after the other, each by the scores of those before."""

    name: Literal["optuna"]
    samples: int = Field(gt=0, description="points in all")
    seed: Seed = 0


class Distribution(Section):
    """Where the values of one key come from, and the values of other keys under which it is drawn at all."""

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    when: dict[str, Any] = Field({}, description="drawn only where each of these keys has this value")

    @model_validator(mode="after")
    def _is_one(self) -> Distribution:
        given = [name for name in DISTRIBUTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of {', '.join(DISTRIBUTIONS)}")
        if (bounds := self.uniform or self.log_uniform) is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]} needs the smaller number first, and two that differ")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError("log_uniform needs numbers greater than 0")
        return self


class Scheduler(Section):
    """Ends the weaker trials early."""

    name: Literal["asha", "median"]
    grace_epochs: int = Field(1, gt=0, description="no trial ends before")
    reduction: int = Field(3, ge=2, description="asha: one in so many goes on at each rung")
    metric: str | None = Field(None, description="what is compared, where it is not the metric of the sweep")
    mode: Literal["max", "min"] = "max"


class Sweep(Section):
    """A base, what is changed in it, and how often each is run."""

    base: str = Field(min_length=1, description="the spec that is changed, relative to this file")
    set: Overrides = Field({}, description="dotted keys laid over the base, in every trial")
    baseline: str | Overrides | None = Field(
        None, description="what differences are told to: the name of a variant, or keys; the base as it is"
    )
    variants: dict[str, Overrides] = Field({}, description="named changes, one row of the table each")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="dotted keys and their values; every combination is run"
    )
    space: dict[str, Distribution] = Field({}, description="dotted keys whose values are drawn")
    random: Random | None = None
    search: SearchSettings | None = None
    seeds: Annotated[int, Field(gt=0, le=1000)] | Annotated[list[Seed], Field(min_length=1)] = 1
    metric: str = Field(min_length=1, description="a number of the rows, such as knn.20nn")
    mode: Literal["max", "min"] = "max"
    resources: Resources = Resources()
    stack: int = Field(
        1, ge=1, description="trials of equal shapes that share `resources` and train in one process"
    )
    max_failures: int = Field(2, ge=0, description="how often a trial whose process died goes on")
    scheduler: Scheduler | None = None

    @model_validator(mode="after")
    def _compares_something(self) -> Sweep:
        if not (self.variants or self.grid or self.space):
            raise ValueError("nothing to compare: give variants, a grid, or a space")
        if bool(self.space) != (self.random is not None or self.search is not None):
            raise ValueError(
                "space says where values are from, random how many are drawn, or search how many are chosen; "
                "one needs the other"
            )
        if self.stack > 1 and (self.scheduler is not None or self.search is not None):
            raise ValueError(
                "stack is for trials that are known and run to their end; leave out scheduler and search"
            )
        if self.search is not None and (self.random or self.variants or self.grid):
            raise ValueError("search chooses points of space alone; leave out random, variants and grid")
        if (
            self.search is not None
            and self.seeds != 1
            and not (isinstance(self.seeds, list) and len(self.seeds) == 1)
        ):
            raise ValueError("search runs each point once; compare the best by a sweep with seeds")
        return self
