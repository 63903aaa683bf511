"""Fields of one DICOM header, taken as raw bytes: text, numbers, times on one clock.

Here values are decoded; what a field means is decided elsewhere.  A damaged value is found here, before a library could
print it: an error names the field, never its content.
"""

import datetime
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.dicom_fields import START_BYTES, TAGS, Fields, read_header
from storage.errors import InputError
from storage.suv import DAY_S

if TYPE_CHECKING:  # a third of a second, and regular slices are read without it
    from pydicom.dataset import Dataset

Header: TypeAlias = "Dataset | Fields"
HeaderT = TypeVar("HeaderT", bound=Header)

PRIVATE_CREATORS = {0x0009: "GEMS_PETD_01", 0x7053: "Philips PET Private Group"}
_DECIMAL = re.compile(r" *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)? *")
_CLOCK = re.compile(r"(\d\d):?(\d\d)?:?(\d\d)?(\.\d{1,12})?")  # .NET writes 7 digits
MAKERS = {0x7053: "PHILIPS"}  # whose exports are known to lack the creator; in capitals, within Manufacturer


@functools.cache
def tag_of(keyword: str) -> int:
    """Return the tag of a keyword."""
    if keyword in TAGS:
        return TAGS[keyword]
    from pydicom.tag import Tag

    return Tag(keyword)


def _raw(ds: Header, tag: int) -> object:
    element: Any = ds.get_item(tag)
    return None if element is None else element.value


def as_stored(ds: Header, keyword: str) -> bytes | None:
    """Return a field's bytes; ``None`` where it is absent, empty, or parsed already."""
    value = _raw(ds, tag_of(keyword))
    return value if isinstance(value, bytes) and value else None


def has_value(ds: Header, keyword: str) -> bool:
    """Return whether a field is there and not empty."""
    return bool(_raw(ds, tag_of(keyword)))


def text_of(ds: Header, keyword: str) -> str:
    """Return a field as text without padding, empty if absent; several values stay joined by a backslash."""
    return _decode(_raw(ds, tag_of(keyword)))


def private_text(ds: Header, tag: int) -> str:
    """Return a private field of block 10, if its creator is the one whose field we know, else nothing.

    A creator that is missing is the manufacturer's own where the header names it: exporters drop creators, and keep
    what they made.
    """
    group = tag >> 16
    creator = _decode(_raw(ds, group << 16 | 0x0010))
    return _decode(_raw(ds, tag)) if creator == PRIVATE_CREATORS[group] or without_creator(ds, group) else ""


def without_creator(ds: Header, group: int) -> bool:
    """Return whether a group of private fields lacks its creator, in a header of the manufacturer whose group it is."""
    maker = MAKERS.get(group)
    lacking = not _decode(_raw(ds, group << 16 | 0x0010))
    return lacking and maker is not None and maker in text_of(ds, "Manufacturer").upper()


def _decode(value: object) -> str:
    if value is None:
        return ""
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip(" \0")


def number_of(ds: Header, keyword: str, file: Path) -> float | None:
    """Return a decimal field, ``None`` if absent or empty."""
    return parse_number(text_of(ds, keyword), file, tag_name(keyword))


def parse_number(text: str, file: Path, name: str) -> float | None:
    """Return a decimal string as a finite number, ``None`` if empty.

    Raises:
        InputError: ``DCM_BAD_NUMBER``.
    """
    if not text:
        return None
    # float() would also take "nan", "inf", "1_0": not DICOM decimal strings
    if not _DECIMAL.fullmatch(text) or not math.isfinite(float(text)):
        raise file_error("DCM_BAD_NUMBER", file, f"{name} is no finite number")
    return float(text)


def vector_of(ds: Header, keyword: str, n: int, file: Path) -> NDArray[np.float64]:
    """Return ``n`` decimal values of a field that a slice cannot be placed without.

    Raises:
        InputError: ``DCM_BAD_NUMBER``, ``SER_NO_GEOMETRY``.
    """
    text = text_of(ds, keyword)
    parts = [parse_number(part, file, tag_name(keyword)) for part in text.split("\\")]
    values = [part for part in parts if part is not None]
    if len(values) != n or len(parts) != n:
        raise file_error("SER_NO_GEOMETRY", file, f"{tag_name(keyword)} is missing or incomplete")
    return np.array(values, dtype=np.float64)


def integer_of(ds: Header, keyword: str, default: int = -1) -> int:
    """Return an unsigned short field."""
    element: Any = ds.get_item(tag_of(keyword))
    if element is None or not element.value:
        return default
    if isinstance(element.value, bytes):
        return int.from_bytes(element.value[:2], "little" if element.is_little_endian else "big")
    return int(element.value)


def integer_text(header: Header, keyword: str) -> str:
    """Return an integer string, empty where it is none."""
    text = text_of(header, keyword)
    return text if re.fullmatch(r"[0-9]{1,9}", text) else ""


@functools.cache
def tag_name(keyword: str) -> str:
    """Return a field's name as errors give it: ``(0028,1053) RescaleSlope``."""
    tag = tag_of(keyword)
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword}"


def file_error(code: str, file: Path, found: str, remedy: str = "export or copy the series again") -> InputError:
    """Return the error that names one file."""
    return InputError(code, where=file.name, found=found, remedy=remedy)


def stated_class(file: Path) -> tuple[str, str]:
    """Return the SOP class and the transfer syntax that a file states, both empty if it is not a DICOM file.

    Raises:
        InputError: ``IMG_UNREADABLE``.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(132)[128:] != b"DICM":
                return "", ""
        from pydicom.filereader import read_file_meta_info

        meta = read_file_meta_info(file)
        return text_of(meta, "MediaStorageSOPClassUID"), text_of(meta, "TransferSyntaxUID")
    except PermissionError:
        raise file_error("IMG_UNREADABLE", file, "a file that may not be read", "check its permissions") from None
    except Exception:  # a damaged header can end in any error of the parser
        return "", ""


def stated_study(file: Path) -> tuple[str, str, str] | None:
    """Return the patient, the study and the modality that a file states, None if it is no DICOM file that can be read.

    A damaged file is told when its series is opened, with a code of its own.
    """
    names = ("PatientID", "StudyInstanceUID", "Modality")
    tags = [tag_of(name) for name in names]
    try:
        with file.open("rb") as stream:
            start = stream.read(START_BYTES)
            if start[128:132] != b"DICM":
                return None
            header: Header
            if (read := read_header(start, frozenset(tags))) is not None:
                header = read.fields
            else:
                import pydicom

                stream.seek(0)
                header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags)
            patient, study, modality = (text_of(header, name) for name in names)
            return patient, study, modality
    except Exception:  # a damaged header can end in any error of the parser
        return None


def items_of(ds: HeaderT, keyword: str) -> Sequence[HeaderT]:
    """Return the items of a sequence, none if it is absent."""
    tag = tag_of(keyword)
    if not _raw(ds, tag):
        return ()
    held: Any = ds
    if isinstance(ds, Fields):
        items: Sequence[HeaderT] = held.items(tag)
        return items
    import pydicom

    found = held[tag].value
    return found if isinstance(found, pydicom.Sequence) else ()  # type: ignore[return-value]


def date_and_clock(date: str, clock: str, file: Path) -> float | None:
    """Return DA and TM values as s on the series' clock, ``None`` if either is empty.

    Raises:
        InputError: ``DCM_BAD_TIME``.
    """
    seconds = clock_s(clock, file)
    digits = date.replace(".", "")
    if seconds is None or not digits:
        return None
    try:
        return _day(digits) * DAY_S + seconds
    except ValueError:
        raise file_error("DCM_BAD_TIME", file, "a date that cannot be read") from None


@functools.lru_cache(maxsize=16)
def _day(digits: str) -> int:
    return datetime.datetime.strptime(digits, "%Y%m%d").toordinal()


def clock_s(text: str, file: Path) -> float | None:
    """Return a TM value in s after midnight; parts on the right may be absent."""
    if not text:
        return None
    if match := _CLOCK.fullmatch(text):
        h, m, s, fraction = (float(part or 0) for part in match.groups())
        if h < 24 and m < 60 and s <= 60:
            return h * 3600 + m * 60 + s + fraction
    raise file_error("DCM_BAD_TIME", file, "a time of day that cannot be read")


def moment_s(text: str, zone: str, file: Path) -> float | None:
    """Return a DT value on the series' clock; its own offset from UTC counts only if the series states one too."""
    if len(text) < 10:  # a bare date says nothing of the hour
        return None
    match = re.fullmatch(r"(\d{8})(\d{2,6}(?:\.\d{1,12})?)([+-]\d{4})?", text)
    if not match:
        raise file_error("DCM_BAD_TIME", file, "a date-time that cannot be read")
    date, clock, offset = match.groups()
    seconds = date_and_clock(date, clock, file)
    if seconds is not None and offset and re.fullmatch(r"[+-]\d{4}", zone):
        seconds += _offset_s(zone) - _offset_s(offset)
    return seconds


def _offset_s(text: str) -> float:
    return (-1 if text[0] == "-" else 1) * (int(text[1:3]) * 3600.0 + int(text[3:5]) * 60.0)
