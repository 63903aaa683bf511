"""A scan against what a run was trained on: told beyond one bound, refused beyond another."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petscale.plausibility import (
    DOSE_WARNING,
    UPTAKE_LIMIT,
    UPTAKE_WARNING,
    VOXEL_LIMIT,
    VOXEL_WARNING,
    TrainedOn,
    check_scan,
    nuclide_of,
)
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.reader import Case, open_cohort
from storage.source import HU, SUV, ArraySource, Dose, Grid

SPACING_MM = (6.25, 5.0, 4.0)
RUN = TrainedOn(SUV, SPACING_MM, frozenset({20.0, 50.0}), frozenset({"F-18"}))


def stored(
    folder: Path,
    *,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    suv: float = 1.0,
    drf: float | None = None,
    provenance: Mapping[str, object] | None = None,
) -> Case:
    """A body of even uptake in the middle of a volume, with ``suv`` on average."""
    z, y, x = np.indices((32, 32, 32))
    inside = ((y - 16) ** 2 + (x - 16) ** 2 < 144) & (z > 3) & (z < 28)
    voxels = (suv * inside * (1 + 0.1 * (-1.0) ** (x + y + z))).astype(np.float32)
    grid = Grid((32, 32, 32), np.diag([*spacing_mm[::-1], 1.0]))
    doses = {"low": Dose(drf, "separate", False)} if drf else {}
    ct = np.where(inside, 40, -1000).astype(np.float32)
    images = {"low": ArraySource(voxels, grid, SUV, provenance or {}), "ct": ArraySource(ct, grid, HU)}
    ingest(folder, {"a": lambda _: CasePlan(images, "s", "f", doses=doses)}, strict=True, workers=1)
    return open_cohort(folder).case("a")


def test_a_scan_like_those_trained_on_is_silent(tmp_path: Path) -> None:
    case = stored(tmp_path, drf=20.0, provenance={"nuclide": "F-18"})
    assert check_scan(RUN, case, "low") == ()


def test_nothing_is_told_where_the_run_or_the_scan_does_not_tell(tmp_path: Path) -> None:
    case = stored(tmp_path / "full", spacing_mm=(1.0, 1.0, 1.0), drf=4.0, provenance={"nuclide": "Ga-68"})
    assert check_scan(TrainedOn(SUV), case, "low") == ()
    assert check_scan(RUN, stored(tmp_path / "plain"), "low") == ()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("smaller", [False, True])
def test_the_voxel_size_is_compared_axis_by_axis_both_ways(axis: int, smaller: bool, tmp_path: Path) -> None:
    for number, (off, outcome) in enumerate(
        [(VOXEL_WARNING - 0.01, "silent"), (VOXEL_WARNING + 0.01, "told"), (VOXEL_LIMIT + 0.01, "refused")]
    ):
        spacing = list(SPACING_MM)
        spacing[axis] *= 1 / (1 + off) if smaller else 1 + off
        case = stored(tmp_path / str(number), spacing_mm=(spacing[0], spacing[1], spacing[2]))
        if outcome == "refused":
            with pytest.raises(InputError, match=r"IMG_VOXEL_SIZE case a, image low: voxels of .* 50%"):
                check_scan(RUN, case, "low")
        else:
            told = check_scan(RUN, case, "low")
            assert bool(told) == (outcome == "told")
            assert all("the run was trained at 6.25 x 5 x 4 mm" in sentence for sentence in told)


@pytest.mark.parametrize(
    ("suv", "outcome"),
    [
        (1.0, "silent"),
        (UPTAKE_WARNING[1] * 1.1, "told"),
        (UPTAKE_WARNING[0] * 0.9, "told"),
        (UPTAKE_LIMIT[1] * 1.1, "refused"),
        (UPTAKE_LIMIT[0] * 0.9, "refused"),
        (4200.0, "refused"),
    ],
)
def test_the_mean_uptake_inside_the_body_tells_another_unit(suv: float, outcome: str, tmp_path: Path) -> None:
    case = stored(tmp_path, suv=suv)
    if outcome == "refused":
        with pytest.raises(InputError, match=r"IMG_UNITS scan\.nii: a mean of .* not in SUVbw; say what they are"):
            check_scan(RUN, case, "low", where="scan.nii")
    else:
        assert len(check_scan(RUN, case, "low")) == (outcome == "told")


def test_another_dose_and_another_nuclide_are_told(tmp_path: Path) -> None:
    for number, (drf, told) in enumerate([(20.0 * (1 + DOSE_WARNING), 0), (4.0, 1), (1.0, 1), (100.0, 1)]):
        assert len(check_scan(RUN, stored(tmp_path / str(number), drf=drf), "low")) == told
    case = stored(tmp_path / "ga", drf=4.0, provenance={"truth": {"nuclide": "Ga-68"}})
    assert check_scan(RUN, case, "low") == (
        "dose reduction factor 4, the run was trained at 20, 50",
        "nuclide Ga-68, the run was trained on F-18",
    )


def test_another_kind_of_scan_is_refused_and_a_ct_has_no_uptake_or_dose(tmp_path: Path) -> None:
    case = stored(tmp_path)
    with pytest.raises(InputError, match="SET_WRONG_UNITS case a, image ct: in HU, this run starts from SUVbw"):
        check_scan(RUN, case, "ct")
    assert check_scan(replace(RUN, units=HU), case, "ct") == ()


def test_a_scan_without_the_ct_that_the_run_sees_beside_it_is_refused(tmp_path: Path) -> None:
    case = stored(tmp_path, drf=20.0)
    assert check_scan(replace(RUN, beside=("ct",)), case, "low") == ()
    with pytest.raises(InputError, match=r"SET_NO_CT case a, image low: no other beside it.*--case"):
        check_scan(replace(RUN, beside=("ct", "other")), case, "low")


def test_a_nuclide_is_that_of_the_scan_or_of_what_it_was_simulated_from() -> None:
    assert nuclide_of({"nuclide": "F-18"}) == nuclide_of({"truth": {"nuclide": "F-18"}}) == "F-18"
    assert nuclide_of({"nuclide": None}) == nuclide_of({}) == ""
