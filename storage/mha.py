"""MetaImage files (.mha) out: ITK's own format, a text header and raw voxels, written slab by slab."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from storage.integrity import replacing
from storage.source import Grid

SLAB = 16  # slices held in memory
ELEMENTS = {"f4": "MET_FLOAT", "u2": "MET_USHORT"}


def write_mha(
    path: Path,
    grid: Grid,
    read_slab: Callable[[int, int], NDArray[np.generic]],
    dtype: np.dtype[np.generic],
    facts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a volume; the file appears only when it is whole.

    The header is that of ITK's MetaIO: places and directions in LPS, axes in the order x, y, z.

    Args:
        path: a ``.mha``; a file that is there is replaced.
        read_slab: ``read_slab(z0, z1)`` returns (z1 - z0, y, x).
        dtype: float32 or uint16.
        facts: further fields, a word each, which ITK keeps as an image's metadata.

    Raises:
        InputError: DISK_FULL and its kin.
    """
    element = np.dtype(dtype).newbyteorder("<")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    spacing_mm = grid.spacing_mm[::-1]
    directions = (lps[:3, :3] / spacing_mm).T  # a row per axis of the voxels
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _numbers(directions.ravel()),
        "Offset": _numbers(lps[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _numbers(spacing_mm),
        "DimSize": " ".join(map(str, grid.shape[::-1])),
        **facts,
        "ElementType": ELEMENTS[element.str[1:]],
        "ElementDataFile": "LOCAL",  # the last one: voxels follow
    }
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(path) as stream:
        stream.write("".join(f"{name} = {value}\n" for name, value in fields.items()).encode("ascii"))
        for z0 in range(0, grid.shape[0], SLAB):
            slab = read_slab(z0, min(z0 + SLAB, grid.shape[0]))
            stream.write(np.ascontiguousarray(slab, element).tobytes())


def _numbers(values: "NDArray[np.floating] | tuple[float, ...]") -> str:
    """To the last bit."""
    return " ".join(repr(float(value) + 0.0) for value in values)  # + 0.0: no minus before a zero
