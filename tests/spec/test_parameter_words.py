"""Types, defaults and meanings as people read them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

from dino_lab.registry import Params
from dino_lab.schedule import Momentum, Rate, Schedule, Temperature
from dino_lab.spec.model import Spec
from dino_lab.spec.parameter_words import MARKDOWN, default_in_words, hover_text, rows, type_in_words


class Options(BaseModel):
    """Some options."""

    depth: int = Field(3, ge=1, description="layers")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


def field(annotation: Any, *default: Any) -> Any:
    return create_model("M", x=(annotation, *(default or (...,)))).model_fields["x"]


TYPES = [
    (int, "whole number", "whole number"),
    (Annotated[int, Field(gt=0, le=2**32)], "whole number > 0 and <= 4294967296", None),
    (Annotated[int, Field(gt=0, multiple_of=8)], "whole number > 0 and a multiple of 8", None),
    (Annotated[float, Field(ge=-1.5, lt=1)], "number >= -1.5 and < 1", None),
    (Temperature, "number or schedule > 0", "[Schedule](#schedule) > 0"),
    (
        Momentum | None,
        "number or schedule >= 0 and <= 1 or null",
        "[Schedule](#schedule) >= 0 and <= 1 or null",
    ),
    (Annotated[int, Field(gt=0)] | None, "whole number > 0 or null", None),
    (Annotated[int | None, Field(gt=0)], "whole number > 0 or null", None),
    (Literal["a", "b", "c"] | None, "a, b, c or null", "`a`, `b`, `c` or null"),
    (bool, "true or false", "`true` or `false`"),
    (bool | Literal["paired"], "true, false or paired", "`true`, `false` or `paired`"),
    (Colour, "red or blue", "`red` or `blue`"),
    (tuple[float, float], "list of 2: number", None),
    (tuple[Annotated[int, Field(ge=1)], ...], "list of: whole number >= 1", None),
    (Annotated[tuple[int, ...], Field(min_length=1)], "list of at least 1: whole number", None),
    (Annotated[list[str], Field(min_length=2, max_length=3)], "list of at least 2 and at most 3: text", None),
    (Annotated[str, Field(max_length=20)], "text of at most 20 characters", None),
    (
        Annotated[str, Field(max_length=9, pattern="a.")],
        "text of at most 9 characters and like a.",
        "text of at most 9 characters and like `a.`",
    ),
    (Annotated[str, Field(pattern="a|b")], "text like a|b", "text like `a|b`"),
    (list[str], "list of: text", None),
    (dict[str, int], "mapping", None),
    (Path | None, "path or null", None),
    (Any, "any value", None),
    (Options | None, "mapping Options or null", "[Options](#options) or null"),
    (Params, "component", None),
]


@pytest.mark.parametrize(("annotation", "words", "markdown"), TYPES, ids=[words for _, words, _ in TYPES])
def test_types_are_written_as_people_do(annotation: Any, words: str, markdown: str | None) -> None:
    its = field(annotation)
    assert type_in_words(its.annotation, its.metadata) == words
    assert type_in_words(its.annotation, its.metadata, MARKDOWN) == (markdown or words)
    assert default_in_words(its) == "required"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Schedule(start=0.1, end=0.1), "0.1"),
        (Schedule(start=1.0, end=0.0, warmup=0.1), "{start: 1, end: 0, warmup: 0.1}"),
        (True, "true"),
        (None, "null"),
        ((1, 0.5), "[1, 0.5]"),
        (Options(), "its defaults"),
        (Options(depth=4), "{depth: 4}"),
    ],
)
def test_defaults_are_written_as_yaml(value: Any, words: str) -> None:
    its = field(Rate | bool | None | tuple[float, ...] | Options, value)
    assert default_in_words(its) == words
    assert default_in_words(its, MARKDOWN) == (words if words == "its defaults" else f"`{words}`")


def test_the_rows_of_a_component_and_of_a_spec() -> None:
    component = create_model(
        "P", __base__=Params, name=(Literal["p"], ...), k=(int, Field(3, gt=0, description="neighbours"))
    )
    assert rows(component) == [("k", "whole number > 0", "3", "neighbours")]
    assert rows(Spec)[0].key == "name"


@pytest.mark.parametrize(
    ("default", "description", "text"),
    [
        (3, "neighbours", "neighbours (whole number > 0; default 3)"),
        (..., "neighbours", "neighbours (whole number > 0)"),
        (3, None, "whole number > 0; default 3"),
    ],
)
def test_an_editor_shows_meaning_type_and_default(default: Any, description: str | None, text: str) -> None:
    its = field(Annotated[int, Field(gt=0, description=description)], default)
    assert hover_text(its) == text
    mapping = field(Annotated[Options, Field(description="of the net")], Options())
    assert hover_text(mapping) == "of the net (mapping Options)"
