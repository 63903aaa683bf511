"""All baselines of an image: fitted on training cases alone, as sums of cases; JSON of this and earlier versions."""

import json
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
from volumes import GRID, ellipse, noisy, source

from petscale.evaluation import fitting
from petscale.evaluation.baselines import ADAPTIVE, INPUT, LINEAR, NON_LOCAL_MEANS, TOTAL_VARIATION
from petscale.evaluation.fitting import (
    Filters,
    Measured,
    Strengths,
    baseline_from_json,
    fit_filters,
    measure,
    strengths,
    suited,
)
from petscale.evaluation.from_ct import HuTable
from storage.errors import InputError
from storage.source import LABEL, ImageSource
from trainers.filter_bank import COARSE
from trainers.metrics.image import psnr_of

DEPTH = GRID.shape[0]


@cache
def images(name: str) -> tuple[ImageSource, ImageSource, ImageSource]:
    """Low dose, full dose and body of a made-up case with hot spots."""
    seed = int(name)
    z, y, x = np.indices(GRID.shape)
    spot = ((z - 10 - 5 * seed) ** 2 + (y - 12) ** 2 + (x - 10) ** 2) < 12
    truth = np.where(ellipse(), 1.0 + (x > 14) + 4 * spot, 0.0)
    rng = np.random.Generator(np.random.Philox(seed))
    low = np.clip(truth * (1 + 0.5 * rng.normal(size=truth.shape)), 0, None)
    return source(low), source(truth), source(ellipse(), LABEL)


@cache
def measured(name: str) -> Measured:
    return measure(*images(name))


@cache
def tuned(name: str) -> Mapping[str, Strengths]:
    return strengths(*images(name))


def fitted(*names: str) -> Filters:
    return fit_filters(names, measured, tuned)


def psnr(image: ImageSource, name: str) -> float:
    _, full, body = images(name)
    inside = body.read(0, DEPTH) > 0.5
    truth = full.read(0, DEPTH)[inside]
    return psnr_of(float(np.square(image.read(0, DEPTH)[inside] - truth).mean()), float(truth.max()))


def test_every_filter_stands_beside_the_input_and_finer_ones_are_better_on_the_case_they_were_fitted_on() -> None:
    choice = fitted("1")
    beside = choice.beside(images("1")[0])
    gaussian = f"Gaussian {choice.gaussian.fwhm_mm:g} mm"
    assert list(beside) == [INPUT, gaussian, LINEAR, ADAPTIVE, NON_LOCAL_MEANS, TOTAL_VARIATION]
    found = {name: psnr(image, "1") for name, image in beside.items()}
    assert found[INPUT] < found[gaussian] < found[LINEAR] < found[ADAPTIVE]
    for name in (NON_LOCAL_MEANS, TOTAL_VARIATION):
        assert found[name] > found[INPUT] + 1


def test_a_fit_is_the_same_bits_again_and_sums_cases() -> None:
    assert fitted("1", "2").to_json() == fitted("1", "2").to_json()
    assert fitted("1", "2").linear != fitted("1").linear
    np.testing.assert_allclose(fitted("1", "2").adaptive, fitted("2", "1").adaptive, rtol=1e-6, atol=1e-8)
    with pytest.raises(InputError, match="SET_EMPTY"):
        fit_filters((), measured, tuned)


def test_a_case_counts_by_one_over_its_peak_squared_whatever_its_scale() -> None:
    low, full, body = images("1")
    brighter, full_too = (source(4 * image.read(0, DEPTH)) for image in (low, full))
    ours, theirs = (one.equations[COARSE] for one in (measured("1"), measure(brighter, full_too, body)))
    # Of the linear filter; classes are of SUV.
    np.testing.assert_allclose(theirs.products.sum(0), ours.products.sum(0), rtol=1e-5)
    np.testing.assert_allclose(theirs.targets.sum(0), ours.targets.sum(0), rtol=1e-5)


def test_slow_filters_are_tuned_on_at_most_four_cases_spread_over_all() -> None:
    asked: list[str] = []

    def watched(name: str) -> Mapping[str, Strengths]:
        asked.append(name)
        return {TOTAL_VARIATION: {0.5: 30.0 + int(name), 1.0: 33.0}}

    choice = fit_filters([str(number) for number in range(10)], lambda name: measured("1"), watched)
    assert asked == ["0", "2", "5", "7"]
    (found,) = choice.strengths
    assert (found.method, found.strength, found.num_cases) == (TOTAL_VARIATION, 0.5, 4)
    assert found.psnr_db == {0.5: 33.5, 1.0: 33.0}
    assert "0.5 times the scan's own noise" in choice.rule
    assert "middle slices of 4 training case(s)" in choice.rule


def test_baselines_are_kept_as_json() -> None:
    choice = fitted("1", "2")
    again = baseline_from_json(json.loads(json.dumps(choice.to_json(), sort_keys=True)))  # as files are written
    assert again == choice
    assert [image.provenance for image in again.beside(images("3")[0]).values()] == [
        image.provenance for image in choice.beside(images("3")[0]).values()
    ]
    rules = {str(image.provenance.get("rule", "")) for image in choice.beside(images("3")[0]).values()}
    assert sum("2 training case(s)" in rule for rule in rules) == 5


def test_what_earlier_versions_stored_gives_the_gaussian_alone() -> None:
    old = baseline_from_json({"fwhm_mm": 8.0, "psnr_db": {"6": 30.0, "8": 31.0}, "num_cases": 3})
    assert list(old.beside(images("1")[0])) == [INPUT, "Gaussian 8 mm"]
    assert old.to_json() == {"fwhm_mm": 8.0, "psnr_db": {"6": 30.0, "8": 31.0}, "num_cases": 3}


def test_bm4d_is_shown_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"method": "BM4D", "strength": 1.0, "psnr_db": {"1": 30.0}, "num_cases": 2}
    stored = {"fwhm_mm": 8.0, "psnr_db": {"8": 31.0}, "num_cases": 3, "strengths": [content]}
    low = noisy(np.ones(GRID.shape), 0.2, 1)
    for there in (True, False):
        monkeypatch.setattr(fitting, "installed", lambda method, there=there: there or method != "BM4D")
        assert ("BM4D" in baseline_from_json(stored).beside(low)) == there


def test_organs_are_left_out_where_a_case_has_none() -> None:
    table = HuTable((1.0,), 2, organs={"liver": (1.0,), "elsewhere": (1.0,)})
    assert suited(table, []).to_json() == HuTable((1.0,), 2).to_json()
    assert suited(HuTable((1.0,), 2), []) == HuTable((1.0,), 2)
