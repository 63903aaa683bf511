"""A CT with its PET, and a low dose with its full dose: what is compared, and whose SUV factor holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import generate_uid

from storage.dicom import DicomSource, open_series
from storage.dicom_pairs import check_pair, open_thinned
from storage.dicom_write import write_series
from storage.errors import InputError
from storage.source import HU, SUV, ArraySource, Grid

SHAPE = (8, 6, 5)
AFFINE = np.array([[-4.0, 0, 0, 30], [0, -5.0, 0, 20], [0, 0, 3.0, -100], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
Edit = Callable[[int, Any], Any]


@pytest.fixture(scope="module")
def pet() -> ArraySource:
    return ArraySource(np.random.Generator(np.random.Philox(7)).random(SHAPE, dtype=np.float32), GRID, SUV)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, pet: ArraySource) -> DicomSource:
    folder = tmp_path_factory.mktemp("pairs") / "full"
    write_series(folder, pet)
    return open_series(folder, modality="PT")


def low(tmp_path: Path, pet: ArraySource, *edits: Edit, **options: Any) -> Path:
    """Write a low dose of the same voxels under an edited header."""

    def edit(z: int, ds: Any) -> None:
        for each in edits:
            each(z, ds)

    write_series(tmp_path / "low", pet, edit=edit, **options)
    return tmp_path / "low"


def each(**values: Any) -> Edit:
    return lambda z, ds: ds.update(values)


def drug(**values: Any) -> Edit:
    return lambda z, ds: ds.RadiopharmaceuticalInformationSequence[0].update(values)


def without(keyword: str) -> Edit:
    return lambda z, ds: ds.__delattr__(keyword)


def test_a_ct_is_of_its_pets_patient_frame_and_place(tmp_path: Path, full: DicomSource) -> None:
    ct = ArraySource(np.zeros(SHAPE, dtype=np.float32), GRID, HU)
    write_series(tmp_path / "ct", ct)
    check_pair(full, open_series(tmp_path / "ct", modality="CT"))
    away = Grid(SHAPE, AFFINE + np.outer([0, 0, 1000, 0], [0, 0, 0, 1]))
    cases: dict[str, dict[str, Any]] = {
        "PAIR_PATIENT_MISMATCH": {"source": ct, "patient_id": "OTHER"},
        "PAIR_FRAME_MISMATCH": {"source": ct, "edit": each(FrameOfReferenceUID=generate_uid())},
        "PAIR_NO_OVERLAP": {"source": ArraySource(ct.voxels, away, HU)},
    }
    for code, arguments in cases.items():
        write_series(tmp_path / code, **arguments)
        with pytest.raises(InputError, match=code):
            check_pair(full, open_series(tmp_path / code, modality="CT"))


@pytest.mark.parametrize(
    ("edit", "notes", "percent"),
    [
        (each(), [], 0.0),
        (each(PatientWeight="70.35"), [], 0.5),  # what rounding does is recorded and not noted
        (each(PatientWeight="140"), ["own_suv_factor_differs_above_1_percent"], 100.0),
        # Exports scale the dose with the counts: by its own header the twentieth is twenty times too bright.
        (drug(RadionuclideTotalDose="18500000"), ["own_suv_factor_differs_above_1_percent"], 1900.0),
        (without("PatientWeight"), ["own_suv_factor_unusable"], None),
        (drug(RadionuclideTotalDose="0"), ["own_suv_factor_unusable"], None),
    ],
)
def test_the_full_doses_factor_holds_whatever_a_thinned_low_doses_header_says(
    tmp_path: Path, pet: ArraySource, full: DicomSource, edit: Edit, notes: list[str], percent: float | None
) -> None:
    found = open_thinned(low(tmp_path, pet, edit), full)
    assert found.factors == full.factors
    np.testing.assert_array_equal(found.read(0, SHAPE[0]), full.read(0, SHAPE[0]))
    assert found.provenance["suv_factor"] == "full dose"
    assert list(found.provenance.get("notes", [])) == notes  # type: ignore[call-overload]
    told = found.provenance.get("own_suv_factor_differs_percent")
    assert told == (None if percent is None else pytest.approx(percent, abs=0.01))


@pytest.mark.parametrize(
    ("edit", "options", "code"),
    [
        (each(), {"patient_id": "OTHER"}, "PAIR_PATIENT_MISMATCH low and the full dose"),
        (each(DecayCorrection="ADMIN"), {}, r"PAIR_KIND_MISMATCH low, \(0054,1102\) DecayCorrection"),
        (each(Units="GML"), {}, r"PAIR_KIND_MISMATCH low, \(0054,1001\) Units"),
        (each(AcquisitionTime="165900"), {}, "PAIR_NOT_ONE_SCAN low: acquired [0-9]+ minutes"),
    ],
)
def test_what_is_no_part_of_the_full_doses_counts_is_refused(
    tmp_path: Path, pet: ArraySource, full: DicomSource, edit: Edit, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(InputError, match=code):
        open_thinned(low(tmp_path, pet, edit, **options), full)


def test_a_series_of_the_scans_own_time_shifted_to_a_window_of_it_is_one_scan(
    tmp_path: Path, pet: ArraySource, full: DicomSource
) -> None:
    later = each(SeriesTime="120044", AcquisitionTime="120044")
    write_series(tmp_path / "at", pet, edit=each(SeriesTime="120000", AcquisitionTime="120000"))
    begun = open_series(tmp_path / "at", modality="PT")
    found = open_thinned(low(tmp_path, pet, later), begun)
    assert found.factors == begun.factors


def test_values_that_are_no_activity_are_scaled_by_each_series_own_factor(tmp_path: Path, pet: ArraySource) -> None:
    """A series in SUV by lean mass or surface is converted with the weight and height that its header states."""
    gml = each(Units="GML", SUVType="BW")
    write_series(tmp_path / "gml", pet, edit=gml)
    full = open_series(tmp_path / "gml", modality="PT")
    found = open_thinned(low(tmp_path, pet, gml), full)
    assert "suv_factor" not in found.provenance
    assert set(found.factors) == {1.0}
