"""Gains paired by case."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from storage.integrity import json_safe
from trainers.metrics.statistics import FEWEST_FOR_A_TEST, Gain, agreement, mean_interval, mean_sd, paired_gain

SCORES = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-50, 50), max_size=8)


@settings(deadline=None)
@given(SCORES, SCORES, st.sampled_from([1, -1]))
def test_a_gain_is_over_the_cases_both_have_and_changes_its_sign_with_the_sides(
    ours: dict[str, float], theirs: dict[str, float], sign: int
) -> None:
    gain, back = paired_gain(ours, theirs, over="b", sign=sign), paired_gain(theirs, ours, over="a", sign=sign)
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        assert gain is back is None
        return
    assert gain is not None
    assert back is not None
    assert gain.num_cases == back.num_cases == len(shared)
    assert gain.mean == pytest.approx(-back.mean)
    assert gain.mean == pytest.approx(np.mean([sign * (ours[case] - theirs[case]) for case in shared]))
    assert gain.num_better + back.num_better + sum(ours[case] == theirs[case] for case in shared) == len(shared)
    assert (gain.p_value is None) == (len(shared) < FEWEST_FOR_A_TEST or all(ours[c] == theirs[c] for c in shared))


def test_the_test_is_wilcoxons_and_needs_six_cases_that_differ_and_are_finite() -> None:
    gains = {f"c{index}": float(value) for index, value in enumerate((0.5, 1.0, 0.8, -0.2, 1.4, 0.9))}
    zero = dict.fromkeys(gains, 0.0)
    gain = paired_gain(gains, zero, over="x")
    assert gain is not None
    assert gain.p_value == pytest.approx(wilcoxon(list(gains.values())).pvalue)
    assert paired_gain(zero, zero, over="x") == Gain("x", 0.0, 0.0, 0, 6, None)
    infinite = paired_gain({**gains, "c0": math.inf}, zero, over="x")
    assert infinite is not None
    assert infinite.mean == math.inf
    assert math.isnan(infinite.sd)
    assert infinite.p_value is None
    assert paired_gain({}, zero, over="x") is None


def test_one_value_has_no_spread() -> None:
    mean, sd = mean_sd(np.array([2.0]))
    assert mean == 2.0
    assert math.isnan(sd)
    assert mean_sd(np.array([1.0, 3.0])) == pytest.approx((2.0, math.sqrt(2)))


def test_json_gets_null_for_what_is_not_finite() -> None:
    content = {"a": (1.0, math.inf), "b": [math.nan, np.float64(-np.inf)], "c": "inf", "d": {"e": 3}}
    assert json_safe(content) == {"a": [1.0, None], "b": [None, None], "c": "inf", "d": {"e": 3}}


def test_limits_of_agreement_with_one_lesion_of_each_patient_are_the_classical_ones() -> None:
    values = np.array([1.0, -2.0, 4.0, 0.5])
    told = agreement([values[i : i + 1] for i in range(4)])
    assert told.mean == pytest.approx(values.mean())
    assert told.interval == pytest.approx(mean_interval(values))
    half = 1.96 * values.std(ddof=1)
    assert told.limits == pytest.approx((values.mean() - half, values.mean() + half))
    assert (told.num, told.num_patients) == (4, 4)


def test_limits_of_agreement_hold_the_variance_between_and_within_patients() -> None:
    # Two patients with two lesions each, by hand: within ((1 + 1) + (4 + 4)) / 2 = 5 over 2 degrees of freedom;
    # means 1 and 8 about 4.5: between 2 * 24.5 / 1 = 49; variance 5 + (49 - 5) / 2 = 27.
    told = agreement([np.array([0.0, 2.0]), np.array([6.0, 10.0])])
    assert told.mean == 4.5
    assert told.limits == pytest.approx((4.5 - 1.96 * 27**0.5, 4.5 + 1.96 * 27**0.5))
    # Patients that differ by less than their lesions do: nothing is added for them.
    alike = agreement([np.array([0.0, 2.0]), np.array([2.0, 0.0])])
    assert alike.limits == pytest.approx((1 - 1.96 * 2**0.5, 1 + 1.96 * 2**0.5))


def test_agreement_of_few_lesions_says_what_it_can() -> None:
    one = agreement([np.array([3.0])])
    assert one.mean == 3.0
    assert all(math.isnan(value) for value in (*one.interval, *one.limits))
    patient = agreement([np.array([0.0, 2.0])])
    assert patient.limits == pytest.approx((1 - 1.96 * 2**0.5, 1 + 1.96 * 2**0.5))
    assert math.isnan(patient.interval[0])
