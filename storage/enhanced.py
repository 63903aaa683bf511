"""Enhanced multi-frame PET and CT objects laid flat: one header per frame, as a classic slice would have it.

What is shared by all frames or said of each one in functional groups (DICOM PS3.3 C.7.6.16) is put where a classic
slice has it, so that everything behind reads both alike.  Also what a legacy-converted object kept of the slices it was
made of.  No pixel is read here.
"""

import datetime
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from storage.dicom_header import (
    date_and_clock,
    file_error,
    has_value,
    items_of,
    moment_s,
    number_of,
    tag_name,
    tag_of,
    text_of,
)
from storage.errors import InputError
from storage.suv import DAY_S

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
CONTRADICTION = 0.01  # two mappings of one stored value to one unit that differ by more are not one value rounded twice

# C.8.22.6: each flag, and the term that CorrectedImage (C.8.9.1.1.2) has for it
CORRECTIONS = {
    "DecayCorrected": "DECY",
    "AttenuationCorrected": "ATTN",
    "ScatterCorrected": "SCAT",
    "DeadTimeCorrected": "DTIM",
    "GantryMotionCorrected": "MOTN",
    "PatientMotionCorrected": "PMOT",
    "CountLossNormalizationCorrected": "CLN",
    "RandomsCorrected": "RAN",
    "NonUniformRadialSamplingCorrected": "RADL",
    "SensitivityCalibrated": "DCAL",
    "DetectorNormalizationCorrection": "NORM",
}
# CID 84 and 85: UCUM unit and the annotation in its braces -> Units and SUVType of a classic PET (C.8.9.1)
UNITS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("Bq/ml", ""): ("BQML", ""),
    ("g/ml", ""): ("GML", ""),
    ("g/ml", "SUVbw"): ("GML", "BW"),
    ("g/ml", "SUVlbm"): ("GML", "LBM"),
    ("g/ml", "SUVlbm(James128)"): ("GML", "LBMJAMES128"),
    ("g/ml", "SUVlbm(Janma)"): ("GML", "LBMJANMA"),
    ("g/ml", "SUVibw"): ("GML", "IBW"),
    ("cm2/ml", ""): ("CM2ML", ""),
    ("cm2/ml", "SUVbsa"): ("CM2ML", "BSA"),
    ("", "counts"): ("CNTS", ""),
    ("/s", "counts"): ("CPS", ""),
    ("", "propcounts"): ("PROPCNTS", ""),
    ("/s", "propcounts"): ("PROPCPS", ""),
    ("cm2", ""): ("CM2", ""),
    ("%", ""): ("PCNT", ""),
    ("/cm", ""): ("1CM", ""),
}
# C.8.16.1.4: pictures made of a volume, by the word that a classic image has for them
PICTURES = {"MAX_IP": "MIP", "MIN_IP": "MINIP", "VOLUME_RENDER": "VRT", "SURFACE_RENDER": "VRT", "CURVED_MPR": "MPR"}
DRUGS = Tag("RadiopharmaceuticalInformationSequence")
_SUV_UNITS = ("BQML", "GML", "CM2ML")  # the first is the one that most can be checked of
_EMPTY = Dataset()
FRAME_TYPE = {"PT": "PETFrameTypeSequence", "CT": "CTImageFrameTypeSequence"}
# Of an object's own fields: those that a classic slice does not have.
TAGS: tuple[int, ...] = tuple(
    Tag(name)
    for name in (SHARED, PER_FRAME, "AcquisitionDateTime", "DecayCorrectionDateTime", "SliceThickness", *CORRECTIONS)
)


def frames_of(file: Path, ds: Dataset, modality: Literal["PT", "CT"], wanted: Collection[int]) -> list[Dataset]:
    """Return one classic header per frame of an enhanced object, in the order of its frames.

    Args:
        file: named in errors.
        ds: the object's header without its pixels.
        wanted: the tags that are kept of what a legacy-converted object kept of its sources.

    Raises:
        InputError: ``PET_ENHANCED_UNSUPPORTED``, ``CT_ENHANCED_UNSUPPORTED``, ``DCM_BAD_FRAMES``, ``DCM_BAD_NUMBER``,
            ``DCM_BAD_TIME``, ``SER_NO_GEOMETRY``, ``SER_INCONSISTENT_HEADER``, ``PET_TIME_MISSING``.
    """
    groups = items_of(ds, PER_FRAME)
    if not groups:
        raise _unsupported(file, modality, f"an enhanced object without {tag_name(PER_FRAME)}")
    if number_of(ds, "NumberOfFrames", file) != len(groups):
        found = f"{tag_name('NumberOfFrames')} is not the number of functional groups, {len(groups)}"
        raise file_error("DCM_BAD_FRAMES", file, found)
    shared = _first(ds, SHARED)
    top = _elements(ds, {*wanted, *TAGS} - {Tag(SHARED), Tag(PER_FRAME), Tag("NumberOfFrames")})
    kept = _elements(_first(shared, "UnassignedSharedConvertedAttributesSequence"), wanted)
    known: dict[tuple[str, bytes], Sequence[Dataset]] = {}
    frames = []
    for group in groups:
        macros = _Macros(group, shared, known)
        each = _elements(macros.get("UnassignedPerFrameConvertedAttributesSequence"), wanted)
        # Of a legacy-converted object's own fields and those kept of its sources its own stand, unless they are empty.
        flat = Dataset({**kept, **each, **{tag: e for tag, e in top.items() if e.value or tag not in kept | each}})
        _place(flat, macros, file)
        _time(flat, macros, file)
        _scale(flat, macros, file, modality)
        if modality == "PT":
            _correct(flat, file)
        _describe(flat, macros, FRAME_TYPE[modality])
        frames.append(flat)
    # C.8.9.1.1.1: said once more of a classic series, whose slices do not know of each other
    for field, kind in (("TemporalPositionIdentifier", "DYNAMIC"), ("TriggerTime", "GATED")):
        if len({text_of(flat, field) for flat in frames}) > 1:
            for flat in frames:
                _put(flat, "SeriesType", f"{kind}\\IMAGE")
    return frames


class _Macros:
    """The functional groups of one frame: each said of it, or else of all frames (C.7.6.16.1.1)."""

    def __init__(self, frame: Dataset, shared: Dataset, known: dict[tuple[str, bytes], Sequence[Dataset]]) -> None:
        self.frame, self.shared, self.known = frame, shared, known

    def all(self, keyword: str) -> Sequence[Dataset]:
        """Return the items of a macro, none if it is absent."""
        for group in (self.frame, self.shared):
            element = group.get_item(tag_of(keyword))
            if element is None or not element.value:
                continue
            if not isinstance(element.value, bytes):
                return items_of(group, keyword)
            # Most frames say the same: of thousands only those that differ are parsed.
            if (key := (keyword, element.value)) not in self.known:
                self.known[key] = items_of(group, keyword)
            return self.known[key]
        return ()

    def get(self, keyword: str) -> Dataset:
        """Return the first item of a macro, empty if it is absent."""
        return next(iter(self.all(keyword)), _EMPTY)


def _first(ds: Dataset, keyword: str) -> Dataset:
    return next(iter(items_of(ds, keyword)), _EMPTY)


def _elements(ds: Dataset, wanted: Collection[int]) -> dict[BaseTag, DataElement | RawDataElement]:
    """The wanted fields of a data set, sequences parsed: once here, not once per frame."""
    found: dict[BaseTag, DataElement | RawDataElement] = {}
    for tag in ds.keys() & {*wanted}:
        element = ds.get_item(tag)
        assert element is not None
        found[tag] = ds[tag] if tag == DRUGS else element
    return found


def _put(flat: Dataset, keyword: str, text: str) -> None:
    """Set a field as it would stand in a file."""
    value = text.encode("latin-1", "replace")
    tag = Tag(tag_of(keyword))
    flat[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def _copy(flat: Dataset, macro: Dataset, *keywords: str) -> None:
    for keyword in keywords:
        if has_value(macro, keyword):
            flat[tag_of(keyword)] = macro.get_item(tag_of(keyword))


def _double(ds: Dataset, keyword: str, file: Path) -> float | None:
    """Return an FD field, ``None`` if absent or empty."""
    element = ds.get(tag_of(keyword))
    value = None if element is None else element.value
    if value is None or value == "":
        return None
    if not isinstance(value, float | int) or not math.isfinite(value):
        raise file_error("DCM_BAD_NUMBER", file, f"{tag_name(keyword)} is no finite number")
    return float(value)


# -- where and when ---------------------------------------------------------------------------------------------------


def _place(flat: Dataset, macros: _Macros, file: Path) -> None:
    """C.7.6.16.2.1, .3 and .4."""
    for keyword, field in (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    ):
        macro = macros.get(keyword)
        if not has_value(macro, field):
            raise file_error("SER_NO_GEOMETRY", file, f"no {tag_name(field)} in {tag_name(keyword)} of a frame")
        _copy(flat, macro, field)
    _copy(flat, macros.get("PixelMeasuresSequence"), "SliceThickness")


def _time(flat: Dataset, macros: _Macros, file: Path) -> None:
    """C.7.6.16.2.2: the frame's own times, in the fields and on the clock of a classic slice."""
    content = macros.get("FrameContentSequence")
    zone = text_of(flat, "TimezoneOffsetFromUTC")
    acquired = text_of(content, "FrameAcquisitionDateTime")
    if not acquired and not has_value(flat, "AcquisitionTime"):
        acquired = text_of(flat, "AcquisitionDateTime")
    if (start_s := moment_s(acquired, zone, file)) is not None:
        days, seconds = divmod(round(start_s, 4), DAY_S)  # finer than this a float of such a size is noise
        moment = datetime.datetime.fromordinal(int(days)) + datetime.timedelta(seconds=round(seconds, 4))
        _put(flat, "AcquisitionDate", moment.strftime("%Y%m%d"))
        _put(flat, "AcquisitionTime", moment.strftime("%H%M%S.%f"))
    duration_ms = _double(content, "FrameAcquisitionDuration", file)
    if duration_ms is not None:
        _put(flat, "ActualFrameDuration", f"{duration_ms:.0f}")
    # A legacy-converted object may have kept the FrameReferenceTime of its sources, which stands.
    middle_s = moment_s(text_of(content, "FrameReferenceDateTime"), zone, file)
    series_s = date_and_clock(text_of(flat, "SeriesDate"), text_of(flat, "SeriesTime"), file)
    reference_s = moment_s(text_of(flat, "DecayCorrectionDateTime"), zone, file)
    origin_s = series_s if reference_s is None else reference_s
    if middle_s is not None and origin_s is not None and not has_value(flat, "FrameReferenceTime"):
        _put(flat, "FrameReferenceTime", f"{1000 * (middle_s - origin_s):.3f}")
    if has_value(content, "TemporalPositionIndex"):
        _put(flat, "TemporalPositionIdentifier", str(content["TemporalPositionIndex"].value))
    for keyword, field in (
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
        ("RespiratorySynchronizationSequence", "NominalRespiratoryTriggerDelayTime"),
    ):
        if (trigger_ms := _double(macros.get(keyword), field, file)) is not None:
            _put(flat, "TriggerTime", f"{trigger_ms:.3f}")


# -- what a stored value is -------------------------------------------------------------------------------------------


def _correct(flat: Dataset, file: Path) -> None:
    """C.8.22.6 in the words of C.8.9.1; what a legacy-converted object kept of its sources stands."""
    stated = {name: text_of(flat, name) for name in CORRECTIONS}
    if any(stated.values()) and not has_value(flat, "CorrectedImage"):
        _put(flat, "CorrectedImage", "\\".join(term for name, term in CORRECTIONS.items() if stated[name] == "YES"))
    if stated["DecayCorrected"] and not has_value(flat, "DecayCorrection"):
        # All frames are corrected to DecayCorrectionDateTime, which storage.suv takes before any other witness.  It is
        # not known to be the start, so that without it there is no time that classic rules could find.
        if (
            stated["DecayCorrected"] == "YES"
            and text_of(flat, "Units") == "BQML"
            and not has_value(flat, "DecayCorrectionDateTime")
        ):
            found = f"no {tag_name('DecayCorrectionDateTime')} of a decay-corrected object"
            raise file_error("PET_TIME_MISSING", file, found, "no override replaces it; export classic slices")
        _put(flat, "DecayCorrection", {"YES": "START", "NO": "NONE"}.get(stated["DecayCorrected"], ""))


def _scale(flat: Dataset, macros: _Macros, file: Path, modality: str) -> None:
    """Slope, intercept and unit.

    A classic PET, and with it a legacy-converted one, states its unit in Units, and that is the unit of its rescaled
    values (C.8.9.1).  An enhanced PET has no such field.  Its Pixel Value Transformation (C.7.6.16.2.9) maps to values
    of RescaleType, which for PET is US, unspecified; only the Real World Value Mapping (C.7.6.16.2.11), which maps the
    *stored* values too, has a unit.  So it is the one that is used.  An identity without a unit says nothing.
    """
    transform = macros.get("PixelValueTransformationSequence")
    _copy(flat, transform, "RescaleSlope", "RescaleIntercept", "RescaleType")
    if modality == "CT":
        if not has_value(transform, "RescaleSlope"):
            raise _unsupported(file, modality, f"no {tag_name('PixelValueTransformationSequence')} of a frame")
        return
    told = text_of(flat, "Units")
    mapping = _mapping(macros, told, file)
    rescale = tuple(number_of(transform, name, file) for name in ("RescaleSlope", "RescaleIntercept"))
    if mapping is None:
        if told and rescale[0] is not None:
            return
        keyword = "PixelValueTransformationSequence" if told else "RealWorldValueMappingSequence"
        raise _unsupported(file, modality, f"no {tag_name(keyword)} of a frame with a unit of PET")
    (units, suv_type), slope, intercept = mapping
    a, b = rescale[0], rescale[1] or 0.0
    compared = a is not None and (told or (a, b) != (1.0, 0.0))
    if compared and max(abs((a or 0.0) - slope), abs(b - intercept)) > CONTRADICTION * abs(slope):
        found = f"{tag_name('RescaleSlope')} and {tag_name('RealWorldValueSlope')} differ by more than 1 %"
        raise file_error("SER_INCONSISTENT_HEADER", file, found)
    if not told:
        _put(flat, "Units", units)
        _put(flat, "RescaleSlope", repr(slope))
        _put(flat, "RescaleIntercept", repr(intercept))
        if suv_type:
            _put(flat, "SUVType", suv_type)


def _mapping(macros: _Macros, told: str, file: Path) -> tuple[tuple[str, str], float, float] | None:
    """The unit, slope and intercept that a frame's stored values are mapped with: activity rather than SUV.

    Args:
        told: Units, whose mapping is the only one that matters, if it is there.
    """
    found = []
    for item in macros.all("RealWorldValueMappingSequence"):
        slope = _double(item, "RealWorldValueSlope", file)
        code = _first(item, "MeasurementUnitsCodeSequence")
        unit = _unit(text_of(code, "CodeValue") or text_of(code, "LongCodeValue"))  # of more than 16 characters
        if slope is not None and unit is not None and told in ("", unit[0]):
            found.append((unit, slope, _double(item, "RealWorldValueIntercept", file) or 0.0))
    if not found:
        return None
    best = min(found, key=lambda m: _SUV_UNITS.index(m[0][0]) if m[0][0] in _SUV_UNITS else len(_SUV_UNITS))
    if any(m[0] == best[0] and abs(m[1] - best[1]) > CONTRADICTION * abs(best[1]) for m in found):
        raise file_error("SER_INCONSISTENT_HEADER", file, f"two {tag_name('RealWorldValueSlope')} of one unit")
    return best


def _unit(code: str) -> tuple[str, str] | None:
    """Units and SUVType of a UCUM code, whose annotation stood behind the unit once: g/ml{SUVbw}."""
    parts = re.fullmatch(r"(?:\{(.*)\})?([^{}]*)(?:\{(.*)\})?", code)
    return UNITS.get((parts[2], parts[1] or parts[3] or "")) if parts else None


def _describe(flat: Dataset, macros: _Macros, keyword: str) -> None:
    """FrameType (C.8.16.1) as the ImageType of a classic slice."""
    words = (text_of(macros.get(keyword), "FrameType") or text_of(flat, "ImageType")).split("\\")
    _put(flat, "ImageType", "\\".join([*words, *(PICTURES[w.strip()] for w in words if w.strip() in PICTURES)]))


def _unsupported(file: Path, modality: str, found: str) -> InputError:
    code = "PET_ENHANCED_UNSUPPORTED" if modality == "PT" else "CT_ENHANCED_UNSUPPORTED"
    return file_error(code, file, found, "export classic single-frame slices")
