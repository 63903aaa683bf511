"""The learning rate's factor: where it begins, peaks and ends, and what it is by the formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.schedule import lr_factor


@given(st.integers(0, 50), st.integers(1, 200), st.sampled_from(["constant", "cosine"]))
def test_it_rises_to_1_and_never_rises_after_that(warm_up_steps: int, num_steps: int, decay: str) -> None:
    factors = [lr_factor(s, num_steps, warm_up_steps=warm_up_steps, decay=decay) for s in range(num_steps)]  # type: ignore[arg-type]
    assert all(0 < factor <= 1 for factor in factors)
    first, rest = factors[:warm_up_steps], factors[warm_up_steps:]
    assert first == sorted(set(first))
    assert rest == sorted(rest, reverse=True)
    if rest:
        assert rest[0] == 1
    if decay == "constant":
        assert set(rest) <= {1}


@pytest.mark.parametrize("passed", [0.0, 0.25, 0.5, 0.9])
def test_the_cosine_is_that_of_the_print(passed: float) -> None:
    factor = lr_factor(10 + round(100 * passed), 110, warm_up_steps=10, decay="cosine")
    assert factor == pytest.approx((1 + math.cos(math.pi * passed)) / 2)


def test_it_is_0_where_the_run_ends() -> None:
    assert lr_factor(110, 110, warm_up_steps=10, decay="cosine") == pytest.approx(0)


def test_a_run_shorter_than_its_warm_up_never_reaches_the_whole_rate() -> None:
    assert [lr_factor(step, 2, warm_up_steps=4, decay="cosine") for step in range(2)] == [0.25, 0.5]
