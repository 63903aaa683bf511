"""Two DICOM series of one examination: a CT with its PET; a low dose with the full dose that lent it its counts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.dicom import DicomSource, pet_header, source_of
from storage.dicom_header import text_of
from storage.dicom_series import find_volume
from storage.errors import InputError
from storage.source import HU, Grid
from storage.suv import CONTRADICTION, Frame, SuvConversion
from storage.suv import suv_conversion as convert

SAME_SCAN_S = 60.0  # resampled series begin up to 44 s from the full dose's own time (UDPET)


def check_pair(pet: DicomSource, other: DicomSource) -> None:
    """Refuse a PET and a CT or another PET that are not of one patient and one frame of reference, or do not overlap.

    Raises:
        InputError: ``PAIR_PATIENT_MISMATCH``, ``PAIR_FRAME_MISMATCH``, ``PAIR_NO_OVERLAP``.
    """
    kind = "CT" if other.units == HU else "PT"
    where = f"PT and {kind}"
    remedy = "give the CT that was taken with the PET" if kind == "CT" else "give PETs of one patient, registered"
    if pet.patient_id != other.patient_id:
        raise InputError("PAIR_PATIENT_MISMATCH", where=where, found="different patients", remedy=remedy)
    if pet.frame_of_reference != other.frame_of_reference:
        raise InputError("PAIR_FRAME_MISMATCH", where=where, found="different frames of reference", remedy=remedy)
    low, high = zip(*(_extent_mm(s.grid) for s in (pet, other)), strict=True)
    if np.any(np.maximum(*low) >= np.minimum(*high)):
        raise InputError("PAIR_NO_OVERLAP", where=where, found="no common volume", remedy=remedy)


def _extent_mm(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    z, y, x = (n - 1 for n in grid.shape)
    corners = np.array([(i, j, k, 1) for i in (0, x) for j in (0, y) for k in (0, z)]) @ grid.affine[:3].T
    return corners.min(axis=0), corners.max(axis=0)


def open_thinned(path: Path, full: DicomSource, *, choice: str = "") -> DicomSource:
    """Open a PET that was reconstructed from a part of the counts of ``full``, on one SUV scale with it.

    The events of one scan were resampled, so one dose was given, at one time, to one patient: the factor from Bq/mL to
    SUVbw is that of ``full``.  What the low dose's own header says of weight, dose and times is compared, not used:
    exports scale the dose, or shift a series' time to the middle of the resampled window.  Values that are no activity
    (GML, CM2ML, Philips counts) are scaled series by series, each by its own factor.

    Args:
        path: a folder, or one file.
        full: the full dose's series.
        choice: as for ``open_series``.

    Raises:
        InputError: those of ``open_series`` about files and geometry; ``PAIR_PATIENT_MISMATCH``;
            ``PAIR_KIND_MISMATCH``; ``PAIR_NOT_ONE_SCAN`` where its acquisition lies outside that of ``full``.
    """
    path = Path(path)
    volume = find_volume(path, "PT", None, choice)
    pet, frames = pet_header(volume.slices)
    assert full.conversion is not None, "a PET"
    if text_of(volume.slices[0].header, "PatientID") != full.patient_id:
        raise InputError(
            "PAIR_PATIENT_MISMATCH",
            where=f"{path.name} and the full dose",
            found="different patients",
            remedy="give low doses of the full dose's own scan",
        )
    whole, whole_frames = pet_header(full.slices)
    for name, ours, theirs in (
        ("(0054,1001) Units", pet.units, whole.units),
        ("(0054,1102) DecayCorrection", pet.decay_correction, whole.decay_correction),
    ):
        if ours != theirs:
            raise InputError(
                "PAIR_KIND_MISMATCH",
                where=f"{path.name}, {name}",
                found="not that of the full dose",
                remedy="export both from one reconstruction, or say that they are two scans (--relation separate)",
            )
    _check_one_scan(frames, whole_frames, path.name)
    if pet.units != "BQML":
        return source_of(volume, "PT", convert(pet, frames))
    if len(set(full.factors)) > 1 and len(full.factors) != len(volume.slices):
        raise InputError(
            "PAIR_GRID_MISMATCH",
            where=path.name,
            found=f"{len(volume.slices)} slices, the full dose has {len(full.factors)}, each with a factor of its own",
            remedy="export both from one reconstruction",
        )
    factors = full.factors if len(set(full.factors)) > 1 else full.factors[:1] * len(volume.slices)
    facts: dict[str, object] = {"suv_factor": "full dose"}
    try:
        own: SuvConversion | None = convert(pet, frames)
    except InputError:
        own = None
    notes: tuple[str, ...] = ("own_suv_factor_unusable",)
    if own is not None:
        apart = max(abs(mine / used - 1.0) for mine, used in zip(own.factors, factors, strict=True))
        facts["own_suv_factor_differs_percent"] = round(100.0 * apart, 3)
        notes = ("own_suv_factor_differs_above_1_percent",) * (apart > CONTRADICTION)
    conversion = replace(full.conversion, factors=factors, notes=notes)
    return source_of(volume, "PT", conversion, facts)


def _check_one_scan(frames: Sequence[Frame], whole: Sequence[Frame], where: str) -> None:
    """Refuse a low dose that was acquired at another time than the scan whose counts it is said to hold a part of."""
    begun, told = ([f.acquisition_s for f in some if f.acquisition_s is not None] for some in (frames, whole))
    if not begun or not told:
        return
    last = max((f.acquisition_s or 0.0) + (f.duration_s or 0.0) for f in whole)
    if not min(told) - SAME_SCAN_S <= min(begun) <= max(last, max(told)) + SAME_SCAN_S:
        raise InputError(
            "PAIR_NOT_ONE_SCAN",
            where=where,
            found=f"acquired {abs(min(begun) - min(told)) / 60:.0f} minutes from the full dose, outside its scan",
            remedy="two scans of one patient are a pair too: say so with --relation separate",
        )
