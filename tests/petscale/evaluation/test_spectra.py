"""Spectra of a case's images: which organ, what is measured beside the full dose, means over cases."""

import json

import numpy as np
import pytest

from petscale.evaluation import spectra
from petscale.evaluation.scores import REFERENCE
from storage.source import LABEL, SUV, ArraySource, Grid
from trainers.metrics.spectra import BINS, Spectra

GRID = Grid((3, 40, 40), np.diag([-4.0, -4.0, 4.0, 1.0]))


def test_noise_is_judged_in_the_liver_where_there_is_one() -> None:
    assert spectra.noise_organ(["brain", "liver"]) == "liver"
    assert spectra.noise_organ(["brain", "kidneys"]) == "brain"
    assert spectra.noise_organ([]) == ""


@pytest.mark.parametrize("named", [{1: "liver", 2: "lesion"}, {2: "lesion", 3: "body"}])
def test_every_image_and_the_full_dose_are_measured(named: dict[int, str]) -> None:
    rng = np.random.Generator(np.random.Philox(2))
    full, low = (ArraySource(rng.random(GRID.shape, dtype=np.float32) + 1, GRID, SUV) for _ in range(2))
    marks = np.zeros(GRID.shape, np.float32)
    marks[:, 5:30, 5:30] = 1
    ones = ArraySource(np.ones(GRID.shape, np.float32), GRID, LABEL)
    labels = ArraySource(marks, GRID, LABEL)
    rows, found = spectra.measure("c", full, {"low": low}, body=ones, labels=labels, label_names=named)
    assert list(found) == [REFERENCE, "low"]
    noise = [row.image for row in rows if row.definition.metric == "noise frequency"]
    assert noise == ([REFERENCE, "low"] if "liver" in named.values() else [])
    assert [row.image for row in rows if row.definition.metric == "finest common detail"] == ["low"]


def test_curves_are_means_over_the_cases_that_have_them() -> None:
    def of(level: float, known: int) -> Spectra:
        curve = np.full(BINS, np.nan)
        curve[:known] = level
        return Spectra(curve, 10.0, {"liver": curve}, {"liver": 0.1})

    nothing = Spectra(np.full(BINS, np.nan), float("nan"), {}, {})
    told = spectra.as_json([{"low": of(1.0, 2), REFERENCE: nothing}, {"low": of(3.0, 1)}, {"other": nothing}])
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["correlation"]["low"] == [2.0, 1.0] + [None] * (BINS - 2)
    assert told["noise"] == {"liver": {"low": told["correlation"]["low"], REFERENCE: [], "other": []}}
    assert told["correlation"]["other"] == []
    assert len(told["frequency_per_mm"]) == BINS
    assert spectra.as_json([])["correlation"] == {}
