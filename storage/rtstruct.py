"""DICOM structure sets (RTSTRUCT): closed planar contours rasterised on a grid.

The file is read by pydicom; its contours become voxels here, exactly on the grid of the PET: a voxel belongs to a
structure where its centre lies inside, by the even-odd rule (DICOM PS3.3 C.8.8.6.3).  So a hole drawn as an inner
contour or through a keyhole is a hole, and structures that touch share no voxel.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from storage.dicom_header import items_of, text_of
from storage.errors import InputError
from storage.geometry import index_map
from storage.label_names import known_name, listed
from storage.source import LABEL, Grid

CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
FLAT = 0.1  # of a slice spacing: a contour whose points differ by more is not parallel to the slices
SAME_PLANE_MM = 0.01
TIE = 1e-3  # slices


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure: its contours in voxel indices of a grid, by plane.

    Args:
        axis: of the grid (0: z, 1: y, 2: x), across which the contours are drawn.
        planes: place along that axis -> contours, each (n, 2) along the two other axes in their order.
    """

    number: int
    axis: int
    planes: Mapping[float, Sequence[NDArray[np.float64]]] = field(repr=False)

    @property
    def spacing(self) -> float:
        """Usual distance between planes, in voxels; 1 for a single plane."""
        gaps = np.diff(sorted(self.planes))
        return float(np.median(gaps)) if len(gaps) else 1.0


@dataclass(frozen=True, eq=False)
class StructureSource:
    """An RTSTRUCT on a grid as an ``ImageSource``: values are ROI numbers.

    The voxels are held as uint16 in memory: where structures overlap, all of one must be known to choose.
    """

    grid: Grid
    voxels: NDArray[np.uint16] = field(repr=False)
    names: Mapping[int, str]
    notes: tuple[str, ...]
    units: str = LABEL
    provenance: Mapping[str, object] = field(default_factory=lambda: {"format": "dicom rtstruct"})

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1`` as (z, y, x)."""
        return np.ascontiguousarray(self.voxels[z0:z1], dtype=np.float32)


def open_rtstruct(
    path: Path, *, grid: Grid, frame_of_reference: str = "", wanted: Mapping[int, str] | None = None
) -> StructureSource:
    """Read a structure set and rasterise it on ``grid``.

    A plane of contours stands for the slab up to half way to its neighbours: a slice takes the nearest plane within
    half a slice or, where planes lie further apart, half their distance.  Where structures overlap the smaller one
    keeps the voxel; a note says how many those are.  Points and open contours are passed by with a note.

    Args:
        frame_of_reference: UID of the PET's; empty if unknown.
        wanted: ROI number -> name; names that stand instead of the file's, other structures are left out.  A name in
            the file is free text and is taken over only if its words are those of anatomy, else ``structure_<number>``.

    Raises:
        InputError: ``LBL_STRUCTURES`` for a damaged file or contours that are not flat, ``LBL_FRAME`` for another
            frame of reference, ``LBL_OUTSIDE`` for contours beyond the grid.
    """
    try:
        ds = pydicom.dcmread(path)
        own = {_integer(item, "ROINumber"): item for item in items_of(ds, "StructureSetROISequence")}
        frames = {text_of(item, "ReferencedFrameOfReferenceUID") for item in own.values()}
        drawn = {
            _integer(item, "ReferencedROINumber"): [
                (text_of(contour, "ContourGeometricType"), text_of(contour, "ContourData"))
                for contour in items_of(item, "ContourSequence")
            ]
            for item in items_of(ds, "ROIContourSequence")
        }
        contours = {
            number: [_points(data) for kind, data in found if kind in CLOSED]
            for number, found in drawn.items()
            if number in own
        }
    except Exception:  # a damaged file can end in any error of the parser
        raise _error("LBL_STRUCTURES", path, "a structure set that cannot be read", "export it again") from None
    if frame_of_reference and frames - {"", frame_of_reference}:
        raise _error(
            "LBL_FRAME",
            path,
            "structures of another frame of reference than the PET's",
            "give the structures that were drawn on this examination",
        )
    named = {n: known_name(text_of(item, "ROIName")) or f"structure_{n}" for n, item in own.items()}
    names = named if wanted is None else {n: name for n, name in wanted.items() if n in named}
    left_out = sorted(named.keys() - names.keys())
    if not names:
        raise _error(
            "LBL_VALUES",
            path,
            f"none of the names given for the structures {listed(left_out)}",
            "name structures by their number, as 1=liver,2=brain",
        )
    structures = [_structure(n, contours.get(n, []), grid, path) for n in names]
    sizes = {s.number: sum(int(np.count_nonzero(mask)) for _, mask in _slices(s, grid.shape)) for s in structures}
    voxels = np.zeros(grid.shape, dtype=np.uint16)
    for structure in sorted(structures, key=lambda s: (-sizes[s.number], s.number)):
        across = np.moveaxis(voxels, structure.axis, 0)
        for k, mask in _slices(structure, grid.shape):
            across[k][mask] = structure.number
    notes = [f"structures without a name are left out: {listed(left_out)}"] if left_out else []
    shared = sum(sizes.values()) - int(np.count_nonzero(voxels))
    if shared:
        notes.append(f"structures overlap: {shared} voxels went to the smaller structure")
    open_ones = [n for n in names if any(kind not in CLOSED for kind, _ in drawn.get(n, []))]
    if open_ones:
        notes.append(f"points and open contours of structures {listed(open_ones)} were passed by")
    off = max((_off_slice(s) for s in structures if s.planes), default=0.0)
    if off > FLAT:
        notes.append(f"contours lie up to {off:.2f} slices beside the slices of the grid")
    unknown = [n for n, name in names.items() if name == f"structure_{n}"]
    if unknown and wanted is None:
        told = f"structures {listed(unknown)} have names that petscale does not know"
        notes.append(f"{told}; name them by number, as {unknown[0]}=liver")
    return StructureSource(grid, voxels, names, tuple(notes))


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


def _structure(number: int, contours: Sequence[NDArray[np.float64]], grid: Grid, path: Path) -> Structure:
    """Bring contours into voxel indices and sort them by plane."""
    lps = Grid((1, 1, 1), np.diag([-1.0, -1.0, 1.0, 1.0]))
    to_index = index_map(grid, lps)  # of (z, y, x, 1) in LPS mm
    areas = [points for points in contours if len(points) > 2]
    indices = [np.c_[points[:, ::-1], np.ones(len(points))] @ to_index[:3].T for points in areas]
    if not indices:
        return Structure(number, 0, {})
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
    return Structure(number, axis, planes)


def _slices(structure: Structure, shape: tuple[int, int, int]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The structure's slices along its axis: index and voxels."""
    places = np.array(sorted(structure.planes))
    if not len(places):
        return
    reach = max(1.0, structure.spacing) / 2
    count, rows, columns = shape[structure.axis], *(n for axis, n in enumerate(shape) if axis != structure.axis)
    for k in range(max(0, int(places[0] - reach)), min(count, int(places[-1] + reach) + 2)):
        away = places - k
        near = (away > -reach + TIE) & (away <= reach + TIE)  # a plane half way between two slices goes to the lower
        if near.any():
            nearest = places[np.where(near, np.abs(away), np.inf).argmin()]
            yield k, even_odd(structure.planes[nearest], (rows, columns))


def _off_slice(structure: Structure) -> float:
    places = np.array(sorted(structure.planes))
    return float(np.abs(places - np.rint(places)).max())


def _integer(ds: pydicom.Dataset, keyword: str) -> int:
    """Return an integer string (IS)."""
    return int(text_of(ds, keyword))


def _error(code: str, path: Path, found: str, remedy: str) -> InputError:
    return InputError(code, where=path.name, found=found, remedy=remedy)
