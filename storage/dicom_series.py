"""The DICOM series below a path: which files belong together, which series is meant, and how its slices are stacked."""

import errno
import math
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from storage import dicom_words, layout
from storage.dicom_frames import distinct, frames_of, lacking_frames, places_of, told_frames
from storage.dicom_header import (
    Header,
    as_stored,
    file_error,
    integer_of,
    integer_text,
    items_of,
    number_of,
    tag_name,
    text_of,
)
from storage.dicom_slice import (
    DICOM_SUFFIXES,
    DRUG_FIELDS,
    SERIES_FIELDS,
    Modality,
    Slice,
    Unusable,
    is_picture,
    pixels_of,
    scan,
)
from storage.errors import InputError, no_file
from storage.source import Grid

GAP_TOLERANCE = 0.025  # of the spacing, per gap: GE writes 3.19 and 3.29 mm at bed seams of 3.27 mm
GAP_RATIO = 1.5  # of a PET's slice thickness: its slices touch
SAME_PLACE_MM = 1e-2
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # of a link, or of what went since its folder was listed
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
_BY_SITK = "convert it to NIfTI, for instance by SimpleITK.WriteImage(SimpleITK.ReadImage(old), 'new.nii.gz')"
_BY_NIBABEL = "save it as one file, for instance by nibabel.save(nibabel.load(old), 'new.nii.gz')"
_UNPACK = "unpack it, and give the folder"
# suffix of files that users have and that are not read -> what they are, how to convert them
FORMATS = {
    **dict.fromkeys((".img", ".hdr"), ("half of an Analyze or NIfTI pair, or an Interfile", _BY_NIBABEL)),
    **dict.fromkeys((".nrrd", ".nhdr"), ("NRRD", _BY_SITK)),
    **dict.fromkeys((".mha", ".mhd"), ("MetaImage", _BY_SITK)),
    **dict.fromkeys((".v", ".s"), ("ECAT", "convert it to NIfTI or DICOM by the scanner's software, or by PET2BIDS")),
    **dict.fromkeys((".i", ".hv", ".h33"), ("Interfile", "convert it to NIfTI or DICOM where it was reconstructed")),
    **dict.fromkeys((".mgz", ".mgh", ".mnc"), ("an image of FreeSurfer or MINC", _BY_NIBABEL)),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz"), ("an archive", _UNPACK)),
    **dict.fromkeys((".npy", ".npz", ".mat", ".h5"), ("an array without a place in the patient", "save it as NIfTI")),
}
# what may have been a slice -> how an error calls it
LOST = {
    "empty_files": "empty files",
    "zeroed_files": "files of zeros",
    "hidden_slices": "hidden DICOM files",
    "broken_links": "links to no file",
    "damaged_series": "files of a damaged series",
}


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one series in a folder, unsorted.

    Args:
        skipped: how many other files there are.
        beside: what lies beside the slices and should be known -> how often.
    """

    modality: Modality
    slices: tuple[Slice, ...] = field(repr=False)
    skipped: int = 0
    beside: Mapping[str, int] = field(default_factory=dict)

    @property
    def enhanced(self) -> bool:
        """Whether its slices are frames of enhanced objects."""
        return self.slices[0].frame is not None


@dataclass(frozen=True)
class Belonging:
    """Whom a series must be of: the patient and the frame of reference of another one."""

    patient_id: str = field(repr=False)
    frame_of_reference: str = field(repr=False)


@dataclass(frozen=True, eq=False)
class Volume:
    """The slices of one series, sorted, and where they lie."""

    slices: tuple[Slice, ...]
    grid: Grid
    notes: tuple[str, ...]
    skipped: int


def find_series(folder: Path, *, modality: Modality) -> tuple[Series, ...]:
    """Scan a folder (with its subfolders) or one file for series of one modality, largest first.

    Files that are not DICOM, of another modality, secondary captures, localizers and other pictures are passed by and
    counted, and so is a damaged series beside a whole one.  Links are followed, each file is read once.  A file that
    claims to be a slice and is damaged is an error.

    Raises:
        InputError: ``IMG_NO_FILE``, ``IMG_UNREADABLE``, ``DCM_NONE``, ``DCM_EMPTY``, ``DCM_NOT_DICOM``,
            ``DCM_NO_PREAMBLE``, ``DCM_PREAMBLE_EXEC``, ``DCM_TRUNCATED``, ``DCM_PIXELS_SHORT``, ``DCM_PIXELS_LONG``,
            ``DCM_GEOMETRY_INVALID``, ``DCM_BOMB``, ``DCM_TOO_DEEP``, ``DCM_CODEC_MISSING``, ``DCM_BAD_NUMBER``,
            ``DCM_BAD_TIME``, ``DCM_BAD_UID``, ``DCM_MULTIFRAME``, ``DCM_BAD_FRAMES``,
            ``PET_ENHANCED_UNSUPPORTED``, ``CT_ENHANCED_UNSUPPORTED``, ``PET_BAD_SLOPE``, ``PET_BAD_INTERCEPT``,
            ``SER_NO_GEOMETRY``, ``SER_INCONSISTENT_HEADER``, ``PET_TIME_MISSING``.
    """
    if not folder.exists():
        raise no_file(folder)
    groups: dict[tuple[str, bool], list[Slice]] = defaultdict(list)
    unusable: dict[str, list[Unusable]] = defaultdict(list)
    unread: list[InputError] = []
    beside: Counter[str] = Counter()
    skipped = 0
    for file in _files(folder, beside):
        try:
            slices = scan(file, modality)
        except PermissionError:
            raise file_error("IMG_UNREADABLE", file, "a file that may not be read", "check its permissions") from None
        except InputError as error:
            if error.code not in ("PET_ENHANCED_UNSUPPORTED", "CT_ENHANCED_UNSUPPORTED"):
                raise
            unread.append(error)  # archives keep such an object beside the classic slices it was made of
            slices = ()
        if isinstance(slices, Unusable):
            unusable[slices.series_uid].append(slices)
            continue
        skipped += not slices
        for s in slices:
            groups[s.series_uid, s.frame is None].append(s)
    skipped += beside["empty_files"] + beside["zeroed_files"]
    for key, held in list(groups.items()):
        volume = [s for s in held if not is_picture(s.header)]
        localizers = all("LOCALIZER" in text_of(s.header, "ImageType") for s in held)
        if volume or localizers:  # other pictures may be all that a user has: which is chosen among series, later
            skipped += len(held) - len(volume)
            if volume and len(volume) < len(held):
                beside["pictures_in_series"] += len(held) - len(volume)
            groups[key] = volume
    groups = {key: held for key, held in groups.items() if held}
    whole = {uid for uid, _ in groups}
    for uid, files in unusable.items():
        damaged = next((one.error for one in files if not one.picture), None)
        if damaged is not None and (uid in whole or not groups):
            raise damaged
        skipped += len(files)
        beside["damaged_series" if damaged is not None else "pictures"] += len(files)
    if not groups and unread:
        raise unread[0]
    beside["enhanced_object"] += len(unread)
    if not groups and folder.is_file():
        _refuse_format(folder)
    if not groups:
        broken = beside["broken_links"]
        for mark, kind in ((layout.CATALOG, "a cohort"), (layout.RUN, "a run")):
            if (folder / mark).is_file():
                remedy = "it needs no ingest; petscale export writes its images as DICOM or NIfTI"
                raise InputError("DCM_NONE", where=folder.name, found=f"{kind} of petscale, and no scan", remedy=remedy)
        raise InputError(
            "DCM_NONE",
            where=folder.name,
            found=f"no {modality} slice, {skipped} other files" + (f", {broken} links to no file" if broken else ""),
            remedy="get the linked files first (git annex get, datalad get)"
            if broken
            else f"give the folder of one {modality} series",
        )
    found = [Series(modality, tuple(held), skipped, beside) for held in groups.values()]
    return tuple(sorted(found, key=lambda series: -len(series.slices)))


def _refuse_format(file: Path) -> None:
    """Refuse a file of a format that is known and not read, and say how to convert it.

    Raises:
        InputError: ``IMG_FORMAT``.
    """
    told = FORMATS.get(file.suffix.lower())
    if told is not None:
        raise file_error("IMG_FORMAT", file, f"{told[0]}, which is not read", told[1])


def find_volume(path: Path, modality: Modality, of: Belonging | None, choice: str) -> Volume:
    """Find the one series that is meant below a path and sort its slices; as ``open_series``, without values."""
    found = find_slices(path, modality, of, choice)
    slices, notes = _one_volume(found.slices, path.name)
    return stacked(slices, notes, found, path.name)


@dataclass(frozen=True, eq=False)
class Found:
    """The one series that is meant: its slices, unsorted and alike but for their places and times.

    Args:
        skipped: how many other files there are.
        beside: what lies beside the slices and should be known -> how often.
    """

    slices: tuple[Slice, ...]
    skipped: int
    beside: Mapping[str, int]


def find_slices(path: Path, modality: Modality, of: Belonging | None, choice: str) -> Found:
    """Find the one series that is meant below a path; as ``open_series``, without values."""
    series = find_series(path, modality=modality)
    if len(series) > 2 and all(len(s.slices) == 1 for s in series):
        raise series_error("SER_INCONSISTENT_UID", path.name, f"{len(series)} slices with {len(series)} series UIDs")
    asked = _chosen(series, choice, path.name) if choice else series
    copies = [s for s in asked if s.enhanced and any(_is_copy(s, c) for c in asked)]
    originals = [s for s in asked if s not in copies]
    meant = originals if choice else _meant(originals, of)
    if len(meant) > 1:
        remedy = "choose one by its number (--series), or put each series in a folder of its own"
        raise series_error("SER_AMBIGUOUS", path.name, "; ".join(series_line(s) for s in meant), remedy)
    slices = meant[0].slices
    skipped = series[0].skipped + sum(len(s.slices) for s in series if s is not meant[0])
    _check_alike(slices, path.name)
    _check_strays(meant[0], series, path.name)
    beside = {**meant[0].beside, "enhanced_copy": len(copies)}
    return Found(slices, skipped, beside)


def _check_strays(meant: Series, series: Sequence[Series], where: str) -> None:
    """Refuse a series that lacks slices which lie beside it under another series UID: a damaged or a scrambled one.

    Raises:
        InputError: ``SER_INCONSISTENT_UID``.
    """
    first = meant.slices[0]
    lacking = integer_of(first.header, "NumberOfSlices") - len(meant.slices)
    number = integer_text(first.header, "SeriesNumber")
    strays = [s for s in series if s is not meant and len(s.slices) <= lacking and s.slices[0].shape == first.shape]

    def beside(s: Series) -> bool:
        """Whether its slices continue the stack: in line with it, at places where it has none."""
        places = [one.along for one in meant.slices]
        return all(
            np.abs(one.normal - first.normal).max() < 1e-3
            and np.abs(one.position - one.along * one.normal - first.position + first.along * first.normal).max() < 1.0
            and not min(places) <= one.along <= max(places)
            for one in s.slices
        )

    if any(integer_text(s.slices[0].header, "SeriesNumber") == number or beside(s) for s in strays):
        raise series_error(
            "SER_INCONSISTENT_UID",
            where,
            f"{len(meant.slices)} of {len(meant.slices) + lacking} slices, and others that continue them under another "
            "series UID",
            "export the series again with one series UID",
        )


def stacked(slices: tuple[Slice, ...], notes: tuple[str, ...], found: Found, where: str) -> Volume:
    """Return the volume of sorted slices, one per place.

    Raises:
        InputError: ``IMG_TOO_SMALL``, ``SER_TILT``, ``SER_NONUNIFORM``, ``SER_MISSING_SLICE``.
    """
    grid, grid_notes = _stack(slices, where)
    notes += grid_notes
    if modality_of(slices) == "PT" and grid.spacing_mm[0] > GAP_RATIO * _thickness_mm(slices[0]):
        notes += ("gaps_between_slices",)
    if modality_of(slices) == "PT" and any(s.intercept for s in slices):
        notes += ("intercept_applied",)
    notes += _beside_notes(found, slices, where)
    skipped = found.skipped
    return Volume(slices, grid, notes, skipped)


def _thickness_mm(s: Slice) -> float:
    """SliceThickness, infinite where it is not stated: nothing is placed by it."""
    try:
        return number_of(s.header, "SliceThickness", s.file) or math.inf
    except InputError:
        return math.inf


def modality_of(slices: Sequence[Slice]) -> str:
    """Return the modality of slices of one series."""
    return text_of(slices[0].header, "Modality")


def _beside_notes(found: Found, slices: Sequence[Slice], where: str) -> tuple[str, ...]:
    """What lies beside a volume, as notes; what may have been its slices, where the header says that some are missing.

    NumberOfSlices (0054,0081) alone does not refuse: it often stays when somebody cuts a series to a region.

    Raises:
        InputError: ``SER_MISSING_SLICE``.
    """
    stated = max(integer_of(s.header, "NumberOfSlices") for s in slices)
    lost = {kind: count for kind, count in found.beside.items() if kind in LOST and count}
    if len(slices) < stated and lost:
        told = ", ".join(f"{count} {LOST[kind]}" for kind, count in lost.items())
        raise series_error(
            "SER_MISSING_SLICE",
            where,
            f"{len(slices)} of {stated} slices (NumberOfSlices), and {told}",
            "copy it again",
        )
    notes = tuple(f"{kind}_passed_by" for kind, count in found.beside.items() if count)
    return notes + ("fewer_slices_than_header_says",) * (len(slices) < stated)


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


def _words(header: Header, keyword: str) -> list[str]:
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
        raise series_error("SER_NOT_CHOSEN", where, f"no series is the one asked for: {listed}", "choose one of these")
    return found


def _meant(series: Sequence[Series], of: Belonging | None) -> Sequence[Series]:
    """Narrow the series of one modality down, by each rule only where it leaves something."""

    def words(s: Series, keyword: str) -> set[str]:
        return {*_words(s.slices[0].header, keyword)}

    def belongs(s: Series) -> bool:
        theirs = tuple(text_of(s.slices[0].header, name) for name in ("PatientID", "FrameOfReferenceUID"))
        return of is None or theirs == (of.patient_id, of.frame_of_reference)

    rules: tuple[Callable[[Series], bool], ...] = (
        lambda s: len(s.slices) > 1,
        lambda s: not is_picture(s.slices[0].header),
        belongs,
        lambda s: s.modality == "CT" or "ATTN" in words(s, "CorrectedImage"),
        lambda s: not {"SECONDARY", "PETSCALE"} & words(s, "ImageType"),
    )
    for rule in rules:
        series = [s for s in series if rule(s)] or series
    return series


def _is_copy(series: Series, classic: Series) -> bool:
    """Whether an enhanced series holds a classic one once more: places and, in the middle, values are the same."""
    if classic.enhanced or len(series.slices) != len(classic.slices):
        return False
    moments = ("AcquisitionDate", "AcquisitionTime", "TriggerTime")
    a, b = (
        sorted(s.slices, key=lambda s: (round(s.along, 1), *(text_of(s.header, name) for name in moments)))
        for s in (series, classic)
    )
    if any(text_of(a[0].header, name) != text_of(b[0].header, name) for name in ("PatientID", "FrameOfReferenceUID")):
        return False
    pairs = [*zip(a, b, strict=True)]
    if any(x.shape != y.shape or np.abs(x.position - y.position).max() > SAME_PLACE_MM for x, y in pairs):
        return False
    middle = pairs[len(pairs) // 2]
    ours, theirs = (pixels_of(s).astype(np.float64) * s.slope + s.intercept for s in middle)
    return len({text_of(s.header, "Units") for s in middle}) == 1 and np.allclose(ours, theirs, rtol=1e-4)


# -- files ------------------------------------------------------------------------------------------------------------


def _files(path: Path, beside: Counter[str]) -> Iterator[Path]:
    """Files below ``path`` in a stable order, each once; links are followed.

    Passed by are devices, and hidden files; counted in ``beside`` is what may have been a slice: an empty file, one of
    zeros, a hidden DICOM file (of a copy that was interrupted), a link to no file.

    Raises:
        InputError: ``IMG_UNREADABLE`` for a folder: slices may lie in it.
    """
    if path.is_file():
        yield path
        return

    def unreadable(error: OSError) -> NoReturn:
        folder = Path(str(error.filename))
        raise file_error("IMG_UNREADABLE", folder, "a folder that may not be read", "check its permissions") from None

    seen: set[tuple[int, int]] = set()

    def new(status: os.stat_result) -> bool:
        before = len(seen)
        seen.add((status.st_dev, status.st_ino))
        return len(seen) > before

    new(path.stat())
    for folder, subfolders, names in os.walk(path, followlinks=True, onerror=unreadable):
        subfolders[:] = [name for name in sorted(subfolders) if new(os.stat(Path(folder, name)))]  # no loop either
        for name in sorted(names):
            file = Path(folder, name)
            try:
                status = file.stat()
            except OSError as error:
                if error.errno not in _NO_FILE:
                    raise
                beside["broken_links"] += file.is_symlink()
                continue
            if not stat.S_ISREG(status.st_mode) or not new(status):
                continue
            if name.startswith("."):
                beside["hidden_slices"] += _starts(file)[128:132] == b"DICM"
            elif file.suffix.lower() in DICOM_SUFFIXES or name.lower() in SYSTEM_FILES or any(start := _starts(file)):
                yield file
            else:
                beside["zeroed_files" if start else "empty_files"] += 1


def _starts(file: Path) -> bytes:
    """The first bytes of a file, more than a preamble."""
    try:
        with file.open("rb") as stream:
            return stream.read(256)
    except PermissionError:
        raise file_error("IMG_UNREADABLE", file, "a file that may not be read", "check its permissions") from None


# -- one series -------------------------------------------------------------------------------------------------------


def _check_alike(slices: Sequence[Slice], where: str) -> None:
    """Refuse slices that cannot be one volume: of other shape, direction, patient, unit, correction or dose."""
    first = slices[0]
    shapes = {(s.shape, s.dtype[1:]) for s in slices}
    if len(shapes) > 1 or not np.allclose([s.pixel_mm for s in slices], first.pixel_mm, rtol=1e-4):
        raise series_error("SER_MIXED_SHAPE", where, "slices of different matrix, bit depth or pixel spacing")
    directions = np.array([(s.row, s.column) for s in slices])
    if np.abs(directions - directions[0]).max() > 1e-3:
        raise series_error("SER_MIXED_ORIENTATION", where, "slices of different orientation")
    for name in SERIES_FIELDS:
        values = {as_stored(s.header, name) or text_of(s.header, name) for s in slices}
        if len(values) > 1 and len({text_of(s.header, name) for s in slices}) > 1:
            raise series_error("SER_INCONSISTENT_HEADER", where, f"{tag_name(name)} differs between slices")
    # Most series repeat these bytes in every slice, and to parse them takes longer than to compare them.
    keys = [as_stored(s.header, "RadiopharmaceuticalInformationSequence") or id(s) for s in slices]
    stated = {(s.syntax, key): s for s, key in zip(reversed(slices), reversed(keys), strict=True)}
    if len({_radiopharmaceutical(s) for s in reversed(stated.values())}) > 1:
        raise series_error("SER_INCONSISTENT_HEADER", where, "(0054,0016) differs between slices")


def _one_volume(slices: Sequence[Slice], where: str) -> tuple[tuple[Slice, ...], tuple[str, ...]]:
    """Sort by position along the normal; drop exact copies; refuse several volumes in one series."""
    places = places_of(slices)
    dynamic = text_of(slices[0].header, "SeriesType").startswith(("DYNAMIC", "GATED"))
    if dynamic and len(slices) > len(places):
        _refuse_frames(slices, where)  # before pixels are compared: frames of a phantom may be equal
    different = [distinct(place) for place in places]
    counts = Counter(len(place) for place in different)
    if set(counts) == {1}:
        copies = len(slices) - len(places)
        return tuple(place[0] for place in different), ("identical_slices_dropped",) * bool(copies)
    several = len(places) - counts[1]
    if len(counts) == 1 and len(places) > 1:
        _refuse_frames(slices, where)
        found = f"{next(iter(counts))} frames of {len(places)} slices, and nothing says which slice is of which frame"
        raise series_error("SER_DYNAMIC", where, found, "export one frame, or the static reconstruction")
    if 2 * several > len(places) or dynamic:
        _refuse_frames(slices, where)
        found = f"several frames, of which one has {several} of {len(places)} slices"
        raise series_error("SER_PARTIAL_VOLUME", where, found, "copy the whole series, or export one complete frame")
    raise series_error("SER_DUPLICATE_SLICE", where, f"{several} positions with two different slices")


def _refuse_frames(slices: Sequence[Slice], where: str) -> None:
    """Refuse several frames or gates where they can be told apart, saying how to choose among them."""
    found = frames_of(slices)
    if found is not None and len(found.frames) > 1:
        lacking = lacking_frames(found)
        told, remedy = told_frames(found, lacking)
        if text_of(slices[0].header, "Modality") != "PT":  # frames are chosen of a PET alone
            remedy = "export one phase, or the average of all, as a series of its own"
        raise series_error("SER_PARTIAL_VOLUME" if lacking else "SER_DYNAMIC", where, told, remedy)


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
        raise series_error("SER_TILT", where, f"a stack sheared by {tilt:.1f} degrees", "export it without tilt")
    if np.abs(sideways).max() > 0.1 * min(first.pixel_mm):
        raise series_error("SER_NONUNIFORM", where, "slices shifted in plane")
    missing = np.flatnonzero(gaps > 1.5 * usual)
    if missing.size:
        k = int(missing[0])
        found = f"a gap of {gaps[k]:.2f} mm after slice {k} where {usual:.2f} mm is usual"
        raise series_error("SER_MISSING_SLICE", where, found, "copy the whole series")
    off = np.abs(gaps - usual)
    drift = np.abs(along - along[0] - spacing * np.arange(len(slices)))
    if off.max() > GAP_TOLERANCE * usual or drift.max() > spacing:
        found = f"gaps of {gaps.min():.3f} to {gaps.max():.3f} mm"
        raise series_error("SER_NONUNIFORM", where, found, "export slices of one spacing")

    lps = np.eye(4)
    lps[:3, 0] = first.row * first.pixel_mm[1]  # PixelSpacing is (between rows, between columns)
    lps[:3, 1] = first.column * first.pixel_mm[0]
    lps[:3, 2] = first.normal * spacing
    lps[:3, 3] = first.position
    grid = Grid((len(slices), *first.shape), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    return grid, ("slice_spacing_irregular",) * bool(off.max() > 1e-3 * usual)


def drugs_of(ds: Header) -> Sequence[Header]:
    """Return the radiopharmaceuticals of a header."""
    return items_of(ds, "RadiopharmaceuticalInformationSequence")


def _radiopharmaceutical(s: Slice) -> tuple[tuple[str, ...], ...]:
    try:
        return tuple(tuple(text_of(drug, name) for name in DRUG_FIELDS) for drug in drugs_of(s.header))
    except Exception:  # pydicom parses on access: a malformed sequence raises whatever its parser meets
        raise file_error("DCM_TRUNCATED", s.file, "(0054,0016) that cannot be read") from None


def series_error(
    code: str, where: str, found: str, remedy: str = "keep one complete series in the folder"
) -> InputError:
    """Return the error that names one folder."""
    return InputError(code, where=where, found=found, remedy=remedy)
