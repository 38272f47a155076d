"""What a sweep file may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dino_lab.runs.claims import Claim
from dino_lab.spec.model import Section

Overrides = dict[str, Any]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
DISTRIBUTIONS = ("uniform", "log_uniform", "int_uniform", "log_int_uniform", "choice")


class Resources(Section):
    """What one trial gets."""

    cpu: int = Field(1, ge=1, description="cores, and threads of torch, of each process")
    gpu: float = Field(
        0.0, ge=0, description="share of a GPU, or how many, each with its process; 0 trains on the CPU"
    )
    processes: int = Field(1, ge=1, description="processes that train a trial together, on the CPU")

    @model_validator(mode="after")
    def _is_whole(self) -> Resources:
        if self.gpu > 1 and self.gpu != int(self.gpu):
            raise ValueError(f"gpu should be a share up to 1, or a whole number, not {self.gpu:g}")
        if self.gpu and self.processes > 1:
            raise ValueError("processes is for trials on the CPU; on GPUs each has one, as many as gpu says")
        return self

    @property
    def ranks(self) -> int:
        """Processes of a trial."""
        return max(self.processes, int(self.gpu))

    @property
    def cores(self) -> int:
        """Cores of a whole trial."""
        return self.cpu * self.ranks


class Random(Section):
    """How many points are drawn from `space`."""

    samples: int = Field(gt=0, description="points that are drawn")
    seed: Seed = Field(0, description="of the points that are drawn, not of the runs")


class SearchSettings(Section):
    """How the points of `space` are chosen, one after the other, each by the scores of those before."""

    name: Literal["optuna"]
    samples: int = Field(gt=0, description="points in all")
    seed: Seed = Field(0, description="of the search, not of the runs")


class Distribution(Section):
    """Where the values of one key come from, and the values of other keys under which it is drawn at all."""

    uniform: tuple[float, float] | None = Field(None, description="smallest and largest number")
    log_uniform: tuple[float, float] | None = Field(
        None, description="smallest and largest number, whose logarithm is drawn; both above 0"
    )
    int_uniform: tuple[Whole, Whole] | None = Field(
        None, description="smallest and largest whole number, both included"
    )
    log_int_uniform: tuple[Whole, Whole] | None = Field(
        None, description="smallest and largest whole number, whose logarithm is drawn; both above 0"
    )
    choice: Annotated[list[Any], Field(min_length=1)] | None = Field(
        None, description="values, each as likely as the others"
    )
    when: dict[str, Any] = Field(
        {}, description="keys and the value, or the list of values, at which this key is drawn at all"
    )

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The smallest and the largest number of a range."""
        return self.uniform or self.log_uniform or self.int_uniform or self.log_int_uniform

    @model_validator(mode="after")
    def _is_one(self) -> Distribution:
        given = [name for name in DISTRIBUTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of {', '.join(DISTRIBUTIONS)}")
        if (bounds := self.bounds) is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]} needs the smaller number first, and two that differ")
        if bounds is not None and given[0].startswith("log") and bounds[0] <= 0:
            raise ValueError(f"{given[0]} needs numbers greater than 0")
        return self


class Scheduler(Section):
    """Ends the weaker trials early."""

    name: Literal["asha", "median"]
    grace_epochs: int = Field(1, gt=0, description="epochs that every trial is given")
    reduction: int = Field(3, ge=2, description="asha: one in so many goes on at each rung")
    metric: str | None = Field(None, description="number that is compared; null: the sweep's metric")
    mode: Literal["max", "min"] = Field("max", description="whether a large or a small number is better")


class Sweep(Section):
    """A base, what is changed in it, and how often each is run."""

    base: str = Field(min_length=1, description="the spec that is changed, relative to this file")
    set: Overrides = Field({}, description="dotted keys laid over the base, in every trial")
    baseline: str | Overrides | None = Field(
        None, description="what others are compared with: a variant's name, or keys; null: the base itself"
    )
    variants: dict[str, Overrides] = Field({}, description="named changes, one row of the table each")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="dotted keys and their values; every combination is run"
    )
    space: dict[str, Distribution] = Field({}, description="dotted keys whose values are drawn")
    random: Random | None = Field(None, description="draw points of `space`, all at the start")
    search: SearchSettings | None = Field(None, description="choose points of `space`, one after the other")
    seeds: Annotated[int, Field(gt=0, le=1000)] | Annotated[list[Seed], Field(min_length=1)] = Field(
        1, description="runs of each variant: so many seeds from that of the base on, or these seeds"
    )
    metric: str = Field(min_length=1, description="a number of the rows, such as knn.20nn")
    mode: Literal["max", "min"] = Field("max", description="whether a large or a small number is better")
    resources: Resources = Field(Resources(), description="what each trial has for itself")
    stack: int = Field(
        1, ge=1, description="trials of equal shapes that share `resources` and train in one process"
    )
    max_failures: int = Field(
        2, ge=0, description="times that a trial is started again after its process died"
    )
    scheduler: Scheduler | None = Field(None, description="end the weaker trials early; null: end none")
    expect: list[Claim] = Field([], description="claims about the arms, each judged once they have run")

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, seeds: int | list[int]) -> int | list[int]:
        if isinstance(seeds, list) and (twice := [seed for seed in seeds if seeds.count(seed) > 1]):
            raise ValueError(f"the seed {twice[0]} is given twice")
        return seeds

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
        if self.stack > 1 and self.resources.ranks > 1:
            raise ValueError("stack trains in one process; leave it out, or give each trial one process")
        if self.search is not None and (self.random or self.variants or self.grid):
            raise ValueError("search chooses points of space alone; leave out random, variants and grid")
        if self.search is not None and self.expect:
            raise ValueError(
                "expect names arms, and those of a search are not known; leave out one of the two"
            )
        if (
            self.search is not None
            and self.seeds != 1
            and not (isinstance(self.seeds, list) and len(self.seeds) == 1)
        ):
            raise ValueError("search runs each point once; compare the best by a sweep with seeds")
        return self
