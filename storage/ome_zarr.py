"""An image as an OME-Zarr of its own (NGFF 0.5, Zarr v3): placed and oriented, with its case's labels beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from storage.integrity import whole_folder
from storage.layout import create_group, storage_dtype
from storage.source import Grid, ImageSource

CHUNK = 64  # edge in voxels
SLAB = CHUNK  # slices held in memory
LABELS = "labels"
# letter of the side that an axis leads to -> how RFC-4 of NGFF says it
ORIENTATIONS = {
    "R": "left-to-right",
    "L": "right-to-left",
    "A": "posterior-to-anterior",
    "P": "anterior-to-posterior",
    "S": "inferior-to-superior",
    "I": "superior-to-inferior",
}


def write_ome_zarr(
    folder: Path, name: str, image: ImageSource, labels: ImageSource | None, names: Mapping[int, str]
) -> None:
    """Write an image, and labels on its grid, as one OME-Zarr.

    Args:
        folder: to be created; it appears only when it is whole.
        name: of the image.
        labels: what its case labels, None for nothing.
        names: of the values of ``labels``, or of the image where that is a label map itself.

    Raises:
        InputError: DISK_EXISTS; DISK_FULL and its kin.
    """
    with whole_folder(folder) as partial:
        _write(partial, name, image, _named(names) if labels is None else {})
        if labels is not None:
            create_group(partial / LABELS, {"ome": {"version": "0.5", "labels": [LABELS]}})
            marked = _named(names) | {"source": {"image": "../../"}}
            _write(partial / LABELS / LABELS, LABELS, labels, marked)


def _named(names: Mapping[int, str]) -> dict[str, Any]:
    if not names:
        return {}
    return {"properties": [{"label-value": value, "name": label} for value, label in sorted(names.items())]}


def _write(folder: Path, name: str, image: ImageSource, marked: Mapping[str, Any]) -> None:
    import zarr

    ome = {"version": "0.5", "multiscales": [multiscale(name, image.grid)]}
    facts = {"units": image.units, "affine_ras_mm": image.grid.affine.tolist()}
    create_group(folder, {"ome": ome | ({"image-label": dict(marked)} if marked else {}), "petscale": facts})
    shape = image.grid.shape
    array = zarr.create_array(
        folder / "0",
        shape=shape,
        dtype=storage_dtype(image.units),
        chunks=tuple(min(CHUNK, edge) for edge in shape),
        dimension_names=("z", "y", "x"),
        fill_value=0,
    )
    for z0 in range(0, shape[0], SLAB):
        z1 = min(z0 + SLAB, shape[0])
        array[z0:z1] = image.read(z0, z1).astype(array.dtype)


def multiscale(name: str, grid: Grid) -> dict[str, Any]:
    """Return NGFF's metadata of one image of one level.

    NGFF 0.5 knows no rotation.  Coordinates are mm along the voxels' own axes, from the origin of the scanner's
    coordinates; of axes that are those of the body they are LPS, RAS or whatever ``orientation`` says.
    """
    import nibabel

    directions = (grid.affine[:3, :3] / grid.spacing_mm[::-1]).T[::-1]  # a row per axis (z, y, x), RAS
    sides = nibabel.aff2axcodes(grid.affine)[::-1]
    axes = [
        {
            "name": axis,
            "type": "space",
            "unit": "millimeter",
            "orientation": {"type": "anatomical", "value": ORIENTATIONS[side]},
        }
        for axis, side in zip("zyx", sides, strict=True)
    ]
    start = np.round(directions @ grid.affine[:3, 3], 9) + 0.0
    placed = [
        {"type": "scale", "scale": list(grid.spacing_mm)},
        {"type": "translation", "translation": start.tolist()},
    ]
    return {"name": name, "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": placed}]}
