"""Ranges declared beside fields: what they hold, how they read, and what is refused."""

import math
from dataclasses import dataclass
from typing import Annotated

import pytest

from storage.errors import InputError
from storage.ranges import Range, check_ranges, ranges_of


@dataclass(frozen=True)
class Example:
    width: Annotated[int, Range(1)] = 4
    share: Annotated[float, Range(0, below=1)] = 0.5
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    rate: Annotated[float | None, Range(above=0)] = None
    edges: tuple[Annotated[int, Range(1)], ...] = (1, 2)
    name: str = "x"


def test_declared_ranges_are_found_wherever_they_stand() -> None:
    assert ranges_of(Example) == {
        "width": Range(1),
        "share": Range(0, below=1),
        "betas": Range(0, below=1),
        "rate": Range(above=0),
        "edges": Range(1),
    }


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (Range(1), (1, 10**9), (0, 0.5, math.nan, -math.inf), "1 or more"),
        (Range(0, below=1), (0, 0.999), (1, -1e-9, math.nan), "from 0 to below 1"),
        (Range(above=0), (1e-300, math.inf), (0, -1, math.nan), "above 0"),
        (Range(above=0, high=1), (0.1, 1), (0, 1.1), "above 0 and up to 1"),
        (Range(above=0, below=1), (0.1,), (0, 1), "above 0 and below 1"),
        (Range(2, 8), (2, 8), (1, 9), "from 2 to 8"),
        (Range(high=3), (3, -5), (3.1,), "3 or less"),
        (Range(below=3), (2.9,), (3,), "below 3"),
    ],
)
def test_a_range_holds_and_reads(
    allowed: Range, inside: tuple[float, ...], outside: tuple[float, ...], text: str
) -> None:
    assert all(allowed.holds(value) for value in inside)
    assert not any(allowed.holds(value) for value in outside)
    assert allowed.text == text


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("share", 1.0), ("betas", (0.5, 1.0)), ("rate", 0.0), ("edges", (1, 0)), ("edges", [1, 0])],
)
def test_what_lies_outside_is_refused_by_field_value_and_range(field: str, value: object) -> None:
    check_ranges(Example(), "example")
    with pytest.raises(InputError) as refused:
        check_ranges(Example(**{field: value}), "example")  # type: ignore[arg-type]
    assert refused.value.code == "CFG_RANGE"
    assert refused.value.where == f"example.{field}"
    assert repr(value) in str(refused.value)
    assert ranges_of(Example)[field].text in refused.value.remedy
