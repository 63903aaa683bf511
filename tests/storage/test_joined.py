"""Cohorts read as one: every case of each, under its own name where nobody else has it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from storage.errors import InputError
from storage.joined import JoinedCohort, open_cohorts
from storage.reader import Cohort, open_cohort


@pytest.fixture
def second(cohort: Path, tmp_path: Path) -> Path:
    """Two of the four cases, one of them under another name."""
    folder = tmp_path / "GE scanner"
    shutil.copytree(cohort, folder)
    for name in ("phantom-001", "phantom-002"):
        shutil.rmtree(folder / "cases" / name)
    return folder


def test_one_cohort_is_itself(cohort: Path) -> None:
    assert open_cohorts([cohort]) == Cohort(cohort)


def test_cases_of_equal_names_are_called_by_their_cohort(cohort: Path, second: Path) -> None:
    joined = open_cohorts([cohort, second])
    assert isinstance(joined, JoinedCohort)
    ours = cohort.name
    twice = ("phantom-000", "phantom-003")
    named = [f"{word}.{name}" for word in (ours, "ge-scanner") for name in twice]
    assert joined.cases == tuple(sorted([*named, "phantom-001", "phantom-002"]))
    for name in joined.cases:
        case = joined.case(name)
        assert case.name == name
        there = open_cohort(second if name.startswith("ge-") else cohort)
        original = there.case(name.rpartition(".")[2])
        assert case.folder == original.folder
        assert case.subject == original.subject
        np.testing.assert_array_equal(case.image("full").read(0, 4), original.image("full").read(0, 4))
        assert joined.case(name) is case
    assert joined.cohort_of("ge-scanner.phantom-000") == "GE scanner"
    assert joined.cohort_of("phantom-001") == cohort.name


def test_what_cannot_be_told_apart_is_refused(cohort: Path, second: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SET_NO_CASE case phantom-000"):
        open_cohorts([cohort, second]).case("phantom-000")
    (tmp_path / "more").mkdir()
    same = Path(shutil.copytree(second, tmp_path / "more" / "ge-scanner"))
    for folders in ([cohort, cohort], [second, same]):
        with pytest.raises(InputError, match="SET_CASE_COLLISION"):
            open_cohorts(folders)
    with pytest.raises(InputError, match="STORE_NONE"):
        open_cohorts([cohort, tmp_path / "absent"])
