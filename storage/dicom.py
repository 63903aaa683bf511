"""One DICOM series as an image source: PET in SUVbw, CT in HU, decoded slab by slab.

Only PET and CT Image Storage are read.  What a PET value means is in ``storage.suv``.  Patient ID and UIDs stay in
fields that no repr shows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage import dicom_words
from storage.dicom_fields import Fields
from storage.dicom_header import (
    clock_s,
    date_and_clock,
    items_of,
    moment_s,
    number_of,
    parse_number,
    private_text,
    text_of,
    without_creator,
)
from storage.dicom_series import Belonging, Volume, drugs_of, find_volume, series_error
from storage.dicom_slice import GE_SCAN_TIME, PHILIPS_BQML, PHILIPS_SUV, Modality, Slice, pixels_of
from storage.errors import of_file
from storage.source import HU, SUV, Grid
from storage.suv import Frame, Overrides, PetHeader, Stated, SuvConversion, apply_overrides, complete
from storage.suv import suv_conversion as convert


@dataclass(frozen=True, eq=False)
class DicomSource:
    """A DICOM series as an ``ImageSource``; slices are in the order of increasing position along the normal.

    ``patient_id`` and ``frame_of_reference`` are the raw values: the first only to be salted and hashed, the second
    only to be compared.  ``added`` holds the slices and factors of further frames, whose values are added to those of
    ``slices``; the factors then hold the weights of a mean (``storage.frames``).
    """

    grid: Grid
    units: str
    provenance: Mapping[str, object]
    slices: tuple[Slice, ...] = field(repr=False)
    factors: tuple[float, ...] = field(repr=False)
    conversion: SuvConversion | None = field(repr=False)
    patient_id: str = field(repr=False)
    frame_of_reference: str = field(repr=False)
    added: tuple[tuple[tuple[Slice, ...], tuple[float, ...]], ...] = field(default=(), repr=False)

    @property
    def belonging(self) -> Belonging:
        """Whom a series must be of to belong to this one."""
        return Belonging(self.patient_id, self.frame_of_reference)

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1`` as (z, y, x) in SUVbw or HU.

        Raises:
            InputError: ``DCM_PIXELS_SHORT``, ``DCM_DECODE_FAILED``, ``IMG_NO_FILE``.
        """
        slab = np.empty((z1 - z0, *self.grid.shape[1:]), dtype=np.float32)
        for out, s, factor in zip(slab, self.slices[z0:z1], self.factors[z0:z1], strict=True):
            np.multiply(pixels_of(s), np.float32(s.slope * factor), out=out, dtype=np.float32, casting="unsafe")
            if s.intercept:
                out += np.float32(s.intercept * factor)
        for slices, factors in self.added:
            for out, s, factor in zip(slab, slices[z0:z1], factors[z0:z1], strict=True):  # a PET slice has intercept 0
                out += np.multiply(pixels_of(s), np.float32(s.slope * factor), dtype=np.float32, casting="unsafe")
        return slab


def open_series(
    path: Path,
    *,
    modality: Modality,
    overrides: Overrides | None = None,
    stated: Stated | None = None,
    of: DicomSource | None = None,
    choice: str = "",
) -> DicomSource:
    """Open the one series of ``modality`` below ``path``: PT in SUVbw, CT in HU.

    Of several, those are passed by that cannot be meant while others can: a single slice; fused images, projections and
    reformats; of another patient or frame of reference than ``of``; a PET that is not attenuation-corrected; what was
    derived (``SECONDARY``, or by petscale) beside what was acquired.  Where more than one is left, none is chosen.

    Args:
        path: a folder, or one file.
        overrides: a PET weight, dose or injection time that stands instead of the header's; recorded in provenance.
        stated: what a table states, for what the header lacks.
        of: the PET that a CT belongs to.
        choice: which of several series is meant: its SeriesNumber, or words of its SeriesDescription.

    Returns:
        a thread-safe source whose affine is the series' own, LPS turned to RAS; nothing is resampled.

    Raises:
        InputError: every code of ``find_series``, every code of ``storage.suv.suv_conversion``, and
            ``SER_AMBIGUOUS``, ``SER_NOT_CHOSEN``, ``SER_INCONSISTENT_UID``, ``SER_INCONSISTENT_HEADER``,
            ``SER_MIXED_SHAPE``, ``SER_MIXED_ORIENTATION``, ``SER_DUPLICATE_SLICE``, ``SER_DYNAMIC``,
            ``SER_PARTIAL_VOLUME``, ``SER_TILT``, ``SER_NONUNIFORM``, ``SER_MISSING_SLICE``, ``IMG_TOO_SMALL``,
            ``TAB_CONTRADICTS``.
    """
    volume = find_volume(Path(path), modality, of.belonging if of else None, choice)
    conversion = None
    if modality == "PT":
        pet, frames = pet_header(volume.slices)
        with of_file(Path(path).name):
            pet = complete(apply_overrides(pet, overrides or Overrides()), stated or Stated())
            conversion = convert(pet, frames)
    return source_of(volume, modality, conversion)


def source_of(
    volume: Volume, modality: Modality, conversion: SuvConversion | None, more: Mapping[str, object] | None = None
) -> DicomSource:
    """Make the source of a volume.

    Args:
        conversion: of a PET, None for a CT.
        more: facts for the provenance.
    """
    first = volume.slices[0].header
    facts: dict[str, object] = {"format": "dicom", "modality": modality, "slices": len(volume.slices)}
    notes = volume.notes
    if conversion is not None:
        notes += conversion.notes
        stored = {"stored_units": text_of(first, "Units"), "decay_correction": text_of(first, "DecayCorrection")}
        facts |= {**stored, **conversion.provenance()}
        drugs = drugs_of(first)
        if drugs and (tracer := dicom_words.tracer(text_of(drugs[0], "Radiopharmaceutical"))):
            facts["tracer"] = tracer
    if scanner := dicom_words.scanner(text_of(first, "Manufacturer"), text_of(first, "ManufacturerModelName")):
        facts["scanner"] = scanner
    if volume.skipped:
        facts["files_skipped"] = volume.skipped
    facts |= more or {}
    facts["notes"] = list(notes)
    return DicomSource(
        grid=volume.grid,
        units=SUV if conversion else HU,
        provenance=facts,
        slices=volume.slices,
        factors=conversion.factors if conversion else (1.0,) * len(volume.slices),
        conversion=conversion,
        patient_id=text_of(first, "PatientID"),
        frame_of_reference=text_of(first, "FrameOfReferenceUID"),
    )


# -- PET fields -------------------------------------------------------------------------------------------------------


def pet_header(slices: Sequence[Slice]) -> tuple[PetHeader, list[Frame]]:
    """Translate the headers to plain numbers on one clock, in seconds."""
    s = slices[0]
    ds, file = s.header, s.file
    zone = text_of(ds, "TimezoneOffsetFromUTC")
    series_date = text_of(ds, "SeriesDate")
    drugs = drugs_of(ds)
    if len(drugs) > 1:
        raise series_error("PET_DOSE", file.name, f"{len(drugs)} radiopharmaceuticals", "export a one-tracer series")
    drug = drugs[0] if drugs else Fields()
    injected = text_of(drug, "RadiopharmaceuticalStartDateTime")
    philips = parse_number(private_text(ds, PHILIPS_SUV), file, "(7053,1000)")
    philips_bqml = parse_number(private_text(ds, PHILIPS_BQML), file, "(7053,1009)")
    codes = items_of(drug, "RadionuclideCodeSequence")
    header = PetHeader(
        units=text_of(ds, "Units"),
        suv_type=text_of(ds, "SUVType"),
        decay_correction=text_of(ds, "DecayCorrection"),
        corrected=frozenset(part.strip() for part in text_of(ds, "CorrectedImage").split("\\")),
        weight_kg=number_of(ds, "PatientWeight", file),
        height_m=number_of(ds, "PatientSize", file),
        sex=text_of(ds, "PatientSex"),
        dose_bq=number_of(drug, "RadionuclideTotalDose", file),
        half_life_s=number_of(drug, "RadionuclideHalfLife", file),
        nuclide_code=text_of(codes[0], "CodeValue") if codes else "",
        nuclide_meaning=text_of(codes[0], "CodeMeaning") if codes else "",
        tracer=dicom_words.tracer(text_of(drug, "Radiopharmaceutical")),
        injection_s=moment_s(injected, zone, file),
        injection_zone=bool(re.search(r"[+-]\d{4}$", injected)) and not zone,
        injection_clock_s=clock_s(text_of(drug, "RadiopharmaceuticalStartTime"), file),
        series_s=date_and_clock(series_date, text_of(ds, "SeriesTime"), file),
        private_s=moment_s(private_text(ds, GE_SCAN_TIME), zone, file),
        # A classic slice has no such field: where a scanner added it, nothing says what it means.
        decay_corrected_to_s=None if s.frame is None else moment_s(text_of(ds, "DecayCorrectionDateTime"), zone, file),
        counts_to_suv=philips,
        counts_to_bqml=philips_bqml,
        series_type=text_of(ds, "SeriesType").split("\\")[0],
        doubts=("philips_factor_without_creator",)
        * bool(text_of(ds, "Units") == "CNTS" and (philips or philips_bqml) and without_creator(ds, 0x7053)),
    )
    frames = [
        Frame(
            acquisition_s=date_and_clock(
                text_of(s.header, "AcquisitionDate") or series_date, text_of(s.header, "AcquisitionTime"), s.file
            ),
            duration_s=max(_milliseconds(s, "ActualFrameDuration") or 0.0, 0.0) or None,
            reference_s=_milliseconds(s, "FrameReferenceTime"),
            decay_factor=number_of(s.header, "DecayFactor", s.file),
        )
        for s in slices
    ]
    return header, frames


def _milliseconds(s: Slice, keyword: str) -> float | None:
    value = number_of(s.header, keyword, s.file)
    return None if value is None else value / 1000.0
