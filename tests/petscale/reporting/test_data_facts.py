"""What a run was trained and scored on: facts that are known, counted or as ranges; lengths that differ are told."""

import math

import numpy as np
import pytest

from petscale.reporting.data_facts import data_table, length_doubt, roles_of
from storage.ingest import CasePlan, ingest
from storage.reader import Cohort, open_cohort
from storage.source import SUV, ArraySource, Dose, Grid

FACTS: dict[str, dict[str, object]] = {
    "a": {"tracer": "FDG", "scanner": "Vendor One", "reference_rule": "SeriesTime", "reference_spread_percent": 2.5},
    "b": {"tracer": "FDG", "scanner": "Vendor One", "reference_rule": "SeriesTime"},
    "c": {"tracer": "", "scanner": "Vendor Two", "reference_rule": "AcquisitionTime"},
}
SLICES = {"a": 10, "b": 10, "c": 30}


def image(case: str, facts: dict[str, object]) -> ArraySource:
    grid = Grid((SLICES[case], 8, 8), np.diag([-4.0, -4.0, 6.0 if case == "c" else 5.0, 1.0]))
    return ArraySource(np.arange(np.prod(grid.shape), dtype=np.float32).reshape(grid.shape), grid, SUV, facts)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    def plan(case: str) -> CasePlan:
        low: dict[str, object] = {
            "kind": "simulated low dose",
            "config": {"drf": 20, "mode": "activity"},
            "truth": FACTS[case],
        }
        images = {"full": image(case, FACTS[case]), "low": image(case, low)}
        doses = {"low": Dose(20.0 if case != "c" else math.nan, "thinned", True)}
        return CasePlan(images, case, case, doses=doses)

    folder = tmp_path_factory.mktemp("cohort")
    plans = {case: lambda _, case=case: plan(case) for case in FACTS}
    ingest(folder, plans, strict=True)
    return open_cohort(folder)


def test_facts_are_counted_and_ranged_for_every_role(cohort: Cohort) -> None:
    roles = roles_of(cohort, {"train": ["a", "b"], "validation": []}, ["c"])
    headings, lines = data_table(cohort, roles, "full", "low")
    assert headings == ["trained on", "scored on"]
    assert dict(lines) == {
        "cases": ["2 of 2 patient(s)", "1 of 1 patient(s)"],
        "tracer": ["FDG", "unknown"],
        "scanner": ["Vendor One", "Vendor Two"],
        "voxel size (z, y, x) [mm]": ["5.00 x 4.00 x 4.00", "6.00 x 4.00 x 4.00"],
        "length along the body [mm]": ["50", "180"],
        "dose of low": ["DRF 20, thinned", "DRF unknown, thinned"],
        "rule of the SUV reference time": ["SeriesTime", "AcquisitionTime"],
        "another rule would change SUV by at most [%]": ["2.5", "–"],
    }
    _, together = data_table(cohort, {"all": ["a", "b", "c"]}, "full", "low")
    assert dict(together)["scanner"] == ["Vendor One (2), Vendor Two (1)"]
    assert dict(together)["voxel size (z, y, x) [mm]"] == ["5.00 to 6.00 x 4.00 x 4.00"]


def test_a_role_whose_cases_are_elsewhere_is_left_out_and_what_nobody_knows_has_no_line(cohort: Cohort) -> None:
    assert roles_of(cohort, {"train": ["elsewhere"]}, ["c"]) == {"validated on": [], "scored on": ["c"]}
    headings, lines = data_table(cohort, {"scored on": ["c"]}, "full", "low")
    assert headings == ["scored on"]
    assert "tracer" not in dict(lines)


def test_lengths_that_differ_by_half_are_told(cohort: Cohort) -> None:
    (told,) = length_doubt(cohort, ["a", "c"], "full")
    assert "50 to 180 mm" in told
    assert length_doubt(cohort, ["a", "b"], "full") == length_doubt(cohort, [], "full") == []
