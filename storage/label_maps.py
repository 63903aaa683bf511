"""Files of labels that users own, as the one image ``labels`` of a case: organs and lesions on the grid of its PET.

Read are NIfTI label maps and lesion masks, DICOM segmentations and structure sets.  Several are merged.  Labels are
never interpolated: a file lies on the very voxels of the grid, in whatever order of axes, or is refused.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage import dicom_seg, rtstruct
from storage.dicom_fields import DEFLATED
from storage.dicom_header import file_error, stated_class
from storage.errors import InputError
from storage.geometry import SAME_VOXEL_MM, Placement, difference, place
from storage.label_names import HIGHEST, LESION, is_lesion, listed
from storage.nifti import NiftiSource, open_nifti
from storage.source import LABEL, Grid, ImageSource

SLAB_VOXELS = 8 << 20
EMPTY = "it is empty: no lesion in this patient"


@dataclass(frozen=True)
class LabelMap:
    """A file whose values are different things.

    Args:
        path: NIfTI, DICOM SEG or RTSTRUCT; a folder that holds one SEG or RTSTRUCT.
        names: value (number of a segment or structure) -> name; what has no name is left out, with a note.  None: the
            names that the file itself says; a NIfTI file says none and may then have one value only, which is lesion.
    """

    path: Path
    names: Mapping[int, str] | None = None


@dataclass(frozen=True)
class LesionMask:
    """A file whose every value above 0 (1, 255, a number per lesion), segment or structure is lesion.

    Args:
        path: as for ``LabelMap``.
    """

    path: Path


LabelFile = LabelMap | LesionMask


@dataclass(frozen=True, eq=False)
class LabelImage:
    """Labels on a grid as an ``ImageSource``; the voxels (z, y, x), uint16, are in a file below the caller's folder."""

    grid: Grid
    voxels: Path = field(repr=False)
    provenance: Mapping[str, object]
    units: str = LABEL

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1``."""
        stored = np.memmap(self.voxels, dtype=np.uint16, mode="r", shape=self.grid.shape)
        return np.array(stored[z0:z1], dtype=np.float32, order="C")


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a case.

    Args:
        image: units ``label``, 0 where nothing is labelled.
        names: value in the image -> name; lesions are those whose name begins with ``lesion``.
        notes: sentences for the user, of numbers and names of labels: what was left out, empty, put into another order
            or claimed twice.
    """

    image: LabelImage
    names: dict[int, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Layer:
    """One file on its own voxels: where these lie in the grid, what its values are called and how they were drawn."""

    source: ImageSource
    place: Placement
    names: Mapping[int, str]
    notes: tuple[str, ...]
    drawn: Mapping[int, str] = field(default_factory=dict)


def open_labels(files: Sequence[LabelFile], *, grid: Grid, workdir: Path, frame_of_reference: str = "") -> Labels:
    """Read and merge label files onto a grid.

    Where two files claim a voxel a lesion wins over an organ, else the later file; a note says how often.  A value
    stays what it is in its file unless another name has it already; lesions of a ``LesionMask`` are value 1.  An empty
    lesion mask is a patient without lesions: the name ``lesion`` stays, and a note says so.  A NIfTI file is read slab
    by slab; DICOM objects are rasterised as uint16 in memory; the result is a file of uint16 below ``workdir``.

    Args:
        files: at least one.
        grid: of the PET, or the one the case is given.
        workdir: takes the result and inflated copies; the caller removes it when the image is no longer read.
        frame_of_reference: UID of the PET's; empty if unknown.  A SEG or RTSTRUCT of another one is refused.

    Raises:
        InputError: ``LBL_FORMAT``, ``LBL_VALUES``, ``PAIR_GRID_MISMATCH``, ``LBL_FRAME``, ``LBL_SEG``,
            ``LBL_STRUCTURES``, ``LBL_OUTSIDE``, ``DCM_BOMB``, ``DISK_FULL``, and every code of
            ``storage.nifti.open_nifti``.
    """
    if not files:
        raise ValueError("no label file")
    layers = [_open(file, grid, workdir, frame_of_reference) for file in files]
    names = _numbered(files, layers)
    notes = [f"{title}: {note}" for title, layer in zip(_titles(files), layers, strict=True) for note in layer.notes]
    path = _room(workdir, grid)
    voxels = np.memmap(path, dtype=np.uint16, mode="r+", shape=grid.shape)
    values = {name: value for value, name in names.items()}
    lesion = np.zeros(HIGHEST + 1, dtype=np.bool_)
    lesion[[value for value, name in names.items() if is_lesion(name)]] = True
    over_organs = over_others = 0
    for layer in layers:
        to_value = np.zeros(HIGHEST + 1, dtype=np.uint16)
        for value, name in layer.names.items():
            to_value[value] = values[name]
        part = layer.place.view(voxels)
        for z0, z1 in _slabs(layer.source.grid.shape):
            new = to_value[layer.source.read(z0, z1).astype(np.uint16)]
            held = part[z0:z1]
            clash = (new > 0) & (held > 0) & (new != held)
            mixed = clash & (lesion[new] != lesion[held])
            over_organs += int(np.count_nonzero(mixed))
            over_others += int(np.count_nonzero(clash & ~mixed))
            taken = (new > 0) & ~(mixed & lesion[held])
            held[taken] = new[taken]
    voxels.flush()
    if over_organs:
        notes.append(f"{over_organs} voxels of both an organ and a lesion are lesion")
    if over_others:
        notes.append(f"{over_others} voxels that two files name differently are what the later file says")
    facts: dict[str, object] = {"format": "labels", "notes": notes}
    facts["files"] = [str(layer.source.provenance["format"]) for layer in layers]
    if drawn := _drawn(layers):
        facts["drawn"] = drawn
    return Labels(LabelImage(grid, path, facts), names, tuple(notes))


# -- one file ---------------------------------------------------------------------------------------------------------


def _open(file: LabelFile, grid: Grid, workdir: Path, frame_of_reference: str) -> _Layer:
    path, kind = _kind(Path(file.path))
    if kind == "nifti":
        if isinstance(file, LesionMask):
            return _nifti_mask(path, grid, workdir)
        return _nifti_map(path, file.names, grid, workdir)
    source = (
        _segments(path, file, frame_of_reference)
        if kind == "seg"
        else _structures(path, file, grid, frame_of_reference)
    )
    placement = _placed(path, source.grid, grid, dicom_seg.OFF_PLACE * min(grid.spacing_mm))
    counts = _counts(source)
    if isinstance(file, LesionMask):
        taken = [f"{name} ({number})" for number, name in source.names.items()]
        several = (f"all of these are taken for lesions: {listed(taken)}",) if len(taken) > 1 else ()
        empty = () if counts else (EMPTY,)
        notes = [*source.notes, *several, *empty]
        return _Layer(source, placement, dict.fromkeys(source.names, LESION), tuple(notes), source.drawn)
    names, notes = _named(path, counts, source.names if file.names is None else file.names)
    unknown = [number for number, name in source.names.items() if name in (f"segment_{number}", f"structure_{number}")]
    if file.names is None and unknown:
        what = f"nothing that petscale knows as a name is in the file for numbers {listed(unknown)}"
        notes.append(f"{what}; name them, as {unknown[0]}=liver")
    if file.names is None:
        for name in dict.fromkeys(source.names.values()):
            numbers = [number for number, other in source.names.items() if other == name]
            if len(numbers) > 1:
                notes.append(f"numbers {listed(numbers)} are all called {name} and are one label")
    return _Layer(source, placement, names, (*source.notes, *notes), source.drawn)


def _segments(path: Path, file: LabelFile, frame_of_reference: str) -> dicom_seg.SegSource:
    source = dicom_seg.open_seg(path, wanted=file.names if isinstance(file, LabelMap) else None)
    if frame_of_reference and source.frame_of_reference not in ("", frame_of_reference):
        raise InputError(
            "LBL_FRAME",
            where=path.name,
            found="segments of another frame of reference than the PET's",
            remedy="give the segmentation that was drawn on this examination",
        )
    return source


def _structures(path: Path, file: LabelFile, grid: Grid, frame_of_reference: str) -> rtstruct.StructureSource:
    """The structures that are meant, on the grid."""
    found = rtstruct.read_structures(path)
    if isinstance(file, LesionMask):
        meant = {n: s for n, s in found.items() if not s.no_lesion}
        why, remedy = "stated to be no lesions", "name the lesions by number, as 3=lesion, in a label map"
    else:
        meant = found if file.names is None else {n: found[n] for n in file.names if n in found}
        why, remedy = "without a name", "name structures by their number, as 1=liver,2=brain"
    left_out = listed(sorted(found.keys() - meant.keys()))
    if not meant:
        raise InputError("LBL_VALUES", where=path.name, found=f"all structures are {why}: {left_out}", remedy=remedy)
    source = rtstruct.rasterise(meant, path, grid=grid, frame_of_reference=frame_of_reference)
    told = (f"structures {why} are left out: {left_out}",) if left_out else ()
    return replace(source, notes=(*told, *source.notes))


def _nifti_map(path: Path, names: Mapping[int, str] | None, grid: Grid, workdir: Path) -> _Layer:
    source = open_nifti(path, units="label", workdir=workdir)
    placement = _whole(path, source.grid, grid)
    turned = _turned(placement)
    counts = _counts(source)
    if names is None:
        if len(counts) > 1:
            raise _unnamed(path, counts, "no names")
        value = next(iter(counts), 1)
        note = f"no names were given: its one value, {value}, is taken for lesions" if counts else "it is empty"
        return _Layer(source, placement, {value: LESION}, (*turned, note))
    named, notes = _named(path, counts, names)
    return _Layer(source, placement, named, (*turned, *notes))


def _nifti_mask(path: Path, grid: Grid, workdir: Path) -> _Layer:
    # Any unit but labels, which have to be whole numbers: a mask scaled to 0 and 0.9999 is one too.
    source = open_nifti(path, units="HU", workdir=workdir)
    placement = _whole(path, source.grid, grid)
    positive: set[float] = set()
    for z0, z1 in _slabs(source.grid.shape):
        values = np.unique(source.read(z0, z1))
        positive |= set(values[values > 0].tolist())
        if values.min() < 0 or (len(positive) > 1 and not all(v.is_integer() for v in positive)):
            raise InputError(
                "NII_BAD_LABEL",
                where=path.name,
                found=f"values below 0 or between whole numbers in slices {z0} to {z1 - 1}",
                remedy="give a mask, not an image; a resampled mask needs a threshold first",
            )
    empty = () if positive else (EMPTY,)
    several = (f"its {len(positive)} values are all taken for lesions",) if len(positive) > 1 else ()
    return _Layer(_Above0(source), placement, {1: LESION}, (*_turned(placement), *empty, *several))


@dataclass(frozen=True, eq=False)
class _Above0:
    """1 where a mask is above 0."""

    mask: NiftiSource
    units: str = LABEL

    @property
    def grid(self) -> Grid:
        return self.mask.grid

    @property
    def provenance(self) -> Mapping[str, object]:
        return self.mask.provenance

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        return (self.mask.read(z0, z1) > 0).astype(np.float32)


def _named(path: Path, counts: Mapping[int, int], names: Mapping[int, str]) -> tuple[dict[int, str], list[str]]:
    """The names that occur, and notes on values without a name and names without a voxel."""
    found = {value: name for value, name in names.items() if value in counts}
    if counts and not found:
        raise _unnamed(path, counts, "none of the names given")
    notes = []
    others = {value: n for value, n in counts.items() if value not in names}
    if others:
        told = listed(f"{value} ({n} voxels)" for value, n in others.items())
        notes.append(f"values without a name are left out: {told}")
    absent = [f"{name} ({value})" for value, name in names.items() if value not in counts]
    if absent:
        notes.append(f"names without a voxel: {listed(absent)}")
    return found, notes


def _unnamed(path: Path, counts: Mapping[int, int], what: str) -> InputError:
    return InputError(
        "LBL_VALUES",
        where=path.name,
        found=f"{what} for the values {listed(f'{value} ({n} voxels)' for value, n in counts.items())}",
        remedy="name its values (1=liver,5=brain or totalsegmentator), or give it as a lesion mask",
    )


def _counts(source: ImageSource) -> dict[int, int]:
    """Value above 0 -> voxels."""
    total = np.zeros(HIGHEST + 1, dtype=np.int64)
    for z0, z1 in _slabs(source.grid.shape):
        total += np.bincount(source.read(z0, z1).astype(np.uint16).ravel(), minlength=HIGHEST + 1)
    return {int(value): int(total[value]) for value in np.flatnonzero(total) if value}


def _kind(path: Path) -> tuple[Path, str]:
    """The file that is meant, and how it is read: ``nifti``, ``seg`` or ``rtstruct``."""
    if not path.exists():
        raise InputError("IMG_NO_FILE", where=path.name, found="no such file or folder", remedy="check the path")
    if path.is_dir():
        inside = [(file, _dicom_kind(file)) for file in sorted(path.rglob("*")) if file.is_file()]
        labels = [(file, kind) for file, kind in inside if kind]
        if len(labels) != 1:
            raise InputError(
                "LBL_FORMAT",
                where=path.name,
                found=f"a folder with {len(labels)} segmentations or structure sets",
                remedy="give the one file that is meant",
            )
        return labels[0]
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return path, "nifti"
    kind = _dicom_kind(path)
    if not kind:
        raise InputError(
            "LBL_FORMAT",
            where=path.name,
            found="neither NIfTI nor a DICOM segmentation (SEG) or structure set (RTSTRUCT)",
            remedy="give a label map in one of these formats",
        )
    return path, kind


def _dicom_kind(path: Path) -> str:
    """``seg``, ``rtstruct``, or nothing."""
    stated, syntax = stated_class(path)
    kind = "seg" if stated in dicom_seg.CLASSES else "rtstruct" if stated == rtstruct.CLASS else ""
    if kind and syntax == DEFLATED:  # pydicom inflates the whole file at once
        raise file_error("DCM_BOMB", path, "the deflated transfer syntax", "export it uncompressed")
    return kind


# -- grids ------------------------------------------------------------------------------------------------------------


def _placed(path: Path, image: Grid, grid: Grid, tolerance_mm: float) -> Placement:
    placement = place(image, grid, tolerance_mm)
    if placement is None:
        raise InputError(
            "PAIR_GRID_MISMATCH",
            where=path.name,
            found=difference(image, grid),
            remedy="give labels on the voxels of the image that the case is on; labels are never resampled",
        )
    return placement


def _whole(path: Path, image: Grid, grid: Grid) -> Placement:
    """A NIfTI file has every voxel of the grid."""
    placement = _placed(path, image, grid, SAME_VOXEL_MM)
    if int(np.prod(image.shape)) != int(np.prod(grid.shape)):
        raise InputError(
            "PAIR_GRID_MISMATCH",
            where=path.name,
            found=f"a part of the voxels: {difference(image, grid)}",
            remedy="give labels for all voxels of the image that the case is on",
        )
    return placement


def _turned(placement: Placement) -> tuple[str, ...]:
    return ("its voxels, stored in another order of axes, were put into the PET's",) * placement.reordered


def _slabs(shape: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
    depth = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for z0 in range(0, shape[0], depth):
        yield z0, min(z0 + depth, shape[0])


# -- the merged image -------------------------------------------------------------------------------------------------


def _drawn(layers: Sequence[_Layer]) -> dict[str, str]:
    """Name -> how it was drawn, where all that has this name says the same."""
    said: dict[str, set[str]] = {}
    for layer in layers:
        for value, name in layer.names.items():
            said.setdefault(name, set()).add(layer.drawn.get(value, ""))
    return {name: min(words) for name, words in said.items() if len(words) == 1 and words != {""}}


def _numbered(files: Sequence[LabelFile], layers: Sequence[_Layer]) -> dict[int, str]:
    """Give each name a value: its own unless another name has it, else the lowest that no file uses."""
    names = {1: LESION} if any(isinstance(file, LesionMask) for file in files) else {}
    used = {value for layer in layers for value in layer.names} | names.keys()
    free = (value for value in itertools.count(1) if value not in used)
    for layer in layers:
        for value, name in sorted(layer.names.items()):
            if name not in names.values():
                names[value if value not in names else next(free)] = name
    return dict(sorted(names.items()))


def _room(workdir: Path, grid: Grid) -> Path:
    """A file of zeros with its place on the disk: writing through memory cannot report a full one."""
    workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
    size = 2 * int(np.prod(grid.shape))
    handle, name = tempfile.mkstemp(suffix=".labels", dir=workdir)
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError:
        os.unlink(name)
        free = shutil.disk_usage(workdir).free
        raise InputError(
            "DISK_FULL", where="labels", found=f"no space for {size} bytes, {free} are free", remedy="free some space"
        ) from None
    finally:
        os.close(handle)
    return Path(name)


def _titles(files: Sequence[LabelFile]) -> list[str]:
    """How notes call each file; its name may be the patient's."""
    kinds = ["lesion mask" if isinstance(file, LesionMask) else "label map" for file in files]
    return [kind if kinds.count(kind) == 1 else f"{kind} {kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds)]
