"""One DICOM file as one slice: its header checked field by field, its pixels found, and decoded on demand.

Nothing is repaired or guessed: a file that is not whole ends in an ``InputError``.
"""

import re
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.tag import Tag
from pydicom.uid import UID

from storage.dicom_header import (
    PRIVATE_CREATORS,
    file_error,
    has_value,
    integer_of,
    number_of,
    tag_name,
    text_of,
    vector_of,
)
from storage.errors import InputError
from storage.suv import check_rescale

Modality = Literal["PT", "CT"]

STORAGE = {"PT": "1.2.840.10008.5.1.4.1.1.128", "CT": "1.2.840.10008.5.1.4.1.1.2"}
ENHANCED = {
    "PT": ("1.2.840.10008.5.1.4.1.1.130", "1.2.840.10008.5.1.4.1.1.128.1"),
    "CT": ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"),
}
DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR, whose data set has no class of its own
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = {"1.2.840.10008.1.2": "<", "1.2.840.10008.1.2.1": "<", "1.2.840.10008.1.2.2": ">"}  # syntax -> byte order
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")  # a file so named must be DICOM; others may be anything
MAX_MATRIX = 8192
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
    "ManufacturerModelName",
)
# fmt: on
_TAGS: list[int] = [
    *(Tag(name) for name in (*SERIES_FIELDS, *_SLICE_FIELDS)),
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


def scan(file: Path, modality: Modality) -> Slice | None:
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
                own = _own_class(stream)
                if not own and declared != DIRECTORY:
                    raise file_error("DCM_TRUNCATED", file, f"no {tag_name('SOPClassUID')}")
                if own == STORAGE[modality]:  # else a slice would be passed by for its damaged meta
                    found = f"{tag_name('SOPClassUID')} differs from that of the file meta"
                    raise file_error("DCM_BAD_UID", file, found)
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


def _own_class(stream: BinaryIO) -> str:
    """The SOP class that the data set itself states, read up to there only."""
    stream.seek(0)
    return text_of(read_partial(stream, stop_when=lambda tag, _vr, _length: int(tag) > 0x00080016), "SOPClassUID")


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
    explicit = syntax != "1.2.840.10008.1.2"
    if (
        len(element) < 12
        or struct.unpack(order + "HH", element[:4]) != (0x7FE0, 0x0010)
        or (explicit and element[4:6] not in (b"OW", b"OB", b"UN"))
    ):
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
        if element[8:12] != b"\xff\xff\xff\xff":
            raise file_error("DCM_DECODE_FAILED", file, "compressed pixels of a stated length")
        _check_fragments(stream, file)
        return None
    length = int(struct.unpack(order + "L", element[8:12] if explicit else element[4:8])[0])
    offset = stream.tell() if explicit else stream.tell() - 4
    present = min(length, file.stat().st_size - offset)
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
    padding = not rest or (len(rest) < 512 and file.stat().st_size % 512 == 0 and not rest.strip(b"\0"))
    if not (further or padding):  # what was put in between has pushed pixels out behind their element
        raise file_error("DCM_PIXELS_LONG", file, "bytes after the pixels that are no DICOM element")
    return offset


def _check_fragments(stream: BinaryIO, file: Path) -> None:
    """Walk the items of compressed pixels, the reader standing before the first: each must end where the next begins.

    A decoder that is given a fragment with bytes lost or added may still make an image of it.
    """
    size, fragments = file.stat().st_size, -1  # the first item is a table of offsets
    while item := stream.read(8):
        tag, length = struct.unpack("<LL", item) if len(item) == 8 else (0, 0)
        if tag == 0xE0DDFFFE and length == 0 and fragments > 0:
            return
        if tag != 0xE000FFFE or stream.tell() + length > size:
            break
        fragments += 1
        stream.seek(length, 1)
    else:
        if fragments > 0:  # some writers leave the delimiter out
            return
    raise file_error("DCM_DECODE_FAILED", file, "compressed pixels whose lengths do not fit")


def _decoded(file: Path) -> NDArray[np.generic]:
    """Decode by the first decoder that can, but GDCM if there is another: damage may make it abort."""
    decoder = get_decoder(UID(str(read_file_meta_info(file).TransferSyntaxUID)))
    plugins = [name for name in decoder.available_plugins if name != "gdcm"] or ["gdcm"]
    for plugin in plugins[:-1]:
        with suppress(Exception):  # the next one may be able to
            return pixel_array(file, decoding_plugin=plugin)
    return pixel_array(file, decoding_plugin=plugins[-1])


def pixels_of(s: Slice) -> NDArray[np.generic]:
    """Decode one slice to its stored values, (rows, columns)."""
    if s.offset is None:
        try:
            pixels = _decoded(s.file)
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
