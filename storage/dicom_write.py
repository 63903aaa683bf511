"""DICOM series out: a restored PET as a derived series of its template, a PET made of a CT, a phantom as its own.

A series is written slice by slice into a hidden folder beside the final one, which is renamed when it is whole.
"""

import datetime
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from storage.dicom import DicomSource
from storage.dicom_header import PRIVATE_CREATORS, private_text
from storage.dicom_slice import GE_SCAN_TIME, PHILIPS_BQML, PHILIPS_SUV, STORAGE, whole_header
from storage.errors import InputError
from storage.integrity import whole_folder
from storage.source import HU, SUV, Grid, ImageSource
from storage.suv import (
    DAY_S,
    NUCLIDES,
    STATED,
    SuvConversion,
    decay,
    mean_count_delay_s,
    suv_factor_decay_corrected,
)

OURS = "PETSCALE"  # third value of ImageType; the second is PRIMARY in every PET (PS3.3 C.8.9.4.1.1)
SLAB = 16  # slices held in memory
INT16_MAX = 32767
UNKNOWN_DATE, UNKNOWN_TIME = "19000101", "000000"  # of an image of a cohort, which keeps no date
NO_HEADER = "petscale: no header is kept"

# fmt: off
# What any series made of another keeps of it: patient, study, frame of reference.
KEPT_OF_STUDY = (
    "SpecificCharacterSet", "StudyDate", "SeriesDate", "StudyTime", "SeriesTime", "TimezoneOffsetFromUTC",
    "AccessionNumber", "ReferringPhysicianName", "StudyDescription", "PatientName", "PatientID", "PatientBirthDate",
    "PatientSex", "PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "BodyPartExamined", "PatientPosition", "StudyInstanceUID", "StudyID",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientOrientationCodeSequence",
    "PatientGantryRelationshipCodeSequence",
)
# What a derived PET slice keeps beside: equipment, geometry, and all that SUV depends on.
KEPT = (
    *KEPT_OF_STUDY, "AcquisitionDate", "AcquisitionTime", "Modality", "Manufacturer", "ManufacturerModelName",
    "SliceThickness", "ActualFrameDuration", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation",
    "PixelSpacing", "CorrectedImage", "RadiopharmaceuticalInformationSequence", "SeriesType", "Units", "SUVType",
    "CountsSource", "CollimatorType", "RandomsCorrectionMethod", "AttenuationCorrectionMethod", "DecayCorrection",
    "ReconstructionMethod", "ScatterCorrectionMethod", "FrameReferenceTime", "DecayFactor", "DoseCalibrationFactor",
)
# Words of PatientPosition -> the same as codes (SNOMED CT), which a PET has in its place (PS3.3 C.7.3.1.1.2, C.8.4.6).
CODED_POSITION = {
    "HF": ("102540008", "headfirst"), "FF": ("102541007", "feet-first"),
    "S": ("40199007", "supine"), "P": ("1240000", "prone"),
    "DR": ("102535000", "right lateral decubitus"), "DL": ("102536004", "left lateral decubitus"),
}
# fmt: on


def write_derived_series(
    folder: Path,
    template: DicomSource,
    read_slab: Callable[[int, int], NDArray[np.float32]],
    *,
    description: str,
    comment: str = "",
    weights: str = "",
) -> None:
    """Write a PET volume as a derived series of the one it was made from.

    Patient, study, geometry and every field that SUV depends on are the template's, overrides included; series and
    instance UIDs are new.  The values go back to the template's stored unit, as int16 with one slope per slice; to
    SUVbw if the template is an enhanced object with a reference time that a classic slice has no field for.

    Args:
        folder: to be created; it appears only when the series is whole.
        template: the PET series whose grid the volume has.
        read_slab: ``read_slab(z0, z1)`` returns (z1 - z0, y, x) in SUVbw, in the template's slice order.
        description: how the volume was made, a few words; goes into the header.
        comment: what its reader should know of it, Image Comments; empty for none.
        weights: SHA-256 of the file of weights that made it, where one did; goes there too.

    Raises:
        InputError: ``DISK_EXISTS``, ``IMG_NONFINITE``.
        ValueError: the template is not PET, or a slab has another shape.
    """
    if template.conversion is None:
        raise ValueError("a derived series needs a PET template")
    _write_result(
        folder,
        template.grid.shape,
        read_slab,
        lambda z: (_derived(template, z), 1.0 if _in_suv(template.conversion) else template.factors[z]),
        description,
        comment,
        weights,
    )


def write_synthetic_pet(
    folder: Path,
    template: DicomSource,
    grid: Grid,
    read_slab: Callable[[int, int], NDArray[np.float32]],
    *,
    description: str,
    comment: str = "",
    weights: str = "",
) -> None:
    """Write a PET that was estimated from a CT as a PET series of the CT's study, in SUVbw (Units GML, SUVType BW).

    Patient, study and frame of reference are the CT's; there is no dose, no tracer and no acquisition in it, because
    nothing was measured.

    Args:
        folder: to be created; it appears only when the series is whole.
        template: the CT series.
        grid: where the voxels lie, for instance the CT's at a coarser spacing.
        read_slab: ``read_slab(z0, z1)`` returns (z1 - z0, y, x) in SUVbw on ``grid``.
        description: how the volume was made, a few words; goes into the header.
        comment: what its reader should know of it, Image Comments; empty for none.
        weights: SHA-256 of the file of weights that made it, where one did; goes there too.

    Raises:
        InputError: ``DISK_EXISTS``, ``IMG_NONFINITE``.
        ValueError: the template is not CT, or a slab has another shape.
    """
    if template.units != HU:
        raise ValueError("a synthetic PET needs a CT template")
    _write_result(
        folder,
        grid.shape,
        read_slab,
        lambda z: (_synthetic(template, grid, z), 1.0),
        f"synthetic PET from CT: {description}",
        comment,
        weights,
    )


def _write_result(
    folder: Path,
    shape: tuple[int, int, int],
    read_slab: Callable[[int, int], NDArray[np.float32]],
    start: Callable[[int], tuple[Dataset, float]],
    description: str,
    comment: str,
    weights: str,
) -> None:
    """Write a PET series that says it was derived; ``start`` gives a slice's header and its SUV per stored unit."""
    series_uid = generate_uid()
    with whole_folder(folder) as partial:
        for z, suv in _slices(read_slab, shape, folder.name):
            ds, factor = start(z)
            ds.SOPClassUID = STORAGE["PT"]
            ds.ImageType = ["DERIVED", "PRIMARY", OURS]
            ds.ContributingEquipmentSequence = [_petscale(description, weights)]
            ds.BurnedInAnnotation = "NO"
            ds.SeriesNumber = 9000
            ds.SeriesInstanceUID, ds.SOPInstanceUID = series_uid, generate_uid()
            ds.SeriesDescription = series_description(description)
            ds.DerivationDescription = f"petscale: {description}. Research only, not for clinical use."[:1024]
            if comment:
                ds.ImageComments = comment.encode("ascii", "replace").decode()[:10240]
            ds.InstanceNumber, ds.ImageIndex, ds.NumberOfSlices = z + 1, z + 1, shape[0]
            _put_pixels(ds, suv / np.float32(factor))
            save_instance(ds, partial / f"{z + 1:05d}.dcm")


def _petscale(description: str, weights: str) -> Dataset:
    """Who changed a scanner's image, with which version and weights (PS3.3 C.12.1)."""
    purpose, ours = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = "109103", "DCM", "Modifying Equipment"
    ours.PurposeOfReferenceCodeSequence = [purpose]
    ours.Manufacturer, ours.ManufacturerModelName, ours.SoftwareVersions = "petscale", "petscale", version("petscale")
    told = f"{description}; weights SHA-256 {weights}" if weights else description
    ours.ContributionDescription = told[:1024]
    return ours


def write_series(
    folder: Path,
    source: ImageSource,
    *,
    patient_id: str = "PHANTOM",
    series_number: int = 1,
    weight_kg: float = 70.0,
    dose_mbq: float = 370.0,
    uptake_s: float = 3600.0,
    edit: Callable[[int, Dataset], None] | None = None,
) -> None:
    """Write any source as a standard series of a made-up patient: SUVbw as PT in BQML (F-18, START), HU as CT.

    Equal arguments give equal files.  Series of one ``patient_id`` share study and frame of reference.  A grid whose z
    axis runs against the slice normal (left-handed in LPS) is read back with its slices in the opposite order.

    Args:
        folder: to be created; it appears only when the series is whole.
        edit: called with the slice index and its data set before it is saved, to make a header something else.

    Raises:
        InputError: ``DISK_EXISTS``, ``IMG_NONFINITE``, ``PET_WEIGHT``, ``PET_DOSE``.
        ValueError: the source is neither SUVbw nor HU.
    """
    modality = {SUV: "PT", HU: "CT"}.get(source.units)
    if modality is None:
        raise ValueError(f"no DICOM series is written in {source.units}")
    half_life_s = NUCLIDES["F-18"][0]
    factor = suv_factor_decay_corrected(weight_kg, dose_mbq * 1e6 * decay(uptake_s, half_life_s))
    with whole_folder(folder) as partial:
        for z, values in _slices(source.read, source.grid.shape, folder.name):
            ds = _phantom_slice(source, z, modality, patient_id, series_number)
            if modality == "PT":
                _add_pet(ds, weight_kg, dose_mbq, uptake_s, half_life_s)
                ds.NumberOfSlices = source.grid.shape[0]
                _put_pixels(ds, values / np.float32(factor))
            else:
                ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
                ds.KVP, ds.RescaleType, ds.AcquisitionNumber = "120", "HU", ""
                _put_pixels(ds, values, slope=1.0)
            if edit is not None:
                edit(z, ds)
            save_instance(ds, partial / f"{z + 1:05d}.dcm")


@dataclass(frozen=True, eq=False)
class StoredSeries:
    """An image of a cohort as a DICOM series; equal arguments give equal identifiers and files.

    A cohort keeps no header, so there is no dose, tracer, date or scanner in it.  Series with one ``scan`` share study
    and frame of reference.

    Args:
        source: in SUVbw or HU.
        patient_id: a hash, or what else identifies nobody.
        name: put in place of the patient's name: that of the case.
        scan: what all images of one scan have in common, for instance the case's fingerprint.
        content: what tells the image from all others, for instance a digest; its identifiers are made of it.
        description: what the image is, a few words.

    Raises:
        ValueError: the source is neither SUVbw nor HU.
    """

    source: ImageSource
    patient_id: str
    name: str
    scan: str
    content: str
    description: str

    def __post_init__(self) -> None:
        if self.source.units not in (SUV, HU):
            raise ValueError(f"no DICOM series is written in {self.source.units}")

    def header(self, z: int) -> Dataset:
        """Return what slice ``z`` states, without its voxels."""
        pet = self.source.units == SUV
        slices, rows, columns = self.source.grid.shape
        ds = _phantom_slice(self.source, z, "PT" if pet else "CT", self.patient_id, 1)
        ds.PatientName, ds.PatientSex, ds.PatientPosition = self.name, "", ""
        ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", NO_HEADER
        for part in ("Study", "Series", "Acquisition", "Content"):  # a series must have them, and they are unknown
            setattr(ds, f"{part}Date", UNKNOWN_DATE)
            setattr(ds, f"{part}Time", UNKNOWN_TIME)
        ds.ImageType, ds.BurnedInAnnotation = ["DERIVED", "PRIMARY", OURS], "NO"
        ds.StudyInstanceUID = generate_uid(entropy_srcs=[self.scan, "study"])
        ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[self.scan, "frame of reference"])
        # Not at random: a segmentation refers to these slices, whether they were written before it or after it.
        ds.SeriesInstanceUID = generate_uid(entropy_srcs=[self.scan, self.content, "series"])
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[self.scan, self.content, f"slice {z}"])
        ds.SeriesDescription = series_description(self.description)
        ds.DerivationDescription = f"petscale: {self.description}. Research only, not for clinical use."[:1024]
        ds.Rows, ds.Columns = rows, columns
        if pet:
            _add_estimate(ds)
            ds.NumberOfSlices, ds.ImageIndex = slices, z + 1
        else:
            ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
            ds.KVP, ds.RescaleType, ds.AcquisitionNumber = "", "HU", ""
        return ds


def write_stored_series(folder: Path, series: StoredSeries) -> None:
    """Write an image of a cohort as a series: SUVbw as PT in SUV (Units GML, SUVType BW), HU as CT in whole HU.

    A grid whose z axis runs against the slice normal (left-handed in LPS) is read back with its slices in the opposite
    order.

    Args:
        folder: to be created; it appears only when the series is whole.

    Raises:
        InputError: ``DISK_EXISTS``, ``IMG_NONFINITE``.
    """
    source = series.source
    with whole_folder(folder) as partial:
        for z, values in _slices(source.read, source.grid.shape, folder.name):
            ds = series.header(z)
            _put_pixels(ds, values, slope=None if source.units == SUV else 1.0)
            save_instance(ds, partial / f"{z + 1:05d}.dcm")


def series_description(description: str) -> str:
    """Return the words of a Series Description, which hold 64 characters."""
    return f"petscale {description}"[:39] + " (not for clinical use)"


def _slices(
    read_slab: Callable[[int, int], NDArray[np.float32]], shape: tuple[int, int, int], where: str
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for z0 in range(0, shape[0], SLAB):
        z1 = min(z0 + SLAB, shape[0])
        slab = read_slab(z0, z1)
        if slab.shape != (z1 - z0, *shape[1:]):
            raise ValueError(f"a slab of shape {slab.shape} for slices {z0} to {z1} of {shape}")
        bad = slab.size - int(np.isfinite(slab).sum())
        if bad:
            raise InputError(
                "IMG_NONFINITE",
                where=where,
                found=f"{bad} voxels are NaN or Inf in slices {z0} to {z1 - 1}",
                remedy="nothing was written; find where the volume was made",
            )
        yield from enumerate(slab, start=z0)


def _derived(template: DicomSource, z: int) -> Dataset:
    """The header of the template's slice, reduced to what is kept, with the values that SUV was computed from."""
    conversion = template.conversion
    assert conversion is not None
    ds, original = _kept(template, z, KEPT)
    with disable_value_validation():
        for tag in (GE_SCAN_TIME, PHILIPS_SUV, PHILIPS_BQML):
            if tag in original and private_text(original, tag):
                ds.add_new(tag >> 16 << 16 | 0x0010, "LO", PRIVATE_CREATORS[tag >> 16])
                ds[tag] = original[tag]
    if _in_suv(conversion):
        ds.Units, ds.SUVType, ds.DecayCorrection = "GML", "BW", "ADMIN"
    if "weight_kg" in conversion.overridden:
        ds.PatientWeight = _ds(conversion.weight_kg or 0.0)
    if {"dose_mbq", "injection_time"} & set(conversion.overridden):
        if not ds.get("RadiopharmaceuticalInformationSequence"):
            ds.RadiopharmaceuticalInformationSequence = [Dataset()]
        drug = ds.RadiopharmaceuticalInformationSequence[0]
        if "dose_mbq" in conversion.overridden and conversion.dose_bq is not None:
            drug.RadionuclideTotalDose = _ds(conversion.dose_bq)
        if "injection_time" in conversion.overridden and conversion.injection_s is not None:
            days, seconds = divmod(conversion.injection_s, DAY_S)
            moment = datetime.datetime.fromordinal(int(days)) + datetime.timedelta(seconds=seconds)
            drug.RadiopharmaceuticalStartDateTime = moment.strftime("%Y%m%d%H%M%S.%f")
            drug.RadiopharmaceuticalStartTime = moment.strftime("%H%M%S.%f")
    return ds


def _in_suv(conversion: SuvConversion | None) -> bool:
    """Whether a template's reference time cannot be written into a classic slice."""
    return conversion is not None and conversion.reference is not None and conversion.reference.rule == STATED


def _kept(template: DicomSource, z: int, keywords: Sequence[str]) -> tuple[Dataset, Dataset]:
    """A slice's header reduced to ``keywords``, naming that slice as its source; and the header as it was."""
    ds = Dataset()
    with disable_value_validation():  # a scanner's own sloppy value is copied as it is
        original = whole_header(template.slices[z])
        for keyword in keywords:
            if keyword in original:
                ds[keyword] = original[keyword]
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = original.SOPClassUID, original.SOPInstanceUID
    if (frame := template.slices[z].frame) is not None:
        reference.ReferencedFrameNumber = frame + 1
    ds.SourceImageSequence = [reference]
    return ds, original


def _synthetic(template: DicomSource, grid: Grid, z: int) -> Dataset:
    """The PET header of slice ``z`` of ``grid``, within the study of the CT slice it lies in."""
    _, y, x = grid.shape
    place = np.linalg.solve(template.grid.affine, grid.affine @ [(x - 1) / 2, (y - 1) / 2, z, 1])
    ds, original = _kept(template, int(np.clip(np.rint(place[2]), 0, template.grid.shape[0] - 1)), KEPT_OF_STUDY)
    with disable_value_validation():
        for part in ("Date", "Time"):  # a PET series must have them, a CT series need not
            if not ds.get(f"Series{part}"):
                setattr(ds, f"Series{part}", original.get(f"Study{part}", ""))
    ds.Modality, ds.Manufacturer = "PT", "petscale"
    ds.AcquisitionDate = ds.AcquisitionTime = ""
    _add_estimate(ds)
    _put_place(ds, grid, z)
    return ds


def _add_estimate(ds: Dataset) -> None:
    """Add what every PET must state, for an image in SUV of no measurement: a corrected emission image, no duration."""
    ds.Units, ds.SUVType = "GML", "BW"
    ds.RadiopharmaceuticalInformationSequence = []
    ds.SeriesType, ds.CountsSource, ds.CorrectedImage = ["WHOLE BODY", "IMAGE"], "EMISSION", ["DECY", "ATTN"]
    ds.DecayCorrection, ds.DecayFactor, ds.ActualFrameDuration, ds.FrameReferenceTime = "ADMIN", "1", 0, "0"


def _put_place(ds: Dataset, grid: Grid, z: int) -> None:
    """Say where slice ``z`` of a grid lies, in LPS."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    dz, dy, dx = grid.spacing_mm
    ds.ImagePositionPatient = [_ds(v) for v in (lps @ [0, 0, z, 1])[:3]]
    ds.ImageOrientationPatient = [_ds(v) for v in (*(lps[:3, 0] / dx), *(lps[:3, 1] / dy))]
    ds.PixelSpacing, ds.SliceThickness = [_ds(dy), _ds(dx)], _ds(dz)


def _phantom_slice(source: ImageSource, z: int, modality: str, patient_id: str, series_number: int) -> Dataset:
    entropy = [patient_id, modality, str(series_number)]
    ds = Dataset()
    ds.SOPClassUID = STORAGE[modality]
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[*entropy, str(z)])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=entropy)
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[patient_id, "study"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[patient_id, "frame of reference"])
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "PHANTOM^PETSCALE", patient_id, "", "O"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20200101"
    ds.StudyTime, ds.SeriesTime, ds.AcquisitionTime, ds.ContentTime = "120000", "120000", "120000", "120000"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName, ds.Manufacturer = "", "", "", "petscale"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, series_number, z + 1
    ds.SeriesDescription = "petscale phantom"
    ds.PatientPosition, ds.PositionReferenceIndicator = "HFS", ""
    _put_place(ds, source.grid, z)
    return ds


def _add_pet(ds: Dataset, weight_kg: float, dose_mbq: float, uptake_s: float, half_life_s: float) -> None:
    """Add the PET modules: one bed whose voxels are corrected to the series time."""
    frame_s = 180.0
    mean_s = mean_count_delay_s(frame_s, half_life_s)
    injection = datetime.datetime(2020, 1, 1, 12) - datetime.timedelta(seconds=uptake_s)
    nuclide = Dataset()
    nuclide.CodeValue, nuclide.CodingSchemeDesignator, nuclide.CodeMeaning = "C-111A1", "SRT", "^18^Fluorine"
    drug = Dataset()
    drug.Radiopharmaceutical = "Fluorodeoxyglucose F^18^"
    drug.RadiopharmaceuticalStartDateTime = injection.strftime("%Y%m%d%H%M%S.%f")
    drug.RadiopharmaceuticalStartTime = injection.strftime("%H%M%S.%f")
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = _ds(dose_mbq * 1e6), _ds(half_life_s)
    drug.RadionuclideCodeSequence = [nuclide]
    ds.RadiopharmaceuticalInformationSequence = [drug]
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.PatientWeight = _ds(weight_kg)
    ds.CorrectedImage = ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "NORM"]
    ds.SeriesType, ds.Units, ds.CountsSource, ds.DecayCorrection = ["WHOLE BODY", "IMAGE"], "BQML", "EMISSION", "START"
    ds.ActualFrameDuration, ds.FrameReferenceTime = int(frame_s * 1000), _ds(mean_s * 1000)
    ds.DecayFactor = _ds(1.0 / decay(mean_s, half_life_s))
    ds.ImageIndex = ds.InstanceNumber
    ds.CollimatorType = "RING"


def _put_pixels(ds: Dataset, values: NDArray[np.float32], slope: float | None = None) -> None:
    """Store (rows, columns) as int16; the slope spans the slice's own range unless it is given."""
    if slope is None:
        slope = float(np.abs(values).max()) / INT16_MAX
        slope = float(_ds(slope)) or 1.0  # quantise with the slope as it will be read
    stored = np.clip(np.rint(values / slope), -INT16_MAX, INT16_MAX).astype("<i2")
    ds.Rows, ds.Columns = values.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope = "0", _ds(slope)
    ds.PixelData = stored.tobytes()


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return format_number_as_ds(float(value)) if math.isfinite(value) else ""


def _complete(ds: Dataset) -> None:
    """Add what every series of its kind must state and a template may not, empty where nobody knows it.

    How the patient lay a PET says by codes, and never by PatientPosition beside them (PS3.3 C.8.4.6).
    """
    if ds.Modality == "SEG":  # its segments have sides
        return
    if "Laterality" not in ds:
        ds.Laterality = ""  # of no paired body part
    if ds.Modality != "PT":
        return
    if "CollimatorType" not in ds:
        ds.CollimatorType = ""
    words = str(ds.get("PatientPosition", "")).strip()
    lay, gantry = CODED_POSITION.get(words[2:]), CODED_POSITION.get(words[:2])
    if not ds.get("PatientOrientationCodeSequence") and lay and gantry:
        recumbent = _snomed("102538003", "recumbent")
        recumbent.PatientOrientationModifierCodeSequence = [_snomed(*lay)]
        ds.PatientOrientationCodeSequence = [recumbent]
        ds.PatientGantryRelationshipCodeSequence = [_snomed(*gantry)]
    for keyword in ("PatientOrientationCodeSequence", "PatientGantryRelationshipCodeSequence"):
        if keyword not in ds:
            setattr(ds, keyword, [])
    if "PatientPosition" in ds:
        del ds.PatientPosition


def _snomed(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
    return code


def save_instance(ds: Dataset, path: Path) -> None:
    """Write one object uncompressed, with what its kind must state and it does not; durable when this returns."""
    with disable_value_validation():
        _complete(ds)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = UID(ds.SOPClassUID)
    ds.file_meta.MediaStorageSOPInstanceUID = UID(ds.SOPInstanceUID)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with path.open("wb") as stream, disable_value_validation():
        pydicom.dcmwrite(stream, ds, enforce_file_format=True)
        stream.flush()
        os.fsync(stream.fileno())
