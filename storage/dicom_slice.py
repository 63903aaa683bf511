"""One DICOM file as one slice: its header checked field by field, its pixels found, and decoded on demand.

Nothing is repaired or guessed: a file that is not whole ends in an ``InputError``.
"""

import functools
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from storage import dicom_words
from storage.compressed_frame import SYNTAXES, Expected, check_ends, check_frame
from storage.decoding import decode_frame
from storage.dicom_fields import DEFLATED, START_BYTES, read_header
from storage.dicom_header import (
    PRIVATE_CREATORS,
    Header,
    file_error,
    has_value,
    integer_of,
    number_of,
    tag_name,
    tag_of,
    text_of,
    vector_of,
)
from storage.encapsulated import Spans, find_frames, read_frame
from storage.errors import InputError
from storage.suv import check_rescale

if TYPE_CHECKING:  # of regular slices pydicom is not loaded
    from pydicom.dataset import Dataset

Modality = Literal["PT", "CT"]

STORAGE = {"PT": "1.2.840.10008.5.1.4.1.1.128", "CT": "1.2.840.10008.5.1.4.1.1.2"}
ENHANCED = {
    "PT": ("1.2.840.10008.5.1.4.1.1.130", "1.2.840.10008.5.1.4.1.1.128.1"),
    "CT": ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"),
}
UID_TEXT = re.compile(r"[0-9.]{1,64}")
DICOM_ROOT = "1.2.84"  # of the standard's own classes, also where a digit of 1.2.840.10008 is damaged
DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR, whose data set has no class of its own
NATIVE = {"1.2.840.10008.1.2": "<", "1.2.840.10008.1.2.1": "<", "1.2.840.10008.1.2.2": ">"}  # syntax -> byte order
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")  # a file so named must be DICOM; others may be anything
MAX_MATRIX = 8192
PLAUSIBLE_MM = (0.02, 100.0)  # pixel edges: of micro-CT at least, and no scanner's are longer
# in ImageType of what is no slice of a volume, though it may lie in its series
# fmt: off
PICTURES = {
    "LOCALIZER", "SCOUT", "TOPOGRAM", "FUSION", "FUSED", "MIP", "MINIP", "PROJECTION", "MPR", "REFORMATTED", "VRT",
    "SCREEN", "PROT", "PROTOCOL",
}
# fmt: on
_HEADER_BYTES = 1 << 20  # more of a file, where its header is not within its start
_HEAD_BYTES = 4096  # of a compressed frame, where its own header should be
_SLACK_BYTES = 1 << 20  # for comments in a compressed frame; no syntax makes pixels twice as long
GE_SCAN_TIME, PHILIPS_SUV, PHILIPS_BQML = 0x0009100D, 0x70531000, 0x70531009
# fmt: off
SERIES_FIELDS = (
    "PatientID", "FrameOfReferenceUID", "SeriesDate", "SeriesTime", "Units", "SUVType", "DecayCorrection",
    "CorrectedImage", "PatientWeight", "PatientSize", "PatientSex", "PhotometricInterpretation",
    "TimezoneOffsetFromUTC",
)
DRUG_FIELDS = (
    "RadionuclideTotalDose", "RadionuclideHalfLife", "RadiopharmaceuticalStartTime",
    "RadiopharmaceuticalStartDateTime",
)
_SLICE_FIELDS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "SeriesType", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "NumberOfFrames",
    "NumberOfSlices", "RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "AcquisitionDate", "AcquisitionTime", "ActualFrameDuration", "FrameReferenceTime",
    "DecayFactor", "RadiopharmaceuticalInformationSequence", "SeriesNumber", "SeriesDescription", "Manufacturer",
    "ManufacturerModelName", "SliceThickness", "TriggerTime", "TemporalPositionIdentifier", "ImageIndex",
    "InstanceNumber", "NumberOfTimeSlices",
)
# fmt: on
_TAGS: list[int] = [
    *(tag_of(name) for name in (*SERIES_FIELDS, *_SLICE_FIELDS)),
    *(group << 16 | 0x0010 for group in PRIVATE_CREATORS),
    *(GE_SCAN_TIME, PHILIPS_SUV, PHILIPS_BQML),
]
_WANTED = frozenset(_TAGS)


@dataclass(frozen=True, eq=False)
class Slice:
    """One file of a series, or one frame of an enhanced object, checked, without its pixels.

    Args:
        header: of the file; of a frame as a classic slice would have it.
        offset: of the pixel bytes in the file; ``None`` if they are compressed.
        spans: where the fragments of compressed pixels lie.
        shape: (rows, columns).
        dtype: of the stored pixels, byte order included.
        bits: bits stored.
        normal: unit vector of the slice plane, LPS.
        frame: index of the frame in an enhanced object's file; ``None`` for a classic slice.
    """

    file: Path
    header: Header = field(repr=False)
    series_uid: str = field(repr=False)
    syntax: str
    offset: int | None
    spans: Spans
    shape: tuple[int, int]
    dtype: str
    bits: int
    slope: float
    intercept: float
    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    pixel_mm: tuple[float, float]
    frame: int | None = None

    @functools.cached_property
    def normal(self) -> NDArray[np.float64]:
        (a, b, c), (d, e, f) = self.row, self.column
        return np.array([b * f - c * e, c * d - a * f, a * e - b * d])  # np.cross takes ten times as long

    @functools.cached_property
    def along(self) -> float:
        """Position along the normal in mm."""
        return float(self.position @ self.normal)


@dataclass(frozen=True, eq=False)
class Unusable:
    """A file of a series that is no slice of a volume: a picture without a place in the patient, or a damaged slice."""

    series_uid: str = field(repr=False)
    error: InputError
    picture: bool


def is_picture(header: Header) -> bool:
    """Return whether ImageType says that this is a localizer, or was made to be looked at: no slice of a volume."""
    return bool(PICTURES & {*dicom_words.words(text_of(header, "ImageType"))})


def scan(file: Path, modality: Modality) -> tuple[Slice, ...] | Unusable:
    """Read one header: one slice, those of an enhanced object's frames, none if it is no image of this modality.

    Raises:
        InputError: as ``dicom_series.find_series``, for what leaves open which series the file is of.
    """
    with file.open("rb") as stream:
        head = stream.read(START_BYTES)
        if head[128:132] != b"DICM":
            _refuse_foreign(file, head)
            return ()
        if head[:2] in (b"MZ", b"#!") or head[:4] == b"\x7fELF":
            raise file_error("DCM_PREAMBLE_EXEC", file, "a preamble that is a program")
        classes = (STORAGE[modality],)
        read = read_header(head, _WANTED, classes)
        if read is None and len(head) == START_BYTES:
            read = read_header(head + stream.read(_HEADER_BYTES), _WANTED, classes)
        if read is None or read.declared in ("", *ENHANCED[modality]):
            found = _by_pydicom(stream, file, modality)
            if found is None:
                return ()
            syntax, declared, ds, frames = found
        elif read.declared != STORAGE[modality]:
            _check_class(file, read.declared, text_of(read.fields, "SOPClassUID"), modality)
            return ()
        else:
            syntax, declared, ds, frames = read.syntax, read.declared, read.fields, None
            stream.seek(read.pixels)
        sop = text_of(ds, "SOPClassUID") or declared
        if not sop:
            raise file_error("DCM_TRUNCATED", file, f"no {tag_name('SOPClassUID')}")
        if declared and sop != declared:
            raise file_error("DCM_BAD_UID", file, f"{tag_name('SOPClassUID')} differs from that of the file meta")
        if frames is None and sop != STORAGE[modality]:
            unknown = not UID_TEXT.fullmatch(sop) or (sop.startswith(DICOM_ROOT) and not _is_registered(sop))
            if unknown:  # a damaged slice, unless it is a class that came after pydicom
                error = file_error("DCM_BAD_UID", file, f"{tag_name('SOPClassUID')} of no class that exists")
                return Unusable(text_of(ds, "SeriesInstanceUID"), error, picture=False)
            return ()
        for name in ("Modality", "SeriesInstanceUID", "SOPInstanceUID", "Rows", "Columns", "BitsAllocated"):
            if not has_value(ds, name):
                raise file_error("DCM_TRUNCATED", file, f"no {tag_name(name)}")
        for name in ("SeriesInstanceUID", "SOPInstanceUID"):
            if not UID_TEXT.fullmatch(text_of(ds, name)):
                raise file_error("DCM_BAD_UID", file, f"{tag_name(name)} is no UID")
        try:
            return _slices(file, ds, stream, syntax, modality, frames)
        except InputError as error:
            return Unusable(text_of(ds, "SeriesInstanceUID"), error, is_picture(ds))


def _slices(
    file: Path, ds: Header, stream: BinaryIO, syntax: str, modality: Modality, frames: Sequence[Header] | None
) -> tuple[Slice, ...]:
    """The slice of a classic file, or those of an object's ``frames``, the reader standing before the pixels."""
    matrix = rows, columns, allocated, bits = _matrix(file, ds)
    if frames is None and (number_of(ds, "NumberOfFrames", file) or 1) > 1:
        raise file_error("DCM_MULTIFRAME", file, "several frames in one file", "export one slice per file")
    expected = Expected(rows, columns, allocated, bits, signed=integer_of(ds, "PixelRepresentation", 0) == 1)
    places = _find_pixels(stream, file, syntax, expected, 1 if frames is None else len(frames))
    if frames is None:
        return (_checked(file, ds, syntax, modality, places[0], matrix),)
    return tuple(
        _checked(file, header, syntax, modality, place, _matrix(file, header), k)
        for k, (header, place) in enumerate(zip(frames, places, strict=True))
    )


def _by_pydicom(
    stream: BinaryIO, file: Path, modality: Modality
) -> tuple[str, str, Header, Sequence[Header] | None] | None:
    """Read a header of any kind up to its pixels, where the reader then stands.

    Returns:
        the transfer syntax, the SOP class that the file meta declares, the header, and those of an enhanced object's
        frames; None for an object of another class.

    Raises:
        InputError: ``DCM_BOMB``, ``DCM_TOO_DEEP``, ``DCM_TRUNCATED``, ``DCM_BAD_UID``; of an enhanced object.
    """
    import pydicom
    from pydicom.filereader import read_file_meta_info, read_partial

    from storage import enhanced

    try:
        meta = read_file_meta_info(file)
        syntax = text_of(meta, "TransferSyntaxUID")
        if syntax == DEFLATED:
            # pydicom inflates the whole file at once: 200 KB may become gigabytes.
            raise file_error("DCM_BOMB", file, "the deflated transfer syntax", "export it uncompressed")
        declared = text_of(meta, "MediaStorageSOPClassUID")
        stream.seek(0)
        if declared and declared not in (STORAGE[modality], *ENHANCED[modality]):
            own = read_partial(stream, stop_when=lambda tag, _vr, _length: int(tag) > 0x00080016)
            _check_class(file, declared, text_of(own, "SOPClassUID"), modality)
            return None
        ds = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=[*_TAGS, *enhanced.TAGS])
        sop = text_of(ds, "SOPClassUID") or declared
        if sop in ENHANCED[modality] and sop == (declared or sop):
            return syntax, declared, ds, enhanced.frames_of(file, ds, modality, _TAGS)
        return syntax, declared, ds, None
    except RecursionError:
        raise file_error("DCM_TOO_DEEP", file, "sequences nested too deep") from None
    except InputError:
        raise
    except Exception:  # a damaged header can end in any error of the parser
        raise file_error("DCM_TRUNCATED", file, "a header that cannot be read to its end") from None


def _check_class(file: Path, declared: str, own: str, modality: Modality) -> None:
    """Refuse a file whose meta declares another class than that of slices, unless the data set agrees.

    Raises:
        InputError: ``DCM_TRUNCATED``, ``DCM_BAD_UID``.
    """
    if not own and declared != DIRECTORY:
        raise file_error("DCM_TRUNCATED", file, f"no {tag_name('SOPClassUID')}")
    if own == STORAGE[modality]:  # else a slice would be passed by for its damaged meta
        raise file_error("DCM_BAD_UID", file, f"{tag_name('SOPClassUID')} differs from that of the file meta")


def _is_registered(uid: str) -> bool:
    from pydicom.uid import UID

    return UID(uid).name != uid


def _refuse_foreign(file: Path, head: bytes) -> None:
    """Raise for a file that should have been DICOM: by its name, or a bare data set without preamble."""
    named = file.suffix.lower() in DICOM_SUFFIXES
    if head[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x08\x00\x16\x00"):
        raise file_error("DCM_NO_PREAMBLE", file, "a data set without the DICOM preamble")
    if named and not head:
        raise file_error("DCM_EMPTY", file, "an empty file")
    if named:
        raise file_error("DCM_NOT_DICOM", file, "no DICOM file")


def _matrix(file: Path, ds: Header) -> tuple[int, int, int, int]:
    """Rows, columns, bits allocated and bits stored."""
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
    return rows, columns, allocated, bits


def _checked(
    file: Path,
    ds: Header,
    syntax: str,
    modality: Modality,
    place: tuple[int | None, Spans],
    matrix: tuple[int, int, int, int],
    frame: int | None = None,
) -> Slice:
    rows, columns, allocated, bits = matrix
    kind = "i" if integer_of(ds, "PixelRepresentation", 0) else "u"
    slope = number_of(ds, "RescaleSlope", file) or 0.0
    intercept = number_of(ds, "RescaleIntercept", file) or 0.0
    if modality == "PT":
        # Archives that turn signed values into unsigned ones shift them by half the range, and say so here.
        shifted = kind == "u" and abs(intercept + slope * 2 ** (bits - 1)) <= 1e-6 * abs(intercept)
        check_rescale(slope, 0.0 if shifted else intercept, file.name)
    elif slope == 0:
        raise file_error("DCM_BAD_NUMBER", file, f"{tag_name('RescaleSlope')} is missing or 0")
    position, orientation, spacing = (
        vector_of(ds, name, n, file)
        for name, n in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    row, column = orientation[:3], orientation[3:]
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 1e-3 or spacing.min() <= 0:
        raise file_error("DCM_GEOMETRY_INVALID", file, "directions that are not orthonormal or a spacing not above 0")
    if not PLAUSIBLE_MM[0] <= spacing.min() <= spacing.max() <= PLAUSIBLE_MM[1]:
        found = f"{tag_name('PixelSpacing')} of {spacing[0]:g} x {spacing[1]:g} mm"
        raise file_error("DCM_GEOMETRY_INVALID", file, found, "export the series again with its pixel spacing in mm")
    return Slice(
        file=file,
        header=ds,
        series_uid=text_of(ds, "SeriesInstanceUID"),
        syntax=syntax,
        offset=place[0],
        spans=place[1],
        shape=(rows, columns),
        dtype=f"{NATIVE.get(syntax, '<')}{kind}{allocated // 8}",
        bits=bits,
        slope=slope,
        intercept=intercept,
        position=position,
        row=row,
        column=column,
        pixel_mm=(float(spacing[0]), float(spacing[1])),
        frame=frame,
    )


def _find_pixels(
    stream: BinaryIO, file: Path, syntax: str, frame: Expected, count: int
) -> tuple[tuple[int | None, Spans], ...]:
    """Return where the pixel bytes of each of ``count`` frames begin, or where compressed ones lie.

    The reader stands before their element.
    """
    order = NATIVE.get(syntax, "<")
    size = frame.rows * frame.columns * frame.allocated // 8
    element = stream.read(12)
    explicit = syntax != "1.2.840.10008.1.2"
    if (
        len(element) < 12
        or struct.unpack(order + "HH", element[:4]) != (0x7FE0, 0x0010)
        or (explicit and element[4:6] not in (b"OW", b"OB", b"UN"))
    ):
        raise file_error("DCM_TRUNCATED", file, "no (7FE0,0010) PixelData")
    if syntax not in NATIVE:
        if syntax not in SYNTAXES:
            remedy = "export uncompressed, or with JPEG 2000"
            raise file_error("DCM_CODEC_MISSING", file, "a transfer syntax without a decoder", remedy)
        stream.seek(-len(element), 1)
        found = find_frames(stream, file, count)
        for spans in found:
            _check_compressed(stream, file, syntax, frame, spans)
        return tuple((None, spans) for spans in found)
    length = int(struct.unpack(order + "L", element[8:12] if explicit else element[4:8])[0])
    offset = stream.tell() if explicit else stream.tell() - 4
    whole = os.fstat(stream.fileno()).st_size
    present, expected = min(length, whole - offset), size * count
    if present < expected:
        raise file_error("DCM_PIXELS_SHORT", file, f"{max(present, 0)} of {expected} bytes of pixels")
    if length > expected + 1:
        raise file_error("DCM_PIXELS_LONG", file, f"{length} bytes of pixels for {expected}")
    stream.seek(offset + length)
    after = stream.read(8)
    tag = struct.unpack(order + "HH", after[:4]) if len(after) == 8 else (0, 0)
    further = tag > (0x7FE0, 0x0010) and (not explicit or (after[4:6].isalpha() and after[4:6].isupper()))
    rest = after + stream.read(512)
    # Zeros that fill the last block are padding; a few may be pixels of air.
    padding = not rest or (len(rest) < 512 and whole % 512 == 0 and not rest.strip(b"\0"))
    if not (further or padding):  # what was put in between has pushed pixels out behind their element
        raise file_error("DCM_PIXELS_LONG", file, "bytes after the pixels that are no DICOM element")
    return tuple((offset + k * size, ()) for k in range(count))


def _check_compressed(stream: BinaryIO, file: Path, syntax: str, frame: Expected, spans: Spans) -> None:
    """Look at both ends of one compressed frame."""
    length, expected = sum(size for _, size in spans), frame.rows * frame.columns * frame.allocated // 8
    if length > 2 * expected + _SLACK_BYTES:
        raise file_error("DCM_PIXELS_LONG", file, f"{length} bytes of compressed pixels for {expected}")
    stream.seek(spans[0][0])
    head = stream.read(min(spans[0][1], _HEAD_BYTES))
    tail_bytes = min(spans[-1][1], 16)
    stream.seek(sum(spans[-1]) - tail_bytes)
    check_ends(head, stream.read(tail_bytes), syntax, frame, file)


def whole_header(s: Slice) -> "Dataset":
    """Return the header of a slice's file without its pixels; what a frame says itself is where a slice has it."""
    import pydicom
    from pydicom.dataset import Dataset

    if s.frame is None:
        return pydicom.dcmread(s.file, stop_before_pixels=True)
    flat = Dataset(dict(_object_header(s.file).items()))  # a copy: a data set made of another shares its fields
    assert isinstance(s.header, Dataset), "a frame's, which pydicom has read"
    flat.update(s.header)
    return flat


@functools.lru_cache(maxsize=1)
def _object_header(file: Path) -> "Dataset":
    """The header of an enhanced object without its functional groups: read once for all its frames."""
    import pydicom

    from storage.enhanced import PER_FRAME, SHARED

    ds = pydicom.dcmread(file, stop_before_pixels=True)
    for keyword in (SHARED, PER_FRAME, "NumberOfFrames"):
        ds.pop(tag_of(keyword), None)
    return ds


def pixels_of(s: Slice) -> NDArray[np.generic]:
    """Decode one slice to its stored values, (rows, columns).

    Raises:
        InputError: ``DCM_DECODE_FAILED``, ``DCM_FRAME_LIE``, ``DCM_ENCAPSULATION`` for compressed pixels,
            ``DCM_PIXELS_SHORT``, ``IMG_NO_FILE``.
    """
    if s.offset is None:
        allocated = 8 * np.dtype(s.dtype).itemsize
        expected = Expected(*s.shape, allocated=allocated, stored=s.bits, signed=np.dtype(s.dtype).kind == "i")
        frame = check_frame(read_frame(s.file, s.spans), s.syntax, expected, s.file)
        return decode_frame(frame, expected, s.file)
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
