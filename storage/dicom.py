"""One DICOM series as an image source: headers scanned once, pixels decoded slab by slab.

Only PET and CT Image Storage are read.  Nothing is repaired or guessed: a file or series that is not whole ends in an
``InputError``.  What a PET value means is in ``storage.suv``.  Patient ID and UIDs stay in fields that no repr shows.
"""

import math
import os
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.tag import Tag

from storage import dicom_words
from storage.dicom_header import (
    PRIVATE_CREATORS,
    clock_s,
    date_and_clock,
    file_error,
    has_value,
    integer_of,
    integer_text,
    items_of,
    moment_s,
    number_of,
    parse_number,
    private_text,
    tag_name,
    text_of,
    vector_of,
)
from storage.errors import InputError
from storage.source import HU, SUV, Grid
from storage.suv import Frame, Overrides, PetHeader, Stated, SuvConversion, apply_overrides, check_rescale, complete
from storage.suv import suv_conversion as convert

Modality = Literal["PT", "CT"]

STORAGE = {"PT": "1.2.840.10008.5.1.4.1.1.128", "CT": "1.2.840.10008.5.1.4.1.1.2"}
ENHANCED = {
    "PT": ("1.2.840.10008.5.1.4.1.1.130", "1.2.840.10008.5.1.4.1.1.128.1"),
    "CT": ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"),
}
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = {"1.2.840.10008.1.2": "<", "1.2.840.10008.1.2.1": "<", "1.2.840.10008.1.2.2": ">"}  # syntax -> byte order
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")  # a file so named must be DICOM; others may be anything
MAX_MATRIX = 8192
GAP_TOLERANCE = 0.025  # of the spacing, per gap: GE writes 3.19 and 3.29 mm at bed seams of 3.27 mm
SAME_PLACE_MM = 1e-2
# made to be looked at
PICTURES = {"FUSION", "FUSED", "MIP", "MINIP", "PROJECTION", "MPR", "REFORMATTED", "VRT", "SCREEN"}
GE_SCAN_TIME, PHILIPS_SUV, PHILIPS_BQML = 0x0009100D, 0x70531000, 0x70531009
# fmt: off
_SERIES_FIELDS = (
    "PatientID", "FrameOfReferenceUID", "SeriesDate", "SeriesTime", "Units", "SUVType", "DecayCorrection",
    "CorrectedImage", "PatientWeight", "PatientSize", "PatientSex", "PhotometricInterpretation",
    "TimezoneOffsetFromUTC",
)
_DRUG_FIELDS = (
    "RadionuclideTotalDose", "RadionuclideHalfLife", "RadiopharmaceuticalStartTime",
    "RadiopharmaceuticalStartDateTime",
)
_SLICE_FIELDS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "SeriesType", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "NumberOfFrames",
    "NumberOfSlices", "RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "AcquisitionDate", "AcquisitionTime", "ActualFrameDuration", "FrameReferenceTime",
    "DecayFactor", "RadiopharmaceuticalInformationSequence", "SeriesNumber", "SeriesDescription", "Manufacturer",
    "ManufacturerModelName",
)
# fmt: on
_TAGS: list[int] = [
    *(Tag(name) for name in (*_SERIES_FIELDS, *_SLICE_FIELDS)),
    *(group << 16 | 0x0010 for group in PRIVATE_CREATORS),
    *(GE_SCAN_TIME, PHILIPS_SUV, PHILIPS_BQML),
]


@dataclass(frozen=True, eq=False)
class Slice:
    """One file of a series, checked, without its pixels.

    Args:
        offset: of the pixel bytes in the file; ``None`` if they are compressed.
        shape: (rows, columns).
        dtype: of the stored pixels, byte order included.
        bits: bits stored.
        normal: unit vector of the slice plane, LPS.
    """

    file: Path
    header: Dataset = field(repr=False)
    series_uid: str = field(repr=False)
    offset: int | None
    shape: tuple[int, int]
    dtype: str
    bits: int
    slope: float
    intercept: float
    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    pixel_mm: tuple[float, float]

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.row, self.column)

    @property
    def along(self) -> float:
        """Position along the normal in mm."""
        return float(self.position @ self.normal)


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one series in a folder, unsorted; ``skipped`` counts the other files."""

    modality: Modality
    slices: tuple[Slice, ...] = field(repr=False)
    skipped: int = 0


@dataclass(frozen=True, eq=False)
class DicomSource:
    """A DICOM series as an ``ImageSource``; slices are in the order of increasing position along the normal.

    ``patient_id`` and ``frame_of_reference`` are the raw values: the first only to be salted and hashed, the second
    only to be compared.
    """

    grid: Grid
    units: str
    provenance: Mapping[str, object]
    slices: tuple[Slice, ...] = field(repr=False)
    factors: tuple[float, ...] = field(repr=False)
    conversion: SuvConversion | None = field(repr=False)
    patient_id: str = field(repr=False)
    frame_of_reference: str = field(repr=False)

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1`` as (z, y, x) in SUVbw or HU.

        Raises:
            InputError: ``DCM_PIXELS_SHORT``, ``DCM_DECODE_FAILED``, ``IMG_NO_FILE``.
        """
        slab = np.empty((z1 - z0, *self.grid.shape[1:]), dtype=np.float32)
        for out, s, factor in zip(slab, self.slices[z0:z1], self.factors[z0:z1], strict=True):
            np.multiply(_pixels(s), np.float32(s.slope * factor), out=out, dtype=np.float32, casting="unsafe")
            if s.intercept:
                out += np.float32(s.intercept * factor)
        return slab


def find_series(folder: Path, *, modality: Modality) -> tuple[Series, ...]:
    """Scan a folder (with its subfolders) or one file for series of one modality, largest first.

    Files that are not DICOM, of another modality, secondary captures and localizers are skipped and counted; links are
    not followed.  A file that claims to be a DICOM image and is damaged is an error.

    Raises:
        InputError: ``IMG_NO_FILE``, ``IMG_UNREADABLE``, ``DCM_NONE``, ``DCM_EMPTY``, ``DCM_NOT_DICOM``,
            ``DCM_NO_PREAMBLE``, ``DCM_PREAMBLE_EXEC``, ``DCM_TRUNCATED``, ``DCM_PIXELS_SHORT``, ``DCM_PIXELS_LONG``,
            ``DCM_GEOMETRY_INVALID``, ``DCM_BOMB``, ``DCM_TOO_DEEP``, ``DCM_CODEC_MISSING``, ``DCM_BAD_NUMBER``,
            ``DCM_BAD_TIME``, ``DCM_BAD_UID``, ``DCM_MULTIFRAME``, ``PET_ENHANCED_UNSUPPORTED``,
            ``CT_ENHANCED_UNSUPPORTED``, ``PET_BAD_SLOPE``, ``PET_BAD_INTERCEPT``, ``SER_NO_GEOMETRY``.
    """
    if not folder.exists():
        raise InputError("IMG_NO_FILE", where=folder.name, found="no such file or folder", remedy="check the path")
    groups: dict[str, list[Slice]] = defaultdict(list)
    skipped = 0
    for file in _files(folder):
        try:
            s = _scan(file, modality)
        except PermissionError:
            raise file_error("IMG_UNREADABLE", file, "a file that may not be read", "check its permissions") from None
        if s is None:
            skipped += 1
        else:
            groups[s.series_uid].append(s)
    for uid in [
        uid for uid, slices in groups.items() if all("LOCALIZER" in text_of(s.header, "ImageType") for s in slices)
    ]:
        skipped += len(groups.pop(uid))
    if not groups:
        raise InputError(
            "DCM_NONE",
            where=folder.name,
            found=f"no {modality} slice, {skipped} other files",
            remedy=f"give the folder of one {modality} series",
        )
    found = [Series(modality, tuple(slices), skipped) for slices in groups.values()]
    return tuple(sorted(found, key=lambda series: -len(series.slices)))


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
    derived (``SECONDARY``) beside what was acquired.  Where more than one is left, none is chosen.

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
    volume = find_volume(Path(path), modality, of, choice)
    conversion = None
    if modality == "PT":
        pet, frames = pet_header(volume.slices)
        pet = complete(apply_overrides(pet, overrides or Overrides()), stated or Stated())
        conversion = convert(pet, frames)
    return source_of(volume, modality, conversion)


@dataclass(frozen=True, eq=False)
class Volume:
    """The slices of one series, sorted, and where they lie."""

    slices: tuple[Slice, ...]
    grid: Grid
    notes: tuple[str, ...]
    skipped: int


def find_volume(path: Path, modality: Modality, of: DicomSource | None, choice: str) -> Volume:
    """Find the one series that is meant below a path and sort its slices; as ``open_series``, without values."""
    series = find_series(path, modality=modality)
    if len(series) > 2 and all(len(s.slices) == 1 for s in series):
        raise _series_error("SER_INCONSISTENT_UID", path.name, f"{len(series)} slices with {len(series)} series UIDs")
    meant = _chosen(series, choice, path.name) if choice else _meant(series, of)
    if len(meant) > 1:
        remedy = "choose one by its number (--series), or put each series in a folder of its own"
        raise _series_error("SER_AMBIGUOUS", path.name, "; ".join(series_line(s) for s in meant), remedy)
    slices = meant[0].slices
    skipped = series[0].skipped + sum(len(s.slices) for s in series if s is not meant[0])
    _check_alike(slices, path.name)
    slices, notes = _one_volume(slices, path.name)
    grid, grid_notes = _stack(slices, path.name)
    notes += grid_notes
    if len(slices) < integer_of(slices[0].header, "NumberOfSlices"):
        notes += ("fewer_slices_than_header_says",)
    return Volume(slices, grid, notes, skipped)


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
        drugs = _drugs(first)
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


def series_line(series: Series) -> str:
    """Return one line that tells a series from others: number, size, voxels, and the known words of its description.

    A description is free text, which may name a patient: only words of imaging are taken from it.
    """
    first = series.slices[0]
    number = integer_text(first.header, "SeriesNumber")
    rows, columns = first.shape
    words = dicom_words.technical(text_of(first.header, "SeriesDescription"))
    kind = f"series {number or '?'}: {series.modality} of {len(series.slices)} slices of {rows} x {columns}"
    told = f" ({' '.join(words)})" if words else ""
    return f"{kind}, {first.pixel_mm[0]:.2f} x {first.pixel_mm[1]:.2f} mm{told}"


def _words(header: Dataset, keyword: str) -> list[str]:
    return dicom_words.words(text_of(header, keyword))


def _chosen(series: Sequence[Series], choice: str, where: str) -> Sequence[Series]:
    """The series with this number, or else those whose description holds all these words."""
    wanted = dicom_words.words(choice)
    numbered = [s for s in series if integer_text(s.slices[0].header, "SeriesNumber") == choice.strip()]
    described = [s for s in series if wanted and {*wanted} <= {*_words(s.slices[0].header, "SeriesDescription")}]
    exact = [s for s in described if _words(s.slices[0].header, "SeriesDescription") == wanted]
    found = numbered or exact or described
    if not found:
        listed = "; ".join(series_line(s) for s in series)
        raise _series_error("SER_NOT_CHOSEN", where, f"no series is the one asked for: {listed}", "choose one of these")
    return found


def _meant(series: Sequence[Series], of: DicomSource | None) -> Sequence[Series]:
    """Narrow the series of one modality down, by each rule only where it leaves something."""

    def words(s: Series, keyword: str) -> set[str]:
        return {*_words(s.slices[0].header, keyword)}

    def belongs(s: Series) -> bool:
        theirs = tuple(text_of(s.slices[0].header, name) for name in ("PatientID", "FrameOfReferenceUID"))
        return of is None or theirs == (of.patient_id, of.frame_of_reference)

    rules: tuple[Callable[[Series], bool], ...] = (
        lambda s: len(s.slices) > 1,
        lambda s: not PICTURES & words(s, "ImageType"),
        belongs,
        lambda s: s.modality == "CT" or "ATTN" in words(s, "CorrectedImage"),
        lambda s: "SECONDARY" not in words(s, "ImageType"),
    )
    for rule in rules:
        series = [s for s in series if rule(s)] or series
    return series


# -- one file ---------------------------------------------------------------------------------------------------------


def _files(path: Path) -> Iterator[Path]:
    """Regular files below ``path`` in a stable order; links, devices and hidden files are passed by."""
    if path.is_file():
        yield path
        return
    for folder, subfolders, names in os.walk(path, followlinks=False):
        subfolders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file() and not file.is_symlink():
                yield file


def _scan(file: Path, modality: Modality) -> Slice | None:
    """Read one header; ``None`` if the file is no image of this modality."""
    with file.open("rb") as stream:
        head = stream.read(140)
        if head[128:132] != b"DICM":
            _refuse_foreign(file, head)
            return None
        if head[:2] in (b"MZ", b"#!") or head[:4] == b"\x7fELF":
            raise file_error("DCM_PREAMBLE_EXEC", file, "a preamble that is a program")
        try:
            meta = read_file_meta_info(file)
            syntax = str(meta.get("TransferSyntaxUID", ""))
            if syntax == DEFLATED:
                # pydicom inflates the whole file at once: 200 KB may become gigabytes.
                raise file_error("DCM_BOMB", file, "the deflated transfer syntax", "export it uncompressed")
            declared = str(meta.get("MediaStorageSOPClassUID", ""))
            if declared and declared not in (STORAGE[modality], *ENHANCED[modality]):
                return None
            stream.seek(0)
            ds = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
            sop = text_of(ds, "SOPClassUID") or declared
        except RecursionError:
            raise file_error("DCM_TOO_DEEP", file, "sequences nested too deep") from None
        except InputError:
            raise
        except Exception:  # a damaged header can end in any error of the parser
            raise file_error("DCM_TRUNCATED", file, "a header that cannot be read to its end") from None
        if not sop:
            raise file_error("DCM_TRUNCATED", file, f"no {tag_name('SOPClassUID')}")
        if declared and sop != declared:
            raise file_error("DCM_BAD_UID", file, f"{tag_name('SOPClassUID')} differs from that of the file meta")
        if sop in ENHANCED[modality]:
            code = "PET_ENHANCED_UNSUPPORTED" if modality == "PT" else "CT_ENHANCED_UNSUPPORTED"
            raise file_error(code, file, "an enhanced multi-frame object", "export classic single-frame slices")
        if sop != STORAGE[modality]:
            return None
        for name in ("Modality", "SeriesInstanceUID", "SOPInstanceUID", "Rows", "Columns", "BitsAllocated"):
            if not has_value(ds, name):
                raise file_error("DCM_TRUNCATED", file, f"no {tag_name(name)}")
        return _checked(file, ds, stream, syntax, modality)


def _refuse_foreign(file: Path, head: bytes) -> None:
    """Raise for a file that should have been DICOM: by its name, or a bare data set without preamble."""
    named = file.suffix.lower() in DICOM_SUFFIXES
    if head[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x08\x00\x16\x00"):
        raise file_error("DCM_NO_PREAMBLE", file, "a data set without the DICOM preamble")
    if named and not head:
        raise file_error("DCM_EMPTY", file, "an empty file")
    if named:
        raise file_error("DCM_NOT_DICOM", file, "no DICOM file")


def _checked(file: Path, ds: Dataset, stream: BinaryIO, syntax: str, modality: Modality) -> Slice:
    for name in ("SeriesInstanceUID", "SOPInstanceUID"):
        if not re.fullmatch(r"[0-9.]{1,64}", text_of(ds, name)):
            raise file_error("DCM_BAD_UID", file, f"{tag_name(name)} is no UID")
    rows, columns, allocated = (integer_of(ds, name) for name in ("Rows", "Columns", "BitsAllocated"))
    bits = integer_of(ds, "BitsStored", allocated)
    if (
        not (0 < rows <= MAX_MATRIX and 0 < columns <= MAX_MATRIX)
        or allocated not in (8, 16, 32)
        or not 0 < bits <= allocated
        or integer_of(ds, "HighBit", bits - 1) != bits - 1
        or integer_of(ds, "SamplesPerPixel", 1) != 1
    ):
        raise file_error("DCM_GEOMETRY_INVALID", file, f"{rows} x {columns} pixels of {bits} in {allocated} bits")
    if (number_of(ds, "NumberOfFrames", file) or 1) > 1:
        raise file_error("DCM_MULTIFRAME", file, "several frames in one file", "export one slice per file")
    kind = "i" if integer_of(ds, "PixelRepresentation", 0) else "u"
    offset = _find_pixels(stream, file, syntax, rows * columns * allocated // 8)

    slope = number_of(ds, "RescaleSlope", file) or 0.0
    intercept = number_of(ds, "RescaleIntercept", file) or 0.0
    if modality == "PT":
        check_rescale(slope, intercept, file.name)
    elif slope == 0:
        raise file_error("DCM_BAD_NUMBER", file, f"{tag_name('RescaleSlope')} is missing or 0")
    position, orientation, spacing = (
        vector_of(ds, name, n, file)
        for name, n in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    row, column = orientation[:3], orientation[3:]
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 1e-3 or spacing.min() <= 0:
        raise file_error("DCM_GEOMETRY_INVALID", file, "directions that are not orthonormal or a spacing not above 0")
    return Slice(
        file=file,
        header=ds,
        series_uid=text_of(ds, "SeriesInstanceUID"),
        offset=offset,
        shape=(rows, columns),
        dtype=f"{NATIVE.get(syntax, '<')}{kind}{allocated // 8}",
        bits=bits,
        slope=slope,
        intercept=intercept,
        position=position,
        row=row,
        column=column,
        pixel_mm=(float(spacing[0]), float(spacing[1])),
    )


def _find_pixels(stream: BinaryIO, file: Path, syntax: str, expected: int) -> int | None:
    """Return where the pixel bytes begin, the reader standing before their element; ``None`` if compressed."""
    order = NATIVE.get(syntax, "<")
    element = stream.read(12)
    if len(element) < 12 or struct.unpack(order + "HH", element[:4]) != (0x7FE0, 0x0010):
        raise file_error("DCM_TRUNCATED", file, "no (7FE0,0010) PixelData")
    if syntax not in NATIVE:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise file_error(
                "DCM_CODEC_MISSING", file, "a transfer syntax without a decoder", "install pylibjpeg's plugins"
            )
        return None
    explicit = syntax != "1.2.840.10008.1.2"
    length = int(struct.unpack(order + "L", element[8:12] if explicit else element[4:8])[0])
    offset = stream.tell() if explicit else stream.tell() - 4
    present = min(length, file.stat().st_size - offset)
    if present < expected:
        raise file_error("DCM_PIXELS_SHORT", file, f"{max(present, 0)} of {expected} bytes of pixels")
    if length > expected + 1:
        raise file_error("DCM_PIXELS_LONG", file, f"{length} bytes of pixels for {expected}")
    return offset


def _pixels(s: Slice) -> NDArray[np.generic]:
    """Decode one slice to its stored values, (rows, columns)."""
    if s.offset is None:
        try:
            pixels = pixel_array(s.file)
        except Exception:  # each decoder has errors of its own; none may pass as an image
            raise file_error("DCM_DECODE_FAILED", s.file, "compressed pixels that cannot be decoded") from None
        if pixels.shape != s.shape:
            raise file_error("DCM_DECODE_FAILED", s.file, "compressed pixels of another size")
        return pixels
    count = s.shape[0] * s.shape[1]
    try:
        stored = np.fromfile(s.file, dtype=s.dtype, count=count, offset=s.offset)
    except FileNotFoundError:
        raise file_error("IMG_NO_FILE", s.file, "a file that is gone since the scan") from None
    if stored.size < count:
        raise file_error("DCM_PIXELS_SHORT", s.file, "fewer pixels than at the scan")
    unused = 8 * stored.dtype.itemsize - s.bits
    if unused:  # bits above BitsStored may hold anything; shifting there and back also extends the sign
        stored = (stored << unused) >> unused
    return stored.reshape(s.shape)


# -- one series -------------------------------------------------------------------------------------------------------


def _check_alike(slices: Sequence[Slice], where: str) -> None:
    """Refuse slices that cannot be one volume: of other shape, direction, patient, unit, correction or dose."""
    first = slices[0]
    if any(
        (s.shape, s.dtype[1:]) != (first.shape, first.dtype[1:])
        or not np.allclose(s.pixel_mm, first.pixel_mm, rtol=1e-4)
        for s in slices
    ):
        raise _series_error("SER_MIXED_SHAPE", where, "slices of different matrix, bit depth or pixel spacing")
    if any(max(np.abs(s.row - first.row).max(), np.abs(s.column - first.column).max()) > 1e-3 for s in slices):
        raise _series_error("SER_MIXED_ORIENTATION", where, "slices of different orientation")
    for name in _SERIES_FIELDS:
        if len({text_of(s.header, name) for s in slices}) > 1:
            raise _series_error("SER_INCONSISTENT_HEADER", where, f"{tag_name(name)} differs between slices")
    if len({_radiopharmaceutical(s) for s in slices}) > 1:
        raise _series_error("SER_INCONSISTENT_HEADER", where, "(0054,0016) differs between slices")


def _one_volume(slices: Sequence[Slice], where: str) -> tuple[tuple[Slice, ...], tuple[str, ...]]:
    """Sort by position along the normal; drop exact copies; refuse several volumes in one series."""
    ordered = sorted(slices, key=lambda s: s.along)
    places: list[list[Slice]] = [[ordered[0]]]
    for s in ordered[1:]:
        if s.along - places[-1][0].along < SAME_PLACE_MM:
            places[-1].append(s)
        else:
            places.append([s])
    different = [_distinct(place) for place in places]
    counts = Counter(len(place) for place in different)
    if set(counts) == {1}:
        copies = len(ordered) - len(places)
        return tuple(place[0] for place in different), ("identical_slices_dropped",) * bool(copies)
    several = len(places) - counts[1]
    if len(counts) == 1 and len(places) > 1:
        found = f"{next(iter(counts))} frames of {len(places)} slices"
        raise _series_error("SER_DYNAMIC", where, found, "export one frame, or the static reconstruction")
    if 2 * several > len(places) or text_of(ordered[0].header, "SeriesType").startswith(("DYNAMIC", "GATED")):
        found = f"several frames, of which one has {several} of {len(places)} slices"
        raise _series_error("SER_PARTIAL_VOLUME", where, found, "export one complete frame")
    raise _series_error("SER_DUPLICATE_SLICE", where, f"{several} positions with two different slices")


def _distinct(place: Sequence[Slice]) -> list[Slice]:
    kept: list[Slice] = []
    for s in place:
        if not any(
            (s.slope, s.intercept) == (k.slope, k.intercept) and np.array_equal(_pixels(s), _pixels(k)) for k in kept
        ):
            kept.append(s)
    return kept


def _stack(slices: Sequence[Slice], where: str) -> tuple[Grid, tuple[str, ...]]:
    """The grid of sorted slices.  A gap may be off by 2.5 % and the whole by one slice: then the mean spacing holds."""
    if len(slices) < 2:
        raise InputError("IMG_TOO_SMALL", where=where, found="a single slice", remedy="give the whole series")
    first = slices[0]
    along = np.array([s.along for s in slices])
    positions = np.stack([s.position for s in slices])
    spacing = float((along[-1] - along[0]) / (len(slices) - 1))
    gaps = np.diff(along)
    usual = float(np.median(gaps))

    sideways = positions - positions[0] - np.outer(along - along[0], first.normal)
    tilt = math.degrees(math.atan2(float(np.linalg.norm(sideways[-1])), float(along[-1] - along[0])))
    if tilt > 0.1:
        raise _series_error("SER_TILT", where, f"a stack sheared by {tilt:.1f} degrees", "export it without tilt")
    if np.abs(sideways).max() > 0.1 * min(first.pixel_mm):
        raise _series_error("SER_NONUNIFORM", where, "slices shifted in plane")
    missing = np.flatnonzero(gaps > 1.5 * usual)
    if missing.size:
        k = int(missing[0])
        found = f"a gap of {gaps[k]:.2f} mm after slice {k} where {usual:.2f} mm is usual"
        raise _series_error("SER_MISSING_SLICE", where, found, "copy the whole series")
    off = np.abs(gaps - usual)
    drift = np.abs(along - along[0] - spacing * np.arange(len(slices)))
    if off.max() > GAP_TOLERANCE * usual or drift.max() > spacing:
        found = f"gaps of {gaps.min():.3f} to {gaps.max():.3f} mm"
        raise _series_error("SER_NONUNIFORM", where, found, "export slices of one spacing")

    lps = np.eye(4)
    lps[:3, 0] = first.row * first.pixel_mm[1]  # PixelSpacing is (between rows, between columns)
    lps[:3, 1] = first.column * first.pixel_mm[0]
    lps[:3, 2] = first.normal * spacing
    lps[:3, 3] = first.position
    grid = Grid((len(slices), *first.shape), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    return grid, ("slice_spacing_irregular",) * bool(off.max() > 1e-3 * usual)


# -- PET fields -------------------------------------------------------------------------------------------------------


def pet_header(slices: Sequence[Slice]) -> tuple[PetHeader, list[Frame]]:
    """Translate the headers to plain numbers on one clock, in seconds."""
    s = slices[0]
    ds, file = s.header, s.file
    zone = text_of(ds, "TimezoneOffsetFromUTC")
    series_date = text_of(ds, "SeriesDate")
    drugs = _drugs(ds)
    if len(drugs) > 1:
        raise _series_error("PET_DOSE", file.name, f"{len(drugs)} radiopharmaceuticals", "export a one-tracer series")
    drug = drugs[0] if drugs else Dataset()
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
        injection_s=moment_s(text_of(drug, "RadiopharmaceuticalStartDateTime"), zone, file),
        injection_clock_s=clock_s(text_of(drug, "RadiopharmaceuticalStartTime"), file),
        series_s=date_and_clock(series_date, text_of(ds, "SeriesTime"), file),
        private_s=moment_s(private_text(ds, GE_SCAN_TIME), zone, file),
        counts_to_suv=parse_number(private_text(ds, PHILIPS_SUV), file, "(7053,1000)"),
        counts_to_bqml=parse_number(private_text(ds, PHILIPS_BQML), file, "(7053,1009)"),
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


def _drugs(ds: Dataset) -> Sequence[Dataset]:
    return items_of(ds, "RadiopharmaceuticalInformationSequence")


def _radiopharmaceutical(s: Slice) -> tuple[tuple[str, ...], ...]:
    try:
        return tuple(tuple(text_of(drug, name) for name in _DRUG_FIELDS) for drug in _drugs(s.header))
    except Exception:  # pydicom parses on access: a malformed sequence raises whatever its parser meets
        raise file_error("DCM_TRUNCATED", s.file, "(0054,0016) that cannot be read") from None


def _milliseconds(s: Slice, keyword: str) -> float | None:
    value = number_of(s.header, keyword, s.file)
    return None if value is None else value / 1000.0


def _series_error(
    code: str, where: str, found: str, remedy: str = "keep one complete series in the folder"
) -> InputError:
    return InputError(code, where=where, found=found, remedy=remedy)
