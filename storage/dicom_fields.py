"""A regular DICOM header read in one pass over its bytes: the fields that are asked for, as they are stored.

pydicom reads everything that somebody may have written, which takes milliseconds of every slice and a third of a second
to be loaded.  A header that is written as DICOM PS3.5, 7 says is read here; of any other one ``read_header`` says so,
and pydicom decides what it is.
"""

import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
# what is asked of slices, as in PS3.6
# fmt: off
TAGS = {
    "MediaStorageSOPClassUID": 0x00020002, "TransferSyntaxUID": 0x00020010, "ImageType": 0x00080008,
    "SOPClassUID": 0x00080016, "SOPInstanceUID": 0x00080018, "SeriesDate": 0x00080021, "AcquisitionDate": 0x00080022,
    "SeriesTime": 0x00080031, "AcquisitionTime": 0x00080032, "Modality": 0x00080060, "Manufacturer": 0x00080070,
    "CodeValue": 0x00080100, "CodeMeaning": 0x00080104, "TimezoneOffsetFromUTC": 0x00080201,
    "SeriesDescription": 0x0008103E, "ManufacturerModelName": 0x00081090, "PatientID": 0x00100020,
    "PatientSex": 0x00100040, "PatientSize": 0x00101020, "PatientWeight": 0x00101030,
    "Radiopharmaceutical": 0x00180031, "SliceThickness": 0x00180050, "TriggerTime": 0x00181060,
    "RadiopharmaceuticalStartTime": 0x00181072, "RadionuclideTotalDose": 0x00181074,
    "RadionuclideHalfLife": 0x00181075, "RadiopharmaceuticalStartDateTime": 0x00181078,
    "ActualFrameDuration": 0x00181242, "DecayCorrectionDateTime": 0x00189701, "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E, "SeriesNumber": 0x00200011, "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032, "ImageOrientationPatient": 0x00200037, "FrameOfReferenceUID": 0x00200052,
    "TemporalPositionIdentifier": 0x00200100, "SamplesPerPixel": 0x00280002, "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008, "Rows": 0x00280010, "Columns": 0x00280011, "PixelSpacing": 0x00280030,
    "CorrectedImage": 0x00280051, "BitsAllocated": 0x00280100, "BitsStored": 0x00280101, "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103, "RescaleIntercept": 0x00281052, "RescaleSlope": 0x00281053,
    "RadiopharmaceuticalInformationSequence": 0x00540016, "NumberOfSlices": 0x00540081,
    "NumberOfTimeSlices": 0x00540101, "RadionuclideCodeSequence": 0x00540300,
    "RadiopharmaceuticalCodeSequence": 0x00540304, "SeriesType": 0x00541000, "Units": 0x00541001,
    "SUVType": 0x00541006, "DecayCorrection": 0x00541102, "FrameReferenceTime": 0x00541300, "DecayFactor": 0x00541321,
    "ImageIndex": 0x00541330,
}
# fmt: on
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
# the radiopharmaceuticals, and their codes of nuclide and drug
SEQUENCES = {tag for name, tag in TAGS.items() if name.endswith("Sequence")}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SYNTAX, _CLASS = TAGS["TransferSyntaxUID"], TAGS["MediaStorageSOPClassUID"]
_UNDEFINED = _LAST = 0xFFFFFFFF
_DEEPEST = 16
START_BYTES = 1 << 16  # of a file, which hold the header of most slices
_CHARACTER_SET = 0x00080005  # SpecificCharacterSet
_NEEDED = frozenset({_CHARACTER_SET})
_SET = rb"(ISO_IR (6|100|192)|ISO 2022 IR (6|13|58|87|100|101|109|110|126|127|138|144|148|149|159|166)|GB18030|GBK)?"
_KNOWN_SETS = re.compile(_SET + rb"(\\" + _SET + rb")*[ \0]*")
_SHORT = {*b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()}
_LONG = {*b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()}


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    Args:
        value: its bytes.
        is_little_endian: the order of the bytes of numbers.
        items: of a sequence of ``SEQUENCES``.
    """

    value: bytes = field(repr=False)
    is_little_endian: bool = True
    items: tuple["Fields", ...] = field(default=(), repr=False)


class Fields:
    """Fields by tag; as much of a pydicom data set as ``storage.dicom_header`` asks."""

    __slots__ = ("_held",)

    def __init__(self, held: Mapping[int, Field] | None = None) -> None:
        self._held = held or {}

    def get_item(self, tag: int) -> Field | None:
        """Return a field, None where it is absent."""
        return self._held.get(tag)

    def items(self, tag: int) -> tuple["Fields", ...]:
        """Return the items of a sequence of ``SEQUENCES``, none where it is absent."""
        held = self._held.get(tag)
        return held.items if held else ()


@dataclass(frozen=True, slots=True)
class Read:
    """A header.

    Args:
        syntax: the transfer syntax.
        declared: the SOP class that the file meta declares, empty if none.
        fields: those that were asked for.
        pixels: where the element of the pixels begins in the file, or what was not read.
    """

    syntax: str
    declared: str
    fields: Fields
    pixels: int


class _IrregularError(Exception):
    """Something that pydicom must look at."""


def read_header(start: bytes, wanted: frozenset[int], classes: Collection[str] | None = None) -> Read | None:
    """Read the header of a file that begins with ``start``.

    Args:
        start: with the preamble; as long as the header, or longer.
        wanted: tags of the fields to keep.
        classes: SOP classes whose headers are read up to their pixels; others, where the file meta declares one, only
            up to the class that they state themselves.  None for all.

    Returns:
        None for a header that is not regular, or not whole in ``start``.
    """
    try:
        meta: dict[int, Field] = {}
        at = _walk(start, 132, len(start), _Way(False, True), {_SYNTAX, _CLASS}, meta, -1)
        syntax, declared = (
            meta[tag].value.decode("ascii").strip(" \0") if tag in meta else "" for tag in (_SYNTAX, _CLASS)
        )
        if not syntax or syntax == DEFLATED or start[at : at + 2] == b"\0\0":
            return None
        way = _Way(syntax == IMPLICIT, syntax != BIG_ENDIAN)
        if way.implicit and start[at + 4 : at + 6].isalpha() and start[at + 4 : at + 6].isupper():
            return None  # explicit, whatever the file meta says
        held: dict[int, Field] = {}
        last = TAGS["SOPClassUID"] if classes is not None and declared not in ("", *classes) else _LAST
        end = _walk(start, at, len(start), way, wanted | _NEEDED, held, 0, last)
        if end == len(start) or not _KNOWN_SETS.fullmatch(held.get(_CHARACTER_SET, Field(b"")).value):
            return None
        return Read(syntax, declared, Fields(held), end)
    except (_IrregularError, struct.error, UnicodeDecodeError):
        return None


class _Way:
    """How elements are written: with or without their VR, and in which order of bytes."""

    __slots__ = ("implicit", "item", "item_end", "little", "long", "short")

    def __init__(self, implicit: bool, little: bool) -> None:
        order = "<" if little else ">"
        self.implicit, self.little = implicit, little
        self.short = struct.Struct(order + ("HHL" if implicit else "HH2sH")).unpack_from
        self.item = struct.Struct(order + "HHL").unpack_from
        self.item_end = struct.pack(order + "HHL", _ITEM_END >> 16, _ITEM_END & 0xFFFF, 0)
        self.long = struct.Struct(order + "L").unpack_from


def _walk(
    data: bytes,
    at: int,
    end: int,
    way: _Way,
    wanted: Collection[int] | None,
    held: dict[int, Field],
    depth: int,
    last: int = _LAST,
) -> int:
    """Go from element to element.

    Args:
        end: before which they end; at depth 0 the pixels' element must begin before.
        wanted: which to keep; None for all.
        held: takes what is kept.
        depth: of sequences; -1 for the file meta, which ends with its group.
        last: stop behind this tag.

    Returns:
        ``end``, or where elements of this kind end before: at the pixels or behind the delimiter of an item.
    """
    short, implicit, kind = way.short, way.implicit, b"SQ"  # of implicit VR only sequences are of undefined length
    stop = min(last + 1, PIXELS[0]) if depth == 0 else _UNDEFINED
    while at < end:
        if implicit:
            group, element, length = short(data, at)
            begin = at + 8
        else:
            group, element, kind, length = short(data, at)
            if depth < 0 and group != 2:
                return at
            begin = at + 8
            if kind not in _SHORT:
                if kind in _LONG:
                    length, begin = way.long(data, begin)[0], at + 12
                elif group != 0xFFFE:
                    raise _IrregularError
        tag = group << 16 | element
        if tag >= stop and (tag > last or tag in PIXELS):
            return at
        if group == 0xFFFE:
            if tag != _ITEM_END or depth <= 0 or data[at + 4 : at + 8] != b"\0\0\0\0":
                raise _IrregularError
            return at + 8
        keep = wanted is None or tag in wanted
        after = begin + length
        if not keep and length != _UNDEFINED:
            at = after
            continue
        items: tuple[Fields, ...] = ()
        sequence = length == _UNDEFINED or tag in SEQUENCES
        if sequence and kind != b"SQ":
            raise _IrregularError
        if length == _UNDEFINED:
            items, after = _items(data, begin, None, end, way, depth, keep)
            length = after - 8 - begin
        if after > end:
            raise _IrregularError
        if sequence and not items:
            items, _ = _items(data, begin, begin + length, end, way, depth, keep)
        if keep:
            held[tag] = Field(data[begin : begin + length], way.little, items)
        at = after
    if at > end:
        raise _IrregularError
    return at


def _items(
    data: bytes, at: int, stop: int | None, end: int, way: _Way, depth: int, keep: bool
) -> tuple[tuple[Fields, ...], int]:
    """Return the items of a sequence, and where it ends: at ``stop``, or behind its delimiter, before ``end``."""
    if not 0 <= depth < _DEEPEST:
        raise _IrregularError
    found = []
    while at != stop:
        if at >= end:
            raise _IrregularError
        group, element, length = way.item(data, at)
        tag, begin = group << 16 | element, at + 8
        if tag == _SEQUENCE_END and stop is None and not length:
            break
        undefined = length == _UNDEFINED
        last = (end if stop is None else stop) if undefined else begin + length
        if tag != _ITEM or last > end or (stop is not None and last > stop):
            raise _IrregularError
        held: dict[int, Field] = {}
        at = _walk(data, begin, last, way, None if keep else (), held, depth + 1)
        if undefined and data[at - 8 : at] != way.item_end:
            raise _IrregularError
        if not undefined and at != last:
            raise _IrregularError
        found.append(Fields(held))
    return tuple(found), at if stop is not None else begin
