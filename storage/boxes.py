"""Boxes around tumours in CT slices (Pascal VOC XML, a file per slice) as a label image on a grid."""

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from storage.dicom import DicomSource
from storage.dicom_header import text_of
from storage.errors import InputError
from storage.source import LABEL, ArraySource, Grid

MAX_BYTES = 1 << 20  # of one file


@dataclass(frozen=True)
class Box:
    """A rectangle in one slice: pixels from ``x0`` and ``y0`` up to and with ``x1`` and ``y1``."""

    z: int
    y0: float
    x0: float
    y1: float
    x1: float


def open_boxes(folder: Path, ct: DicomSource, grid: Grid) -> ArraySource:
    """Return the boxes of a CT's slices on ``grid``: 1 in a voxel whose centre lies in a box, 0 elsewhere.

    Args:
        folder: holds ``<SOPInstanceUID of a slice>.xml`` files; those of other series are passed by.
        ct: the series that was annotated.
        grid: of the label image, (z, y, x).

    Raises:
        InputError: ``LBL_BOXES`` for a file that is no annotation, or where no file is about a slice of this CT.
    """
    found = read_boxes(folder, ct)
    if not found:
        raise InputError(
            "LBL_BOXES",
            where=folder.name,
            found="no box is about a slice of this CT series",
            remedy="choose the annotated CT (--series ct=<number>), or leave the annotation out",
        )
    voxels = np.zeros(grid.shape, dtype=np.float32)
    to_grid = np.linalg.inv(grid.affine) @ ct.grid.affine
    to_ct = np.linalg.inv(ct.grid.affine) @ grid.affine
    for box in found:
        low, high = np.array([box.x0, box.y0, box.z]) - 0.5, np.array([box.x1, box.y1, box.z]) + 0.5
        _fill(voxels, to_grid, to_ct, low, high)
    return ArraySource(voxels, grid, LABEL, {"format": "boxes", "boxes": len(found), "notes": []})


def _fill(
    voxels: NDArray[np.float32],
    to_grid: NDArray[np.float64],
    to_ct: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> None:
    """Set the voxels whose centres, as (x, y, z) in the CT, lie between two corners."""
    ends = np.stack([low, high])
    corners = np.array([[x, y, z, 1.0] for x in ends[:, 0] for y in ends[:, 1] for z in ends[:, 2]])
    places = (corners @ to_grid.T)[:, :3][:, ::-1]  # (z, y, x)
    first = np.maximum(np.ceil(places.min(0) - 1e-6), 0).astype(int)
    last = np.minimum(np.floor(places.max(0) + 1e-6), np.array(voxels.shape) - 1).astype(int)
    if np.any(last < first):
        return
    z, y, x = np.mgrid[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]
    inside = np.stack([x, y, z, np.ones_like(x)], -1) @ to_ct.T
    within = np.all((inside[..., :3] >= low - 1e-6) & (inside[..., :3] < high), axis=-1)
    voxels[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))][within] = 1.0


def read_boxes(folder: Path, ct: DicomSource) -> list[Box]:
    """Return the boxes of a CT's slices; ``z`` counts the slices as ``ct`` sorts them.

    Raises:
        InputError: ``LBL_BOXES``.
    """
    place = {text_of(s.header, "SOPInstanceUID"): z for z, s in enumerate(ct.slices)}
    found = []
    for path in sorted(folder.rglob("*.xml")):
        if path.stem not in place:
            continue
        text = path.read_bytes()
        if len(text) > MAX_BYTES or re.search(rb"<!(DOCTYPE|ENTITY)", text):
            raise _wrong(folder, "a file that is no annotation of boxes")
        try:
            for box in ElementTree.fromstring(text).iter("bndbox"):  # noqa: S314 - without entities, see above
                x0, y0, x1, y1 = (float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax"))
                if not (np.isfinite([x0, y0, x1, y1]).all() and x0 <= x1 and y0 <= y1):
                    raise ValueError
                found.append(Box(place[path.stem], y0, x0, y1, x1))
        except (ElementTree.ParseError, ValueError):
            raise _wrong(folder, "a file with a box that is not four numbers") from None
    return found


def _wrong(folder: Path, found: str) -> InputError:
    return InputError("LBL_BOXES", where=folder.name, found=found, remedy="copy the annotation again")
