"""DICOM structure sets (RTSTRUCT): closed planar contours rasterised on a grid.

The file is read by pydicom; its contours become voxels here, exactly on the grid of the PET: a voxel belongs to a
structure where its centre lies inside, by the even-odd rule (DICOM PS3.3 C.8.8.6.3).  So a hole drawn as an inner
contour or through a keyhole is a hole, and structures that touch share no voxel.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.dicom_header import Header, items_of, text_of
from storage.errors import InputError
from storage.geometry import index_map
from storage.label_names import DRAWN, HIGHEST, known_name, listed
from storage.source import LABEL, Grid

CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
MAYBE_LESION = ("", "GTV")  # RTROIInterpretedType: gross tumour volume, or nothing stated
FLAT = 0.1  # of a slice spacing: a contour whose points differ by more is not parallel to the slices
SAME_PLANE_MM = 0.01
TIE = 1e-3  # slices


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure as a file has it.

    Args:
        name: of words of anatomy, else ``structure_<number>``.
        no_lesion: whether the file states that it is something else: an organ, the outline of the body, a margin.
        contours: closed ones, (n, 3) points in LPS mm.
        passed_by: whether it has points or open contours too.
        drawn: one of the words ``DRAWN`` where the file says how, else empty.
    """

    name: str
    no_lesion: bool
    frame_of_reference: str = field(repr=False)
    contours: Sequence[NDArray[np.float64]] = field(repr=False)
    passed_by: bool
    drawn: str = ""


@dataclass(frozen=True, eq=False)
class StructureSource:
    """Structures on a grid as an ``ImageSource``: values are their numbers; ``drawn`` is how, where the file says it.

    The voxels are held as uint16 in memory: where structures overlap, all of one must be known to choose.
    """

    grid: Grid
    voxels: NDArray[np.uint16] = field(repr=False)
    names: Mapping[int, str]
    notes: tuple[str, ...]
    drawn: Mapping[int, str]
    units: str = LABEL
    provenance: Mapping[str, object] = field(default_factory=lambda: {"format": "dicom rtstruct"})

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1`` as (z, y, x)."""
        return np.ascontiguousarray(self.voxels[z0:z1], dtype=np.float32)


def read_structures(path: Path) -> dict[int, Structure]:
    """Read the structures of a file by their ROI number, or by their order from 1 on where a number is no label.

    A name in the file is free text and is taken over only if its words are those of anatomy.

    Raises:
        InputError: ``LBL_STRUCTURES`` for a damaged file, or one without a structure.
    """
    try:
        import pydicom

        ds = pydicom.dcmread(path)
        kinds = {
            _integer(item, "ReferencedROINumber"): text_of(item, "RTROIInterpretedType")
            for item in items_of(ds, "RTROIObservationsSequence")
        }
        drawn = {
            _integer(item, "ReferencedROINumber"): [
                (text_of(contour, "ContourGeometricType"), text_of(contour, "ContourData"))
                for contour in items_of(item, "ContourSequence")
            ]
            for item in items_of(ds, "ROIContourSequence")
        }
        rois = {_integer(item, "ROINumber"): item for item in items_of(ds, "StructureSetROISequence")}
        usable = all(1 <= number <= HIGHEST for number in rois)
        found = {}
        for place, (number, roi) in enumerate(rois.items(), start=1):
            label = number if usable else place
            found[label] = Structure(
                name=known_name(text_of(roi, "ROIName")) or f"structure_{label}",
                no_lesion=kinds.get(number, "") not in MAYBE_LESION,
                frame_of_reference=text_of(roi, "ReferencedFrameOfReferenceUID"),
                contours=[_points(data) for kind, data in drawn.get(number, ()) if kind in CLOSED],
                passed_by=any(kind not in CLOSED for kind, _ in drawn.get(number, ())),
                drawn=said if (said := text_of(roi, "ROIGenerationAlgorithm")) in DRAWN else "",
            )
    except Exception:  # a damaged file can end in any error of the parser
        raise _error("LBL_STRUCTURES", path, "a structure set that cannot be read", "export it again") from None
    if not found:
        raise _error("LBL_STRUCTURES", path, "no structure at all", "export it again")
    return found


def rasterise(
    structures: Mapping[int, Structure], path: Path, *, grid: Grid, frame_of_reference: str = ""
) -> StructureSource:
    """Put structures onto a grid.

    A plane of contours stands for the slab up to half way to its neighbours: a slice takes the nearest plane within
    half a slice or, where planes lie further apart, half their distance.  Where structures overlap the smaller one
    keeps the voxel; a note says how many those are.  Points and open contours are passed by with a note.

    Args:
        structures: by the value that their voxels get.
        path: of the file, for errors.
        frame_of_reference: UID of the PET's; empty if unknown.

    Raises:
        InputError: ``LBL_STRUCTURES`` for contours that are not parallel to slices, ``LBL_FRAME`` for another frame of
            reference, ``LBL_OUTSIDE`` for contours beyond the grid.
    """
    if frame_of_reference and {s.frame_of_reference for s in structures.values()} - {"", frame_of_reference}:
        raise _error(
            "LBL_FRAME",
            path,
            "structures of another frame of reference than the PET's",
            "give the structures that were drawn on this examination",
        )
    flat = {n: _flat(n, s.contours, grid, path) for n, s in structures.items()}
    sizes = {n: sum(int(np.count_nonzero(mask)) for _, mask in f.slices(grid.shape)) for n, f in flat.items()}
    voxels = np.zeros(grid.shape, dtype=np.uint16)
    for n in sorted(flat, key=lambda n: (-sizes[n], n)):
        across = np.moveaxis(voxels, flat[n].axis, 0)
        for k, mask in flat[n].slices(grid.shape):
            across[k][mask] = n
    notes = []
    shared = sum(sizes.values()) - int(np.count_nonzero(voxels))
    if shared:
        notes.append(f"structures overlap: {shared} voxels went to the smaller structure")
    passed_by = [n for n, s in structures.items() if s.passed_by]
    if passed_by:
        notes.append(f"points and open contours of structures {listed(passed_by)} were passed by")
    off = max((abs(place - round(place)) for f in flat.values() for place in f.planes), default=0.0)
    if off > FLAT:
        notes.append(f"contours lie up to {off:.2f} slices beside the slices of the grid")
    drawn = {n: s.drawn for n, s in structures.items() if s.drawn}
    return StructureSource(grid, voxels, {n: s.name for n, s in structures.items()}, tuple(notes), drawn)


def even_odd(contours: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which voxel centres lie inside an odd number of closed contours.

    A centre on an edge is inside if the inside lies towards higher indices, so that of two areas with a common edge one
    has it, and the two sides of a keyhole's channel cancel.

    Args:
        contours: (n, 2) each, corners as (row, column) in voxels; the last is joined to the first.
        shape: (rows, columns).
    """
    rows, columns = shape
    crossings = np.zeros((rows, columns + 1), dtype=np.int32)
    for contour in contours:
        ends = np.stack([contour, np.roll(contour, -1, axis=0)], axis=1)
        up = ends[:, 0, 0] <= ends[:, 1, 0]  # every edge upwards, so that the two sides of a channel cross alike
        low, high = np.where(up[:, None], ends[:, 0], ends[:, 1]), np.where(up[:, None], ends[:, 1], ends[:, 0])
        first, last = (np.clip(np.ceil(end[:, 0]), 0, rows).astype(int) for end in (low, high))
        counts = last - first
        edge = np.repeat(np.arange(len(contour)), counts)
        row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        share = (row - low[edge, 0]) / (high[edge, 0] - low[edge, 0])
        column = low[edge, 1] + share * (high[edge, 1] - low[edge, 1])
        np.add.at(crossings, (row, np.clip(np.ceil(column), 0, columns).astype(int)), 1)
    inside: NDArray[np.bool_] = np.cumsum(crossings, axis=1)[:, :columns] % 2 == 1
    return inside


def _points(text: str) -> NDArray[np.float64]:
    """(n, 3) points in LPS mm."""
    points = np.array(text.split("\\"), dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("a point that is nowhere")
    return points


@dataclass(frozen=True, eq=False)
class _Flat:
    """The contours of one structure in voxels of a grid.

    Args:
        axis: of the grid (0: z, 1: y, 2: x), across which they are drawn.
        planes: place along that axis -> contours, each (n, 2) along the two other axes in their order.
    """

    axis: int
    planes: Mapping[float, Sequence[NDArray[np.float64]]]

    def slices(self, shape: tuple[int, int, int]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """The structure's slices along its axis: index and voxels."""
        places = np.array(sorted(self.planes))
        if not len(places):
            return
        apart = float(np.median(np.diff(places))) if len(places) > 1 else 1.0
        reach = max(1.0, apart) / 2
        count, rows, columns = shape[self.axis], *(n for axis, n in enumerate(shape) if axis != self.axis)
        for k in range(max(0, int(places[0] - reach)), min(count, int(places[-1] + reach) + 2)):
            away = places - k
            near = (away > -reach + TIE) & (away <= reach + TIE)  # a plane half way between slices goes to the lower
            if near.any():
                nearest = places[np.where(near, np.abs(away), np.inf).argmin()]
                yield k, even_odd(self.planes[nearest], (rows, columns))


def _flat(number: int, contours: Sequence[NDArray[np.float64]], grid: Grid, path: Path) -> _Flat:
    """Bring contours into voxel indices and sort them by plane."""
    lps = Grid((1, 1, 1), np.diag([-1.0, -1.0, 1.0, 1.0]))
    to_index = index_map(grid, lps)  # of (z, y, x, 1) in LPS mm
    areas = [points for points in contours if len(points) > 2]
    indices = [np.c_[points[:, ::-1], np.ones(len(points))] @ to_index[:3].T for points in areas]
    if not indices:
        return _Flat(0, {})
    spreads = np.array([np.ptp(points, axis=0) for points in indices])
    axis = int(spreads.max(axis=0).argmin())
    if spreads[:, axis].max() > FLAT:
        raise _error(
            "LBL_STRUCTURES",
            path,
            f"contours of structure {number} are not parallel to the slices of the PET",
            "draw them on the slices of the PET or its CT, or save a mask on the PET's voxels",
        )
    limits, mm = np.array(grid.shape) - 0.5, np.array(grid.spacing_mm)
    beyond = max(float((np.maximum(-0.5 - points, points - limits) * mm).max()) for points in indices)
    if beyond > SAME_PLANE_MM:
        raise _error(
            "LBL_OUTSIDE",
            path,
            f"contours of structure {number} lie {beyond:.1f} mm beyond the voxels of the PET",
            "give the structures of this examination, or name by number those that lie inside",
        )
    planes: dict[float, list[NDArray[np.float64]]] = {}
    for points in sorted(indices, key=lambda p: float(p[:, axis].mean())):
        place = max(float(points[:, axis].mean()), -0.5 + 2 * TIE)
        near = next((held for held in planes if abs(held - place) * mm[axis] <= SAME_PLANE_MM), place)
        planes.setdefault(near, []).append(np.delete(points, axis, axis=1))
    return _Flat(axis, planes)


def _integer(ds: Header, keyword: str) -> int:
    """Return an integer string (IS)."""
    return int(text_of(ds, keyword))


def _error(code: str, path: Path, found: str, remedy: str) -> InputError:
    return InputError(code, where=path.name, found=found, remedy=remedy)
