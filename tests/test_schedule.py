from __future__ import annotations

import math
from typing import Annotated, Any

import numpy
import pytest
from pydantic import TypeAdapter, ValidationError

from dino_lab.schedule import Momentum, Progress, Rate, Schedule, Temperature, Within, constant


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (constant(0.3), {0.0: 0.3, 0.5: 0.3, 1.0: 0.3}),
        (Schedule(start=1.0, end=3.0), {0.0: 1.0, 0.25: 1.5, 1.0: 3.0}),
        (Schedule(start=3.0, end=1.0), {0.0: 3.0, 0.25: 2.5, 1.0: 1.0}),
        (
            Schedule(start=0.996, end=1.0, shape="cosine"),
            {0.0: 0.996, 0.25: 1 - 0.004 * (1 + math.cos(math.pi / 4)) / 2, 0.5: 0.998, 1.0: 1.0},
        ),
        (Schedule(start=2.0, end=4.0, until=0.5), {0.0: 2.0, 0.25: 3.0, 0.5: 4.0, 0.75: 4.0, 1.0: 4.0}),
        (
            Schedule(start=2.0, end=0.0, shape="cosine", warmup=0.1),
            {0.0: 0.0, 0.05: 1.0, 0.1: 2.0, 0.55: 1.0, 1.0: 0.0},
        ),
        (
            Schedule(start=2.0, end=4.0, warmup=0.2, until=0.6),
            {0.0: 0.0, 0.1: 1.0, 0.2: 2.0, 0.4: 3.0, 0.6: 4.0, 1.0: 4.0},
        ),
    ],
    ids=["constant", "up", "down", "cosine", "until", "warmup", "warmup and until"],
)
def test_values(schedule: Schedule, values: dict[float, float]) -> None:
    assert [schedule(progress) for progress in values] == pytest.approx(list(values.values()), abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [  # by epoch, of runs of 10 epochs and of 20
        ({"shape": "hold", "start": 3}, {10: {0: 3, 5: 3, 9: 3}, 20: {0: 3, 19: 3}}),
        (
            {"shape": "hold", "start": 3, "warmup": 2, "units": "epochs"},
            {10: {0: 0, 1: 1.5, 2: 3, 9: 3}, 20: {0: 0, 1: 1.5, 2: 3, 19: 3}},
        ),
        (
            {"shape": "warm-hold-cool", "start": 4, "end": 2, "warmup": 2, "units": "epochs"},
            {10: {1: 2, 2: 4, 8: 4, 9: 3, 10: 2}, 20: {1: 2, 2: 4, 16: 4, 18: 3, 20: 2}},
        ),
        (
            {"shape": "warm-hold-cool", "start": 4, "end": 2, "warmup": 0.1, "cool": 0.5},
            {10: {0: 0, 1: 4, 5: 4, 7.5: 3}, 20: {1: 2, 2: 4, 10: 4, 15: 3}},
        ),
        (
            {"start": 1, "end": 3, "warmup": 1, "until": 5, "units": "epochs"},
            {10: {0.5: 0.5, 1: 1, 3: 2, 5: 3, 9: 3}, 20: {0.5: 0.5, 3: 2, 19: 3}},
        ),
    ],
    ids=["hold", "warm-up of epochs", "warm-hold-cool", "warm-hold-cool in shares", "ramp of epochs"],
)
def test_values_by_epoch(schedule: dict[str, Any], values: dict[int, dict[float, float]]) -> None:
    found = Schedule.model_validate(schedule)
    for epochs, by_epoch in values.items():
        progress = [Progress(round(10 * epoch), 10, epochs) for epoch in by_epoch]
        assert [found(one) for one in progress] == pytest.approx(list(by_epoch.values()), abs=1e-12)


def test_epochs_are_asked_with_the_progress_of_a_run() -> None:
    schedule = Schedule(shape="hold", start=1, end=1, warmup=2, units="epochs")
    with pytest.raises(TypeError, match="Progress of a run"):
        schedule(0.5)
    assert Progress(3, 4, 2) == 3 / 8
    assert (schedule.warm_up(8), Schedule(start=1, end=1, warmup=0.1).warm_up(8)) == (0.25, 0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": "hold", "start": 1, "end": 2}, "hold stays at `start`"),
        ({"shape": "hold", "start": 1, "until": 0.5}, "hold has no `until`"),
        ({"shape": "warm-hold-cool", "start": 1, "end": 2, "cool": 0}, "0 < cool < 1"),
        ({"shape": "warm-hold-cool", "start": 1, "end": 2, "warmup": 0.8}, "warmup \\+ cool < 1"),
        ({"shape": "linear", "start": 1, "end": 2, "cool": 0.3}, "cool goes with shape: warm-hold-cool"),
        ({"start": 1, "end": 2, "units": "epochs"}, "units: epochs needs `until`"),
        ({"start": 1, "end": 2, "units": "epochs", "warmup": 5, "until": 4}, "0 <= warmup < until, got 5.0"),
    ],
)
def test_shapes_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Schedule.model_validate(given)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_ends_are_exact(shape: str) -> None:
    """A momentum of 1 that comes out as 1 + 1e-16 would be another experiment."""
    schedule = Schedule(start=0.9995, end=1.0, shape=shape)
    assert (schedule(0.0), schedule(1.0)) == (0.9995, 1.0)


@pytest.mark.parametrize("number", [0.5, 3])
def test_a_number_is_a_constant(number: float) -> None:
    assert Schedule.model_validate(number) == constant(number)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": 1, "end": 2, "warmup": 0.5, "until": 0.5}, "0 <= warmup < until <= 1, got 0.5 and 0.5"),
        ({"start": 1, "end": 2, "warmup": -0.1}, "0 <= warmup < until <= 1"),
        ({"start": 1, "end": 2, "until": 1.5}, "0 <= warmup < until <= 1"),
        ({"start": 1, "end": 2, "shape": "step"}, "'linear', 'cosine', 'hold' or 'warm-hold-cool'"),
        ({"start": 1, "end": math.nan}, "finite number"),
        ({"start": 1}, "Field required"),
        ({"start": 1, "end": 2, "warm": 0.1}, "Extra inputs are not permitted"),
        (True, "valid dictionary"),
        ("0.5", "valid dictionary"),
    ],
)
def test_refused(given: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Schedule.model_validate(given)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Momentum, 1.5, "must be at most 1, got 1.5"),
        (Momentum, {"start": 0.9, "end": -0.1}, "must be at least 0, got -0.1"),
        (Temperature, 0, "must be greater than 0, got 0"),
        (Temperature, {"start": 0.04, "end": 0}, "must be greater than 0, got 0"),
        (Rate, {"start": -1e-3, "end": 0}, "must be at least 0, got -0.001"),
    ],
)
def test_bounds_hold_for_both_ends(kind: object, given: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(kind).validate_python(given)


SHAPES = [
    {"start": 0.04, "end": 0.07, "warmup": 0.1},
    {"start": 0.04, "end": 0.07, "warmup": 0.1, "until": 0.3, "shape": "cosine"},
    {"start": 0.5, "end": 0.5, "warmup": 1e-6},
]


@pytest.mark.parametrize("given", SHAPES)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Temperature, "must be greater than 0, and a warmup begins at 0: leave warmup out"),
        (Momentum, "may not rise from 0, and a warmup begins at 0: leave warmup out"),
        (
            Annotated[Schedule, Within(at_least=1e-3)],
            "must be at least 0.001, and a warmup begins at 0: leave warmup out",
        ),
    ],
    ids=["temperature", "momentum", "another"],
)
def test_bounds_hold_over_a_warmup_too(kind: Any, message: str, given: dict[str, Any]) -> None:
    """Regression: a temperature of 0 at step 0 made NaN of everything."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(given)
    (error,) = caught.value.errors()
    assert message in error["msg"]
    assert "\n" not in error["msg"]
    assert TypeAdapter(kind).validate_python({**given, "warmup": 0})
    assert TypeAdapter(Rate).validate_python(given)(0.0) == 0


@pytest.mark.parametrize("given", [{"start": 0.9, "end": 1.0, "shape": "cosine"}, *SHAPES])
@pytest.mark.parametrize("kind", [Momentum, Temperature, Rate])
def test_whatever_is_accepted_stays_within_its_bounds(kind: Any, given: dict[str, Any]) -> None:
    try:
        schedule = TypeAdapter(kind).validate_python(given)
    except ValidationError:
        return
    values = [schedule(i / 1000) for i in range(1001)]
    assert all(0 <= value <= 1 for value in values)
    assert min(values) > 0 or kind is Rate


@pytest.mark.parametrize(("steps", "warm"), [(40, 8), (100, 10), (7, 2)])
def test_the_warmup_of_dino_is_one_step_ahead(steps: int, warm: int) -> None:
    """cosine_scheduler of DINO's utils.py, in its own terms, beside the same schedule here."""
    base, final = 0.5, 1e-3
    rising = numpy.linspace(0, base, warm)
    x = numpy.arange(steps - warm)
    falling = final + 0.5 * (base - final) * (1 + numpy.cos(math.pi * x / len(x)))
    schedule = Schedule(start=base, end=final, shape="cosine", warmup=warm / steps)
    ours = [schedule(step / steps) for step in range(steps)]
    assert ours[warm:] == pytest.approx(falling.tolist(), rel=1e-12)
    assert [value * warm / (warm - 1) for value in ours[:warm]] == pytest.approx(rising.tolist(), rel=1e-12)


@pytest.mark.parametrize(("kind", "number"), [(Momentum, 0), (Momentum, 1), (Temperature, 1e-3), (Rate, 0)])
def test_bounds_themselves(kind: object, number: float) -> None:
    assert TypeAdapter(kind).validate_python(number)(0.5) == number


def test_schema_offers_a_number_or_a_ramp() -> None:
    schema = TypeAdapter(Momentum).json_schema()
    schema = next(iter(schema.get("$defs", {"": schema}).values()))
    number, ramp = schema["anyOf"]
    assert number == {"type": "number"}
    assert set(ramp["properties"]) == {"start", "end", "shape", "warmup", "until", "cool", "units"}
