"""Means with intervals, pairs tested over patients, Holm's correction over the pairs of a score."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, wilcoxon

from petscale.evaluation.paired import Compared, compare_images
from petscale.evaluation.scores import Evaluation
from trainers.metrics.clinical import BIASES
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR, PRESETS
from trainers.metrics.statistics import holm, mean_interval

MAE = PRESETS["native"][6]
RNG = np.random.Generator(np.random.Philox(3))
NOISE = RNG.normal(0, 0.5, (3, 8))


def compared(values: dict[str, list[float]], rule: object = BODY_PSNR, **more: object) -> Compared:
    rows = [Score(f"p{n}", name, "body", "body", rule, v) for name, held in values.items() for n, v in enumerate(held)]  # type: ignore[arg-type]
    if rule is not BODY_PSNR:
        rows += [Score(row.case, row.image, "body", "body", BODY_PSNR, 30.0) for row in rows]
    cases = tuple(f"p{n}" for n in range(max(map(len, values.values()))))
    return compare_images(Evaluation(tuple(rows), tuple(values), cases), **more)  # type: ignore[arg-type]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_interval_holds_what_a_t_test_does_not_refuse() -> None:
    values = NOISE[0] + 2
    low, high = mean_interval(values)
    assert ttest_1samp(values, low).pvalue == pytest.approx(0.05)
    assert ttest_1samp(values, high).pvalue == pytest.approx(0.05)
    assert all(math.isnan(end) for end in mean_interval(values[:1]))


def test_pairs_are_tested_over_patients_and_corrected_together() -> None:
    values = {name: list(30 + gain + NOISE[n]) for n, (name, gain) in enumerate((("a", 0), ("b", 1), ("c", 3)))}
    found = compared(values)
    assert [(one.candidate, one.gain.over) for one in found.tests] == [("a", "b"), ("a", "c"), ("b", "c")]
    plain = [wilcoxon(np.subtract(values[a], values[b])).pvalue for a, b in (("a", "b"), ("a", "c"), ("b", "c"))]
    assert [one.gain.p_value for one in found.tests] == pytest.approx(plain)
    assert [one.p_holm for one in found.tests] == pytest.approx(holm(plain))
    assert found.verdict().startswith("highest mean PSNR inside the body: c")
    assert compared(values, pairs=[("c", "a")]).tests[0].p_holm == pytest.approx(plain[1])


def test_only_patients_that_all_have_count_and_few_are_not_tested() -> None:
    found = compared({"a": [30.0, 31.0, 32.0], "b": [30.0, math.nan, 33.0], "c": [29.0, 29.0]})
    assert found.scores.cases == ("p0",)
    assert {one.num_patients for one in found.means} == {1}
    assert found.remarks() == ["one patient: no interval and no test"]
    assert found.verdict().endswith("untested")
    assert (
        compared({"a": [30.0, 31.0], "b": [30.0, 33.0]}).remarks()[0].startswith("2 patients: no test, which needs 6")
    )


def test_less_error_and_a_smaller_bias_are_gains_and_a_copy_is_no_crash() -> None:
    (less,) = compared({"a": [0.1] * 6, "b": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}, MAE).tests[-1:]
    assert (less.definition, less.gain.num_better) == (MAE, 6)
    rows = [
        Score(f"p{n}", name, region, kind, rule, value)
        for name, bias in (("a", -4.0), ("b", 9.0))
        for n in range(6)
        for region, kind, rule, value in (
            ("body", "body", BODY_PSNR, math.inf if name == "a" else 30.0),
            ("lesion 1", "lesion", BIASES["SUVmax"], bias - n),
        )
    ]
    found = compare_images(Evaluation(tuple(rows), ("a", "b"), tuple(f"p{n}" for n in range(6))))
    psnr, bias = found.tests
    assert (psnr.gain.mean, psnr.p_holm) == (math.inf, None)
    assert bias.gain.mean == pytest.approx(np.mean([(9.0 - n) - (4.0 + n) for n in range(6)]))
    content = found.json()
    assert isinstance(content["tests"], list)
    assert content["tests"][0]["gain"]["mean"] is None  # JSON has no infinity
